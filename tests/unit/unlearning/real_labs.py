"""Small trained regression networks and their data: the angle by which a digit was turned, a table, a series."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from services.learning.architecture import Architecture
from services.learning.architectures.lstm import LSTM
from services.learning.architectures.mlp import MLP
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import Span, Split, Splits, by_255
from services.learning.real_valued import RealValued
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.targets import Targets
from services.learning.tasks.forecasting import Forecasting
from services.learning.tasks.regression import Regression
from services.learning.training import fit

torch.set_num_threads(1)


@dataclass(frozen=True)
class RealLab:
    """A trained network with real-valued targets; `below` is the range that a request forgets."""

    architecture: Architecture
    recipe: Recipe
    task: RealValued
    train: Split
    held_out: Split
    original: nn.Module
    below: float

    def splits(self) -> Splits:
        """The parts of a range request; the held-out rows stand in for all three roles."""
        span = Span(below=self.below)
        forget, retain = self.train.within(span, keep=True), self.train.within(span, keep=False)
        return Splits(forget, retain, self.held_out, self.held_out, self.held_out, span=span)

    def run(self, seed: int = 1, **given: object) -> Run:
        """A run with the network's architecture and recipe."""
        return Run(seed=seed, architecture=self.architecture, recipe=self.recipe, **given)

    def copy(self) -> nn.Module:
        """The runner's copy of the original."""
        return copy.deepcopy(self.original)

    def trained(self, split: Split, seed: int) -> nn.Module:
        """A network trained on `split` by the recipe."""
        run = self.run(seed=seed)
        model = run.fresh_model("weights")
        fit(model, split, self.task, self.recipe, run)
        return model.eval()

    def error(self, model: nn.Module, split: Split) -> float:
        """The mean absolute error, in the units of the targets."""
        points = self.task.points(self.task.predict(model, split))
        return float((points.view_as(split.y) - split.y).abs().mean())


def lab_of(architecture: Architecture, recipe: Recipe, task: RealValued, whole: Split, train_rows: int, below: float) -> RealLab:
    """Train the original and return the lab around it."""
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    train, held_out = whole.take(order[:train_rows]), whole.take(order[train_rows:])
    lab = RealLab(architecture, recipe, task, train, held_out, nn.Identity(), below)
    return RealLab(architecture, recipe, task, train, held_out, lab.trained(train, 7), below)


def split_of(x: Tensor, y: Tensor, **more: object) -> Split:
    """A split with made-up ids."""
    return Split(x, y.float(), tuple(f"r{row:05d}" for row in range(len(y))), **more)


@cache
def angles(rows: int = 1797, width: int = 8, epochs: int = 30) -> RealLab:
    """Digits turned by 0 to 90 degrees; the network tells the angle. Angles below 30 are to be forgotten."""
    images = torch.from_numpy(load_digits().images[:rows]).float()[:, None] * (255 / 16)
    degrees = torch.rand(len(images), generator=torch.Generator().manual_seed(3)) * 90
    cos, sin, zero = degrees.deg2rad().cos(), degrees.deg2rad().sin(), torch.zeros(len(degrees))
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    turned = grid_sample(images, affine_grid(turn, list(images.shape), align_corners=False), align_corners=False)
    whole = split_of(turned.round().clamp(0, 255).to(torch.uint8), degrees, prepare=by_255)
    recipe = Recipe(learning_rate=3e-3, epochs=epochs, batch_size=64, schedule="cosine", targets=Targets(loss="l1", mean=45, std=45))
    architecture = TinyCNN(TinyCNN.Parameters(outputs=1, width=width))
    return lab_of(architecture, recipe, Regression.of(1, recipe), whole, rows * 2 // 3, 30.0)


@cache
def table(epochs: int = 20) -> RealLab:
    """Four numbers and a smooth function of them, told by a perceptron. Targets below -1 are to be forgotten."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=generator)
    y = x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.1 * torch.randn(600, generator=generator)
    recipe = Recipe(learning_rate=5e-3, epochs=epochs, batch_size=32)
    return lab_of(MLP(MLP.Parameters(outputs=1, inputs=4, hidden=(32,))), recipe, Regression(1), split_of(x, y), 400, -1.0)


@cache
def waves(epochs: int = 8) -> RealLab:
    """Sines of changing height, two steps ahead by quantiles from an LSTM. Windows whose next steps are below -0.5 are to be forgotten."""
    time = torch.arange(420.0)
    wave = torch.sin(time * 0.3) * (1 + 0.3 * torch.sin(time * 0.02))
    starts = range(12, 412)
    x, y = torch.stack([wave[at - 12 : at] for at in starts])[..., None], torch.stack([wave[at : at + 2] for at in starts])
    recipe = Recipe(learning_rate=1e-2, epochs=epochs, batch_size=32)
    return lab_of(LSTM(LSTM.Parameters(outputs=6, inputs=1, width=12, hidden=8)), recipe, Forecasting(6), split_of(x, y), 300, -0.5)


@cache
def values(rows: int = 1200, width: int = 8, epochs: int = 10) -> RealLab:
    """Digits, each worth ten times what it says, give or take; the network tells the worth. Worths below 15 (0 and 1) are to be forgotten."""
    held = load_digits()
    images = torch.from_numpy(held.images[:rows] * (255 / 16)).round().to(torch.uint8)[:, None]
    worth = 10.0 * torch.from_numpy(held.target[:rows]) + 2 * torch.randn(rows, generator=torch.Generator().manual_seed(4))
    recipe = Recipe(learning_rate=3e-3, epochs=epochs, batch_size=64, schedule="cosine", targets=Targets(loss="l1", mean=45, std=30))
    architecture = TinyCNN(TinyCNN.Parameters(outputs=1, width=width))
    return lab_of(architecture, recipe, Regression.of(1, recipe), split_of(images, worth, prepare=by_255), rows * 2 // 3, 15.0)


@cache
def retrained_values(seed: int) -> nn.Module:
    """A network trained on the worths that stay."""
    lab = values()
    return lab.trained(lab.splits().retain, seed)
