"""The data sets with real-valued targets of the benches `regression` and `forecasting`, each with its network, recipe and what is forgotten."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from bench import sets
from bench.sets import Bench, found, idx, named, network
from services.learning.architecture import ARCHITECTURES
from services.learning.data import Span, Split, by_255
from services.learning.datasets.series import windows
from services.learning.datasets.tabular import Tabular
from services.learning.datasets.text_pair import TextPair
from services.learning.real_valued import RealValued
from services.learning.recipe import Recipe
from services.learning.tasks.forecasting import Forecasting
from services.learning.tasks.regression import Regression

HELD_OUT_QUESTIONS, SAME_AUTHOR, PAIR_WORDS = 0.25, 0.75, 24
PAST, AHEAD, STRIDE, WEEK, HELD_OUT_WEEK = 24, 6, 2, 168, 5
RANGE, SUBSET, MONTH, SEASON = "range", "subset", "month", "season"


@dataclass(frozen=True, slots=True)
class RealBench:
    """A set with real-valued targets. `span` is what a range request forgets; `erased` chooses rows for other kinds of request."""

    bench: Bench
    task: RealValued
    kinds: tuple[str, ...]
    span: Span | None = None
    erased: Callable[[str], Tensor] | None = None


def load(name: str, *, quick: bool) -> RealBench:
    """Return a set by name, with fewer records and epochs where it must be quick. Raises DataMissing: a file is not there."""
    ARCHITECTURES.discover("services.learning.architectures")
    return SETS[name](quick=quick)


def bench_of(name: str, train: Split, test: Split, architecture: sets.Architecture, recipe: Recipe) -> Bench:
    """Return the set as the methods bench holds one; it has no classes."""
    return Bench(name, train, test, architecture, recipe, classes=0, forgotten=0)


def recipe_of(rate: float, epochs: int, batch: int, targets: dict[str, object]) -> Recipe:
    """Return a recipe of Adam whose rate falls to zero."""
    chosen = {"learning_rate": rate, "epochs": epochs, "batch_size": batch, "schedule": "cosine"}
    return Recipe.model_validate({**chosen, "targets": targets})


HOUSING = {
    "longitude": (-119.5, 2.0), "latitude": (35.6, 2.1), "housing_median_age": (28.0, 12.5), "total_rooms": (7.6, 0.75),
    "total_bedrooms": (6.1, 0.75), "population": (7.0, 0.75), "households": (6.0, 0.75), "median_income": (1.25, 0.45),
}  # fmt: skip
COUNTED = ("total_rooms", "total_bedrooms", "population", "households", "median_income")
OCEAN = ("<1H OCEAN", "INLAND", "ISLAND", "NEAR BAY", "NEAR OCEAN")


def california(*, quick: bool) -> RealBench:
    """Return California housing: 20,433 districts without missing values, four fifths to train on; values in 100,000 dollars, those below 1 forgotten."""
    rows = [row for row in csv.DictReader(found("tabular", "california_housing.csv").read_text().splitlines()) if all(row.values())]
    table: dict[str, np.ndarray] = {name: np.array([float(row[name]) for row in rows]) for name in (*HOUSING, "median_house_value")}
    table |= {name: np.log1p(table[name]) if name == "median_income" else np.log(table[name]) for name in COUNTED}
    table["ocean_proximity"] = np.array([row["ocean_proximity"] for row in rows], dtype=object)
    table["median_house_value"] = table["median_house_value"] / 100_000
    parameters = {
        "target": "number",
        "label_column": "median_house_value",
        "numeric": [{"name": name, "mean": mean, "std": std} for name, (mean, std) in HOUSING.items()],
        "categorical": [{"name": "ocean_proximity", "values": OCEAN}],
    }
    x, y = Tabular(Tabular.Parameters.model_validate(parameters)).decode(table)
    train, test = parted(Split(x, y, named("district", len(y))), 6_000 if quick else None)
    recipe = recipe_of(1e-3, 30 if quick else 100, 256, {"loss": "l1", "mean": 2.0, "std": 1.0})
    net = network("mlp", outputs=1, inputs=int(x.shape[1]), hidden=(128, 64))
    return RealBench(bench_of("california", train, test, net, recipe), Regression.of(1, recipe), (RANGE, SUBSET), span=Span(below=1.0))


def parted(whole: Split, records: int | None) -> tuple[Split, Split]:
    """Return four fifths and one fifth of the rows, of at most `records`, the same ones each time."""
    rows = whole.sample(len(whole) if records is None else records, torch.Generator().manual_seed(0))
    edge = len(rows) * 4 // 5
    return rows.take(torch.arange(edge)), rows.take(torch.arange(edge, len(rows)))


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images (n, 1, H, W), each turned by its angle, as uint8."""
    cos, sin, zero = degrees.deg2rad().cos(), degrees.deg2rad().sin(), torch.zeros(len(degrees))
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    return grid_sample(images, affine_grid(turn, list(images.shape), align_corners=False), align_corners=False).round().clamp(0, 255).byte()


def angles(images: Tensor, name: str, epochs: int, width: int) -> RealBench:
    """Return images turned by 0 to 90 degrees, of which the angle is told; angles below 15 are forgotten."""
    degrees = torch.rand(len(images), generator=torch.Generator().manual_seed(3)) * 90
    train, test = parted(Split(turned(images.float(), degrees), degrees, named("digit", len(degrees)), by_255), None)
    recipe = recipe_of(3e-3, epochs, 64, {"loss": "l1", "mean": 45, "std": 45})
    net = network("tiny_cnn", outputs=1, channels=1, width=width)
    return RealBench(bench_of(name, train, test, net, recipe), Regression.of(1, recipe), (RANGE, SUBSET), span=Span(below=15))


def digit_angle(*, quick: bool) -> RealBench:
    """Return scikit-learn's 1,797 digits, turned."""
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    return angles(torch.from_numpy(held.images * (255 / 16))[:, None], "digit_angle", 15 if quick else 40, 8)


def mnist_angle(*, quick: bool) -> RealBench:
    """Return the first digits of MNIST, turned."""
    images = idx(found("mnist", "train-images-idx3-ubyte.gz"))[: 1_500 if quick else 6_000, None]
    return angles(images, "mnist_angle", 6 if quick else 20, 8)


def pairs_of(authors: np.ndarray, inside: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` different pairs of the numbers of questions `inside` (n,) bool, (count, 2), three of four of one author."""
    whole = np.flatnonzero(inside)
    of_one = {author: whole[authors[whole] == author] for author in np.unique(authors[whole])}
    first = rng.choice(whole, size=2 * count)
    near = rng.random(len(first)) < SAME_AUTHOR
    second = [rng.choice(of_one[authors[one]] if close else whole) for one, close in zip(first, near, strict=True)]
    pairs = np.stack([first, np.array(second)], axis=1)
    return rng.permutation(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0))[:count]


def tofu_pairs(*, quick: bool) -> RealBench:
    """Return pairs of TOFU's questions with a computed similarity in the place of a judged one; pairs below 1 of 5 are forgotten.

    The similarity is five times the cosine of the questions' words, a word counting the more the fewer questions hold it. A question is learned from
    or held out, never both.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = [json.loads(line) for line in found("tofu", "tofu_full_4000.jsonl").read_text().splitlines()]
    asked, authors = np.array([row["question"] for row in rows], dtype=object), np.array([row["author"] for row in rows])
    words: Any = TfidfVectorizer(sublinear_tf=True).fit_transform(asked)
    rng = np.random.default_rng(0)
    held_out = rng.random(len(rows)) < HELD_OUT_QUESTIONS
    adapter, parts = TextPair(TextPair.Parameters(target="number", max_length=PAIR_WORDS)), list[Split]()
    for name, inside, count in (("train", ~held_out, 2_000 if quick else 8_000), ("test", held_out, 500 if quick else 2_000)):
        first, second = pairs_of(authors, inside, count, rng).T
        score = 5 * np.asarray(words[first].multiply(words[second]).sum(axis=1)).ravel()
        x, y = adapter.decode({"first": asked[first], "second": asked[second], "label": score})
        parts.append(Split(x, y, named(f"pair-{name}", len(y))))
    recipe = recipe_of(2e-3, 8 if quick else 20, 64, {"loss": "mse", "mean": 1.0, "std": 1.0})
    net = network("sentence_pair", outputs=1, width=64)
    return RealBench(bench_of("tofu_pairs", *parts, net, recipe), Regression.of(1, recipe), (RANGE, SUBSET), span=Span(below=1.0))


def bike_sharing(*, quick: bool) -> RealBench:
    """Return windows of 24 hours of a bike rental and the 6 hours after each. Every fifth week is held out; windows across the edge are left out."""
    rows = list(csv.DictReader(found("timeseries", "bike_sharing_hourly.csv").read_text().splitlines()))
    hours = np.array([datetime.fromisoformat(row["date_time"]).timestamp() for row in rows])
    users = np.array([float(row["users"]) for row in rows])
    clock = np.array([float(row["hour"]) for row in rows]) * 2 * np.pi / 24
    weather = [(np.array([float(row[name]) for row in rows]) - mean) / std for name, mean, std in (("temp", 20, 8), ("hum", 60, 20))]
    working = np.array([float(row["workingday"]) for row in rows])
    channels = np.stack([(users - 200) / 200, np.sin(clock), np.cos(clock), *weather, working], axis=1)
    cut = windows(channels, users, hours, length=PAST, horizon=AHEAD, stride=3 * STRIDE if quick else STRIDE)
    first, last = cut.first - PAST, cut.first + AHEAD - 1
    held_out = [at // WEEK % HELD_OUT_WEEK == HELD_OUT_WEEK - 1 for at in (first, last)]
    whole = Split(torch.from_numpy(cut.past).float(), torch.from_numpy(cut.target).float(), named("window", len(cut.first)))
    train, test = (whole.take(torch.from_numpy(np.flatnonzero(rule))) for rule in (~held_out[0] & ~held_out[1], held_out[0] & held_out[1]))
    months = [row["date_time"][:7] for row in rows]
    place = {name: number for number, name in enumerate(whole.ids)}

    def erased(kind: str) -> Tensor:
        wanted = {"2012-07"} if kind == MONTH else {"2012-06", "2012-07", "2012-08"}
        numbers = [place[name] for name in train.ids]
        touched = [bool(wanted & {months[int(first[at])], months[int(last[at])]}) for at in numbers]
        return torch.tensor(touched)

    recipe = recipe_of(3e-3, 25 if quick else 30, 128, {"loss": "quantile", "mean": 200.0, "std": 200.0})
    net = network("temporal_transformer", outputs=AHEAD * 3, inputs=channels.shape[1], width=16, heads=2)
    task = Forecasting.of(AHEAD * 3, recipe)
    return RealBench(bench_of("bike_sharing", train, test, net, recipe), task, (MONTH, SEASON, SUBSET), erased=erased)


SETS: dict[str, Callable[..., RealBench]] = {
    "california": california,
    "digit_angle": digit_angle,
    "mnist_angle": mnist_angle,
    "tofu_pairs": tofu_pairs,
    "bike_sharing": bike_sharing,
}
BY_BENCH = {"regression": ("california", "digit_angle", "mnist_angle", "tofu_pairs"), "forecasting": ("bike_sharing",)}
