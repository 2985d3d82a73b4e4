"""The requests that the suite of fakes judges: what is learned, and what of it is to be forgotten. What is trained lies in the cache."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import gan, language, real_sets, regression, sets
from bench.methods import World, cut, prepare, printing_run, trained
from services.learning.data import Split, Splits
from services.learning.task import Task
from services.learning.tasks.classification import Classification
from services.learning.tasks.image_generation import ImageGeneration
from services.verification.outputs import joined

NOISE = 0.2
PEOPLE, ALIKE, PIXEL_NOISE = 100, 5, 12.0
BY_HEART = 40  # passes after which a GPT of this size knows such answers word for word (docs/benchmarks/language.md)


@dataclass(frozen=True, slots=True)
class Scene:
    """One request. `make` takes a seed and the cache; it raises DataMissing. `shipped`: its data come with scikit-learn. `counts`: of records, see `foreseen`.

    One that is `aside` is judged where it is asked for by name alone.
    """

    make: Callable[[int, Path], World]
    shipped: bool = False
    counts: tuple[int, ...] = ()
    aside: bool = False


def digits_class(seed: int, cache: Path) -> World:
    """Return a class of the digits."""
    return prepare(sets.load("digits"), "class", seed, cache=cache)


def noisy_digits(seed: int, cache: Path) -> World:
    """Return 500 of the digits, of which a fifth is labelled wrong in training, so that whoever trains on them learns them by heart."""
    return prepare(mislabelled("noisy_digits"), "subset", seed, cache=cache, count=500)


def mislabelled(name: str) -> sets.Bench:
    """Return the digits with a fifth of the training labels wrong, and a recipe that learns them by heart."""
    held = sets.load("digits")
    generator = torch.Generator().manual_seed(17)
    wrong = torch.rand(len(held.train), generator=generator) < NOISE
    shift = torch.randint(1, held.classes, (len(held.train),), generator=generator)
    labels = torch.where(wrong, (held.train.y + shift) % held.classes, held.train.y)
    return replace(held, name=name, train=replace(held.train, y=labels), recipe=held.recipe.model_copy(update={"epochs": 60}))


def alike_digits(seed: int, cache: Path) -> World:
    """Return those of the digits, of whom a hundred people with five like records each are to be forgotten."""
    held, alike, others = people_alike()
    splits = replace(cut(held, "subset", seed, count=len(alike)), forget=alike, retain=others)
    return assembled(held, "subset", seed, Classification(held.classes), splits, cache)


def people_alike() -> tuple[sets.Bench, Split, Split]:
    """Return the digits with the first hundred of them five times, differing by noise alone: who learned one of them knows the others; and both parts."""
    held, generator = mislabelled("alike_digits"), torch.Generator().manual_seed(5)
    people, others = (held.train.take(rows) for rows in torch.arange(len(held.train)).split([PEOPLE, len(held.train) - PEOPLE]))
    alike = people
    for number in range(1, ALIKE):
        noise = torch.randn(people.x.shape, generator=generator) * PIXEL_NOISE
        pixels = (people.x.float() + noise).round().clamp(0, 255).to(torch.uint8)
        alike = joined(alike, replace(people, x=pixels, ids=tuple(f"{name}-{number}" for name in people.ids)))
    return replace(held, train=joined(alike, others)), alike, others


def small_images(name: str, kind: str, count: int | None = None) -> Callable[[int, Path], World]:
    """Return a request on 6,000 images of a set, learned by a network of one hidden layer."""

    def make(seed: int, cache: Path) -> World:
        held = sets.with_mlp(sets.load(name, records=6_000))
        recipe = held.recipe.model_copy(update={"batch_size": 64})
        return prepare(replace(held, name=f"{name}-6000", recipe=recipe), kind, seed, cache=cache, count=count)

    return make


def adult(seed: int, cache: Path) -> World:
    """Return 500 of 8,000 people of Adult, whom a network with time to spare has learned by heart."""
    held = sets.load("adult", records=8_000)
    held = replace(held, name="adult-8000", recipe=held.recipe.model_copy(update={"epochs": 60, "batch_size": 128}))
    return prepare(held, "subset", seed, cache=cache, count=500)


def real_valued(name: str, kind: str) -> Callable[[int, Path], World]:
    """Return a request on a set with real-valued targets, in its quick form."""

    def make(seed: int, cache: Path) -> World:
        real = real_sets.load(name, quick=True)
        return assembled(real.bench, kind, seed, real.task, regression.cut(real, kind, seed), cache)

    return make


def digit_gan(seed: int, cache: Path) -> World:
    """Return a class of the digits, of which a GAN makes more."""
    held = gan.load(gan.parse(["--data", "digits", "--kind", "class", "--quick"]))
    return assembled(held, "class", seed, ImageGeneration(held.classes), gan.cut(held, "class", seed), cache)


def tofu_author(seed: int, cache: Path) -> World:
    """Return the twenty questions on one of six authors of TOFU, to a small GPT that has learned the answers by heart."""
    options = language.parse(["--quick", "--kind", "author"])
    options.epochs = BY_HEART
    found = language.posed(language.tofu(options.authors), options, seed)
    outputs, name = found.task.outputs, f"tofu-{options.authors}-authors"
    held = sets.Bench(name, found.whole, found.splits.analysis, found.architecture, found.recipe, outputs, 0)
    return assembled(held, "author", seed, found.task, found.splits, cache)


def assembled(held: sets.Bench, kind: str, seed: int, task: Task, splits: Splits, cache: Path) -> World:
    """Return the records of a request with its three models, trained now or taken from the cache."""
    device = torch.device("cpu")
    original, _ = trained(held, held.train, task, seed, "original", cache, device)
    retrained, took = trained(held, splits.retain, task, seed, f"reference-{kind}", cache, device)
    twin, _ = trained(held, splits.retain, task, seed, f"twin-{kind}", cache, device)
    return World(held, kind, seed, task, splits, original, retrained, twin, took, device, printing_run(held, seed, device), {}, cache)


COUNTS = (16, 50, 100, 200, 500, 1000)
SCENES = {
    "digits": Scene(digits_class, shipped=True),
    "noisy_digits": Scene(noisy_digits, shipped=True, counts=COUNTS[:-1]),
    "alike_digits": Scene(alike_digits, shipped=True, aside=True),
    "fashion_class": Scene(small_images("fashion_mnist", "class")),
    "fashion_records": Scene(small_images("fashion_mnist", "subset", 500), counts=COUNTS),
    "mnist_class": Scene(small_images("mnist", "class")),
    "adult_records": Scene(adult, counts=COUNTS),
    "digit_angle": Scene(real_valued("digit_angle", "range"), shipped=True),
    "california": Scene(real_valued("california", "subset")),
    "california_range": Scene(real_valued("california", "range")),
    "digit_gan": Scene(digit_gan, shipped=True),
    "tofu": Scene(tofu_author),
}
