"""Forgetting of real-valued targets: what is validated on, draws from the global distribution of targets, and what a blindspot model says instead.

Source: Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from services.errors import InvalidInput, ParameterOutOfRange, UnsupportedTask
from services.learning.data import Batch, Split, Splits
from services.learning.modes import evaluating
from services.learning.real_valued import RealValued
from services.learning.targets import Loss
from services.learning.task import Task
from services.unlearning.mechanisms.attention import blocks, row_differences, sequence_layers, tapped
from services.unlearning.mechanisms.relabelling import Joined

TWO_PEAKS = 0.6


def scored_by(method: str, task: Task, loss: Loss | None) -> RealValued:
    """Return the task scored by `loss`, None for its own. Raises UnsupportedTask without real-valued targets, ParameterOutOfRange for another loss."""
    if not isinstance(task, RealValued):
        raise UnsupportedTask(component=method, task=task.name, tasks="forecasting, regression")
    try:
        return task.with_loss(loss)
    except InvalidInput as error:
        raise ParameterOutOfRange(name="loss", detail=f"{loss} does not fit a model that was trained with {task.scale.loss}") from error


def retain_validation(data: Splits, otherwise: Split) -> Split:
    """Return the analysis rows that are like none of the forgotten; `otherwise`, rows of the retain set, where there are none."""
    kept = data.kept_analysis()
    return kept if len(kept) else otherwise


class Spread(NamedTuple):
    """Mean and sample standard deviation of targets."""

    mean: float
    std: float


def spread_of(*targets: Tensor) -> Spread:
    """Return the mean of all targets and their standard deviation with n - 1 below the line, in float64; 0 for one target alone."""
    whole = torch.cat([part.detach().cpu().double().flatten() for part in targets])
    return Spread(float(whole.mean()), float(whole.std(correction=1)) if len(whole) > 1 else 0.0)


def two_peaks(targets: Tensor) -> bool:
    """Return whether targets are clearly of several peaks: Sarle's coefficient (skewness squared + 1) / kurtosis above .6; a normal has 1/3."""
    values = targets.detach().cpu().double().flatten()
    centred = values - values.mean()
    variance = float(centred.square().mean())
    if variance == 0:
        return False
    skewness = float(centred.pow(3).mean()) / variance**1.5
    return (skewness**2 + 1) / (float(centred.pow(4).mean()) / variance**2) > TWO_PEAKS


def random_targets(like: Tensor, spread: Spread, generator: torch.Generator, *, clip: tuple[float, float] | None) -> Tensor:
    """Return a normal draw for each of the targets `like`, of its shape and dtype, held to `clip` where that is given."""
    drawn = spread.mean + spread.std * torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return (drawn if clip is None else drawn.clamp(*clip)).to(like)


def taps_of(model: nn.Module, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the modules whose attention is compared: those asked for, else all convolutional blocks and sequence layers, of which there may be none.

    Raises:
        ParameterOutOfRange: the model has no module of that name.
    """
    if asked is None:
        return blocks(model) + sequence_layers(model)
    known = dict(model.named_modules())
    missing = [name for name in asked if name not in known or name == ""]
    if missing:
        raise ParameterOutOfRange(name="taps", detail=f"the model has no module {', '.join(missing)}")
    return tuple(asked)


class Answers(NamedTuple):
    """What a model says of each row: outputs (n, H, Q) in scaled units, and the attention maps of its taps, (n, h * w) each."""

    outputs: Tensor
    maps: tuple[Tensor, ...]


def answers(model: nn.Module, split: Split, task: RealValued, taps: Sequence[str], *, batch_size: int) -> Answers:
    """Return the answers of `model` on every row in order, in eval mode, without gradients."""
    outputs: list[Tensor] = []
    maps: list[list[Tensor]] = []
    with evaluating(model), torch.no_grad():
        for batch in split.batches(batch_size):
            with tapped(model, taps) as seen:
                outputs.append(task.outputs_of(model, batch.x))
            maps.append(list(seen))
    return Answers(torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(*maps, strict=True)))


@dataclass(frozen=True, slots=True)
class BlindLesson:
    """Forget rows (0 to n_f - 1) with the answers of a blindspot model, then retain rows with their true targets.

    The loss of a batch is k L_f + (1 - k) L_r, k being the share of forget rows in it: the mean over its rows of the base loss, and beta times the
    difference of attention maps on forget rows. Rows of the other kind weigh nothing, so that shapes never change. `unit` divides
    predictions and targets alike.
    """

    rows: Joined
    blind: Answers
    task: RealValued
    taps: tuple[str, ...]
    beta: float
    unit: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)

    def loss(self, model: nn.Module, index: Tensor) -> Tensor:
        """Return the loss of `model` on the rows of `index` (B,) on the CPU, a scalar."""
        edge = len(self.rows.first)
        ordered = torch.cat([index[index < edge], index[index >= edge]])
        batch: Batch = self.rows.batch(ordered)
        forgotten = (ordered < edge).to(batch.x.device)
        place = ordered.clamp(max=max(edge - 1, 0)).to(batch.x.device)
        with tapped(model, self.taps if edge else ()) as seen:
            predicted = self.task.outputs_of(model, batch.x)
        wanted = self.task.wanted(batch.y).expand_as(predicted)
        if edge:
            wanted = torch.where(forgotten[:, None, None], self.blind.outputs[place], wanted)
        loss = self.task.scored(predicted / self.unit, wanted / self.unit)
        for own, other in zip(seen, self.blind.maps if self.taps and edge else (), strict=True):
            loss = loss + self.beta * forgotten * row_differences(own, other[place])
        return loss.mean()
