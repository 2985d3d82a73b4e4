"""Small trained networks and data for the methods: digits always, Fashion-MNIST for the soak."""

import copy
import gzip
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from services.learning.architecture import Architecture
from services.learning.architectures.mlp import MLP
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import RequestKind, Split, Splits, by_255
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit

torch.set_num_threads(1)

IMAGES = "train-images-idx3-ubyte.gz"
FILES = (IMAGES, "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def digest(model: nn.Module) -> str:
    """SHA-256 over names, and bytes of parameters and buffers."""
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class Lab:
    """A trained network, its recipe and its data; `work` copies it for a method, `retrained` is the reference."""

    architecture: Architecture
    recipe: Recipe
    task: Classification
    train: Split
    analysis: Split
    test: Split
    original: nn.Module

    def splits(self, kind: RequestKind = "class", *, classes: tuple[int, ...] = (3,), records: int = 60) -> Splits:
        """The parts of a request, as a method sees them."""
        if kind == "class":
            forget, retain = self.train.with_labels(classes, keep=True), self.train.with_labels(classes, keep=False)
        else:
            rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(5))
            forget, retain, classes = self.train.take(rows[:records]), self.train.take(rows[records:]), ()
        return Splits(forget, retain, self.analysis, self.test, self.test, kind, classes).for_method()

    def without_forget(self, **chosen: object) -> Splits:
        """The parts with the forget set withheld."""
        splits = self.splits(**chosen)
        return replace(splits, forget=splits.forget.take(torch.zeros(0, dtype=torch.int64)))

    def run(self, seed: int = 1, **given: object) -> Run:
        """A run with the network's architecture and recipe."""
        return Run(seed=seed, architecture=self.architecture, recipe=self.recipe, **given)

    def copy(self) -> nn.Module:
        """The runner's copy of the original."""
        return copy.deepcopy(self.original)

    def retrained(self, splits: Splits) -> nn.Module:
        """A network trained without the forget set."""
        run = self.run(seed=99)
        model = run.fresh_model("reference")
        fit(model, splits.retain, self.task, self.recipe, run)
        return model

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """The share of rows that `model` gets right."""
        return float((self.task.predict(model, split).argmax(1) == split.y).double().mean())

    def scores(self, model: nn.Module, splits: Splits) -> tuple[float, float, float]:
        """Accuracy on the forget set, on test rows of its classes, and on the other test rows."""
        forgotten = self.test.with_labels(splits.classes, keep=True)
        kept = self.test.with_labels(splits.classes, keep=False)
        return self.accuracy(model, splits.forget), self.accuracy(model, forgotten), self.accuracy(model, kept)


def lab_of(architecture: Architecture, recipe: Recipe, train: Split, analysis: Split, test: Split) -> Lab:
    """Train the original and return the lab around it."""
    task = Classification(10)
    run = Run(seed=7, architecture=architecture, recipe=recipe)
    model = run.fresh_model("original")
    fit(model, train, task, recipe, run)
    return Lab(architecture, recipe, task, train, analysis, test, model.eval())


def digits_lab(architecture: Architecture, *, epochs: int = 20) -> Lab:
    """Digits: 1,200 rows to train on, 200 to analyse, 397 to test on."""
    sets = load_digits()
    x = torch.from_numpy(sets.images * (255 / 16)).round().to(torch.uint8)[:, None]
    whole = Split(x, torch.from_numpy(sets.target), tuple(f"digit-{row}" for row in range(len(x))), by_255)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(learning_rate=2e-3, epochs=epochs, batch_size=64)
    return lab_of(architecture, recipe, whole.take(order[:1200]), whole.take(order[1200:1400]), whole.take(order[1400:]))


@pytest.fixture(scope="session")
def mlp_lab() -> Lab:
    """A multilayer perceptron on digits."""
    return digits_lab(MLP(MLP.Parameters(outputs=10, inputs=64, hidden=(128, 64))))


@pytest.fixture(scope="session")
def cnn_lab() -> Lab:
    """A small CNN with batch norm on digits."""
    return digits_lab(TinyCNN(TinyCNN.Parameters(outputs=10, width=8)), epochs=10)


@pytest.fixture(scope="session")
def plain_cnn_lab() -> Lab:
    """A small CNN without batch norm on digits."""
    return digits_lab(TinyCNN(TinyCNN.Parameters(outputs=10, width=16, norm="none")))


@pytest.fixture
def digest_of() -> Callable[[nn.Module], str]:
    """The digest of a model's bytes."""
    return digest


def idx(path: Path) -> Tensor:
    """Read a gzipped IDX file of bytes."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dimensions)).reshape(dimensions).copy())


@pytest.fixture(scope="session")
def fashion() -> tuple[Split, Split]:
    """Fashion-MNIST, training and test rows; fails, naming the files, where LETHE_DATA_DIR does not hold them."""
    data = Path(os.environ.get("LETHE_DATA_DIR", "data")).resolve()
    home = data / "fashion_mnist"
    missing = [name for name in FILES if not (home / name).is_file()]
    if missing:
        pytest.fail(f"Fashion-MNIST is not in {home}: {', '.join(missing)} missing. Set LETHE_DATA_DIR to the folder that holds fashion_mnist/.")
    parts = []
    for start in (0, 2):
        x, y = idx(home / FILES[start])[:, None], idx(home / FILES[start + 1]).long()
        parts.append(Split(x, y, tuple(f"{FILES[start][:5]}-{row}" for row in range(len(y))), by_255))
    return parts[0], parts[1]


class TwoConvolutions(Architecture):
    """conv16 - conv32 - FC, for 28 x 28 images."""

    name, modality, tasks, head = "two_convolutions", "image", frozenset({"classification"}), "11"

    class Parameters(Architecture.Parameters):
        """Width of the hidden layer, and whether batch norm follows each convolution."""

        hidden: int
        batch_norm: bool = False

    def build(self) -> nn.Module:
        """Return the network."""
        p = self.parameters
        norms = [nn.BatchNorm2d(maps) if p.batch_norm else nn.Identity() for maps in (16, 32)]
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            norms[0],
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            norms[1],
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, p.hidden),
            nn.ReLU(),
            nn.Linear(p.hidden, p.outputs),
        )


@pytest.fixture(scope="session")
def fashion_lab(fashion: tuple[Split, Split]) -> Callable[..., Lab]:
    """Make a lab of so many training rows, hidden units and epochs; 2,000 test rows are the analysis split."""

    def make(rows: int, hidden: int, epochs: int, *, batch_norm: bool = False) -> Lab:
        train, test = fashion
        architecture = TwoConvolutions(TwoConvolutions.Parameters(outputs=10, hidden=hidden, batch_norm=batch_norm))
        recipe = Recipe(learning_rate=1e-3, epochs=epochs, batch_size=64)
        numbers = torch.arange(len(test))
        return lab_of(architecture, recipe, train.take(torch.arange(rows)), test.take(numbers[:2000]), test.take(numbers[2000:]))

    return make
