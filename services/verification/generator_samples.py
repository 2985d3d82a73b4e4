"""Samples of a generator under the eyes of a classifier that neither the generator nor the method that edited it ever saw."""

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Split, Splits
from services.learning.gan import GAN, as_gan, draw, images_of
from services.learning.judge import Judge, Seen, train_judge
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import Metric
from services.verification.outputs import by_id, joined, rows_of
from services.verification.reading import Unmeasured

JUDGE_RECORDS = 30_000
MOST_EPOCHS = 20
JUDGE_WIDTH = 16
CLASS_REQUESTS = Unmeasured("class_requests_only")
RECORD_REQUESTS = Unmeasured("record_requests_only")
NO_SAMPLES = Unmeasured("too_few_samples_of_retained_classes")

_judges: WeakKeyDictionary[Run, Judge] = WeakKeyDictionary()
_found: WeakKeyDictionary[Run, dict[Hashable, tuple[nn.Module, Any]]] = WeakKeyDictionary()
T = TypeVar("T")


class SampleParameters(Metric.Parameters):
    """Parameters of a metric on samples."""

    samples: int = Field(2000, ge=100, le=100_000, description="Images drawn from the generator.")


def judge_of(data: Splits, task: Task, run: Run) -> Judge | Unmeasured:
    """Return the classifier of all training records, trained once for each run; unmeasured where there are none to train on."""
    found = _judges.get(run)
    if found is None:
        rows = by_id(joined(data.forget, data.retain))
        if len(rows) == 0:
            return Unmeasured("no_records")
        epochs = min(MOST_EPOCHS, max(2, math.ceil(JUDGE_RECORDS / len(rows))))
        found = _judges[run] = train_judge(rows, task.outputs, run, "evaluate/judge", epochs=epochs, width=JUDGE_WIDTH)
    return found


def remembered(run: Run, model: nn.Module, data: Splits, rows: Split, key: tuple[Hashable, ...], compute: Callable[[], T]) -> T:
    """Return what `compute` found of `model` on `rows` under `key` earlier in this run, or finds now: a model is looked at once for all columns.

    The model is held, so that its identity is not reused while the run lives.
    """
    held = _found.setdefault(run, {})
    whole = (*key, id(model), data.classes, data.forget.ids, rows.ids)
    if whole not in held:
        held[whole] = (model, compute())
    found: T = held[whole][1]
    return found


def sampled(model: nn.Module, data: Splits, run: Run, count: int, *, retained_only: bool) -> tuple[Tensor, Tensor | None]:
    """Return `count` images (n, ch, H, W) of latents that depend on the run's seed alone, and their labels (n,) where the network takes labels.

    With `retained_only` a conditional network is asked for no class of the request.
    """
    gan: GAN = as_gan(model)
    classes = tuple(label for label in range(gan.classes) if not (retained_only and label in data.classes))
    draws = draw(gan, count, run.stream("evaluate/latents"), run.device, classes=classes)
    return images_of(gan, draws), draws.y


def kept(seen: Seen, data: Splits) -> Tensor:
    """Return which samples, (n,) bool, the judge calls none of the forgotten classes."""
    return ~torch.isin(seen.classes, torch.tensor(data.classes, dtype=torch.int64))


def features_beside(model: nn.Module, data: Splits, task: Task, run: Run, count: int, split: str) -> tuple[Tensor, Tensor] | Unmeasured:
    """Return the judge's features of the real records of `split` and of the samples of retained classes, (n, d) and (m, d) float64."""
    rows = rows_of(data, split)
    if isinstance(rows, Unmeasured):
        return rows
    judge = judge_of(data, task, run)
    if isinstance(judge, Unmeasured):
        return judge
    seen = judge.look(sampled(model, data, run, count, retained_only=True)[0])
    made = seen.features[kept(seen, data)].double()
    real = judge.look_at_records(by_id(rows)).features.double()
    return (real, made) if min(len(real), len(made)) > 1 else NO_SAMPLES


def flat(rows: Split) -> Tensor:
    """Return the images of `rows` as the model takes them, one row each, (n, values)."""
    return rows.batch(torch.arange(len(rows))).x.flatten(1)


class FeaturesAsTheyAre(nn.Module):
    """What torchmetrics takes for a network of features: here the images are features (n, `num_features`) already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x
