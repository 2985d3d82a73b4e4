import math

import pytest
import torch
from sklearn.datasets import load_digits

from services.errors import Cancelled, DeadlineExceeded, InvalidInput, NonFinite
from services.learning.architectures.mlp import MLP
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import Split, by_255
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import batch_sizes, fit, flip_crop, optimizer_for, rate_at

torch.set_num_threads(1)


def digits() -> tuple[Split, Split]:
    sets = load_digits()
    x = torch.from_numpy(sets.images * (255 / 16)).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(sets.target)
    whole = Split(x, y, tuple(f"digit-{row}" for row in range(len(y))), by_255)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return whole.take(order[:1400]), whole.take(order[1400:])


def accuracy(model, task, split) -> float:
    return float((task.predict(model, split).argmax(1) == split.y).double().mean())


def blobs(count: int = 64) -> Split:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(count) % 2
    x = torch.randn(count, 4, generator=generator) + 3.0 * y[:, None]
    return Split(x, y, tuple(str(row) for row in range(count)))


def test_tiny_cnn_learns_digits():
    train, test = digits()
    task = Classification(10)
    model = TinyCNN(TinyCNN.Parameters(outputs=10)).fresh(1)
    fit(model, train, task, Recipe(epochs=4, batch_size=64, learning_rate=2e-3), Run(seed=1))
    assert accuracy(model, task, test) > 0.95


def test_mlp_learns_digits():
    train, test = digits()
    task = Classification(10)
    model = MLP(MLP.Parameters(outputs=10, inputs=64)).fresh(1)
    fit(model, train, task, Recipe(epochs=20, batch_size=64), Run(seed=1))
    assert accuracy(model, task, test) > 0.95
