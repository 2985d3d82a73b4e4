"""The data sets of the methods bench as tensors, each with the network and recipe it is measured on.

Digits and breast cancer come with scikit-learn; the others are read from the folder that LETHE_DATA_DIR names. A set that is not there is
refused with the files that are missing.
"""

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.data import Split, by_255
from services.learning.datasets.tabular import Tabular
from services.learning.datasets.text import Text
from services.learning.recipe import Recipe

DATA_DIR = Path(os.environ.get("LETHE_DATA_DIR", "data"))
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_GRID = (32, 40, 32, 3)


SHORT_RELEARNING = {"ain": {"seeds": 3, "steps": 60, "batch_size": 128}}


class DataMissing(Exception):
    """A data set is not where it is looked for."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A data set with its network. `forgotten` is the class that a class request names: not the easiest one.

    `reading_parameters` are those of readings that are only printed, where their defaults would take longer than all methods together.
    """

    name: str
    train: Split
    test: Split
    architecture: Architecture
    recipe: Recipe
    classes: int
    forgotten: int
    reading_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """Parameters that a method is measured with, where they differ from its defaults, and why; `variant` tells several of one method apart."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    reason: str = "the defaults of the method"
    variant: str = ""


def load(name: str, *, records: int | None = None, net: str = "own") -> Bench:
    """Return a data set by name, of at most `records` to train on and half as many held out, with its own network or the `tiny` one.

    Raises:
        DataMissing: a file is not there. KeyError: the name is not in SETS. ValueError: the tiny network takes images only.
    """
    ARCHITECTURES.discover("services.learning.architectures")
    held = SETS[name]()
    if records is not None:
        held = replace(held, train=drawn(held.train, records), test=drawn(held.test, max(1, records // 2)))
    return held if net == "own" else replace(held, architecture=tiny(held), recipe=TINY_RECIPE)


def drawn(rows: Split, count: int) -> Split:
    """Return at most `count` records, the same ones each time."""
    return rows if count >= len(rows) else rows.sample(count, torch.Generator().manual_seed(0))


def tiny(held: Bench) -> Architecture:
    """Return the small convolutional network for a set of images. Raises ValueError for other records."""
    if held.train.x.ndim != 4:
        raise ValueError(f"the tiny network takes images, and {held.name} has none")
    return network("tiny_cnn", outputs=held.classes, channels=int(held.train.x.shape[1]), width=16)


def with_mlp(held: Bench) -> Bench:
    """Return the set with a network of one hidden layer of 64, of which a step costs so little that all around it shows."""
    return replace(held, architecture=network("mlp", outputs=held.classes, inputs=held.train.x[0].numel(), hidden=(64,)))


def settings_of(name: str, kind: str, method: str) -> tuple[Setting, ...]:
    """Return the settings a method is measured with on a set, one or several."""
    return SETTINGS.get((name, kind, method), (Setting(),))


def network(name: str, **parameters: object) -> Architecture:
    """Return an architecture of the registry with its parameters."""
    family = ARCHITECTURES[name]
    return family(family.Parameters(**parameters))


def found(*parts: str) -> Path:
    """Return the path of a data file. Raises DataMissing with where it was looked for."""
    path = DATA_DIR.joinpath(*parts)
    if not path.exists():
        raise DataMissing(f"{'/'.join(parts)} is not in {DATA_DIR}; set LETHE_DATA_DIR to the folder that holds {parts[0]}/")
    return path


def named(prefix: str, count: int) -> tuple[str, ...]:
    """Return record ids."""
    return tuple(f"{prefix}-{row:06}" for row in range(count))


def digits() -> Bench:
    """Return scikit-learn's 1,797 digits: 1,200 to train on, the others held out, as in the studies of the methods."""
    from sklearn.datasets import load_digits

    held = load_digits()
    x = torch.from_numpy(held.images * (255 / 16)).round().to(torch.uint8)[:, None]
    whole = Split(x, torch.from_numpy(held.target).long(), named("digit", len(x)), by_255)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(learning_rate=2e-3, epochs=20, batch_size=64)
    return Bench("digits", whole.take(order[:1200]), whole.take(order[1200:]), network("mlp", outputs=10, inputs=64, hidden=(128, 64)), recipe, 10, 3)


def breast_cancer() -> Bench:
    """Return scikit-learn's breast cancer set: 455 to train on; inputs are scaled inside the network."""
    from sklearn.datasets import load_breast_cancer

    held = load_breast_cancer()
    whole = Split(torch.from_numpy(held.data).float(), torch.from_numpy(held.target).long(), named("patient", len(held.target)))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    net = network("mlp", outputs=2, inputs=30, hidden=(64, 32), input_norm="batch")
    return Bench("breast_cancer", whole.take(order[:455]), whole.take(order[455:]), net, Recipe(epochs=30, batch_size=32), 2, 0)


def idx(path: Path) -> Tensor:
    """Return a gzipped IDX file of bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy())


def handwriting(name: str, forgotten: int) -> Bench:
    """Return MNIST or Fashion-MNIST: 60,000 images to train on, 10,000 held out."""
    parts: list[Split] = []
    for prefix in ("train", "t10k"):
        x, y = (idx(found(name, f"{prefix}-{what}-ubyte.gz")) for what in ("images-idx3", "labels-idx1"))
        parts.append(Split(x[:, None], y.long(), named(prefix, len(y)), by_255))
    recipe = Recipe(learning_rate=1e-3, epochs=20, batch_size=256, schedule="cosine")
    return Bench(
        name, parts[0], parts[1], network("tiny_cnn", outputs=10, channels=1, width=16, norm="none"), recipe, 10, forgotten, SHORT_RELEARNING
    )


def cifar10() -> Bench:
    """Return the class-balanced subset of CIFAR-10: 20,000 images to train on, 9,600 held out."""
    from PIL import Image

    parts: list[Split] = []
    for part in ("train", "test"):
        pixels, labels = [], []
        for label, name in enumerate(CIFAR_CLASSES):
            sheet = np.array(Image.open(found("cifar10", f"{part}_{label}_{name}.webp")).convert("RGB"))
            images = sheet.reshape(-1, *CIFAR_GRID).swapaxes(1, 2).reshape(-1, 32, 32, 3)
            pixels.append(torch.from_numpy(images).permute(0, 3, 1, 2))
            labels.append(torch.full((len(images),), label))
        y = torch.cat(labels)
        parts.append(Split(torch.cat(pixels).contiguous(), y, named(part, len(y)), by_255))
    big = torch.cuda.is_available()
    net = network("cifar_resnet18", outputs=10) if big else network("all_cnn", outputs=10)
    recipe = Recipe(
        optimizer="sgd", learning_rate=0.05, epochs=30 if big else 20, batch_size=128, weight_decay=5e-4, schedule="cosine", augmentation="flip_crop"
    )
    return Bench("cifar10", parts[0], parts[1], net, recipe, 10, 5, SHORT_RELEARNING)


NUMERIC = {"age": (0, 100), "education_num": (0, 16), "capital_gain": (0, 100_000), "capital_loss": (0, 5_000), "hours_per_week": (0, 100)}
ADULT = (
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race", "sex", "capital_gain",
    "capital_loss", "hours_per_week", "native_country", "label",
)  # fmt: skip


def adult() -> Bench:
    """Return Adult: 32,561 to train on, 16,281 held out; numbers are scaled by public ranges, a missing name is the name `?`."""
    import csv

    tables: list[dict[str, np.ndarray]] = []
    for part in ("train", "test"):
        lines = csv.reader(found("tabular", f"adult-{part}.csv").read_text().splitlines())
        rows = [[cell.strip().rstrip(".") for cell in row] for row in lines if len(row) == len(ADULT)]
        tables.append({name: np.array([row[place] for row in rows], dtype=object) for place, name in enumerate(ADULT)})
    for table in tables:
        for name in NUMERIC:
            table[name] = table[name].astype(np.float64)
    names = [name for name in ADULT if name not in NUMERIC and name not in {"fnlwgt", "label"}]
    adapter = Tabular(
        Tabular.Parameters.model_validate(
            {
                "classes": ["<=50K", ">50K"],
                "numeric": [{"name": name, "mean": (low + high) / 2, "std": (high - low) / 2} for name, (low, high) in NUMERIC.items()],
                "categorical": [{"name": name, "values": sorted({str(v) for table in tables for v in table[name].tolist()})} for name in names],
            }
        )
    )
    parts = [Split(*adapter.decode(table), named(part, len(table["label"]))) for part, table in zip(("train", "test"), tables, strict=True)]
    net = network("mlp", outputs=2, inputs=int(parts[0].x.shape[1]), hidden=(128, 64))
    return Bench("adult", parts[0], parts[1], net, Recipe(epochs=10, batch_size=256), 2, 1)


def banking77() -> Bench:
    """Return Banking77: 10,003 customer questions of 77 intents to train on, 3,080 held out."""
    import csv

    tables: list[dict[str, np.ndarray]] = []
    for part in ("train", "test"):
        rows = list(csv.DictReader(found("text", f"banking77_{part}.csv").read_text().splitlines()))
        tables.append(
            {
                "text": np.array([row["text"] for row in rows], dtype=object),
                "label": np.array([row["category"] for row in rows], dtype=object),
            }
        )
    classes = sorted(set(tables[0]["label"].tolist()))
    adapter = Text(Text.Parameters(classes=tuple(classes), max_length=32))
    parts = [Split(*adapter.decode(table), named(part, len(table["label"]))) for part, table in zip(("train", "test"), tables, strict=True)]
    net = network("text_transformer", outputs=len(classes), vocab_size=8192, max_length=32, width=64)
    return Bench("banking77", parts[0], parts[1], net, Recipe(epochs=20, batch_size=128), len(classes), 5)


SETS: dict[str, Callable[[], Bench]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "fashion_mnist": lambda: handwriting("fashion_mnist", 6),
    "mnist": lambda: handwriting("mnist", 3),
    "cifar10": cifar10,
    "adult": adult,
    "banking77": banking77,
}
TINY_RECIPE = Recipe(learning_rate=2e-3, epochs=20, batch_size=128, schedule="cosine")
PARITY = Setting(
    {"incompetent": "random_init", "lr": 1e-4, "epochs": 1, "batch_size": 256, "min_steps": 0}, "the released settings, for comparison", "parity"
)
# Settings that differ from the defaults, by set, kind of request and method. Those of the digits were tried on the analysis split of seeds 11 to 13.
# All seeds cut the same held-out records, so that many of those are judged on in other seeds: the choice is not independent of the table.
SETTINGS: dict[tuple[str, str, str], tuple[Setting, ...]] = {
    ("digits", "class", "bad_teacher"): (
        Setting(
            {"retain_fraction": 1.0, "epochs": 10}, "30 % of 1,200 records would be 36 a class; ten passes over all are 190 steps, the least is 150"
        ),
    ),
    ("digits", "class", "concept_poisoning"): (
        Setting(
            {"lr": 0.01, "max_epochs": 10, "retain_floor": 1.0}, "the study's ten passes at 0.01; the floor lets no pass but the last end it early"
        ),
    ),
    ("digits", "class", "unsir"): (Setting({"epochs_repair": 10}, "the study's ten passes of repair; about five with the default"),),
    ("digits", "class", "lra_npp"): (Setting({"k": 24}, "three eighths of the 64 features, as the method's study measured on these digits"),),
    ("fashion_mnist", "class", "bad_teacher"): (Setting(), PARITY),
    ("fashion_mnist", "class", "lra_npp"): (
        Setting(),
        Setting({"scope": "path", "every_layer": True}, "paths through every layer; no one linear layer makes the head's features here", "path"),
    ),
    ("cifar10", "class", "unsir"): (
        Setting(),
        Setting(
            {"retain_per_class": 500, "epochs_repair": 10, "lr_repair": 5e-4},
            "ten gentler passes of repair; tried on the analysis split of seed 11",
            "long",
        ),
    ),
    ("mnist", "class", "gkt"): (
        Setting(
            {"beta_attention": 0.0, "gate_eps": 0.001, "stop_rule": "operator_eval"}, "a network of under 100,000 weights needs no attention term"
        ),
    ),
}
