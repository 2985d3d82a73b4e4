"""What a method without training data must still know: the shape of a record, and that something is left to keep."""

import torch
from torch import nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import real_record, refuse
from services.unlearning.method import UnlearningMethod

PROBES = 8


def record_shape(method: UnlearningMethod, data: Splits, given: tuple[int, ...] | None) -> torch.Size:
    """Return the shape of one record as the model takes it: `given`, else that of any part of `data`, of which no record need be held.

    Raises:
        MethodNotApplicable: no part tells a shape and none is given, or records are tokens.
    """
    if given is not None:
        return torch.Size(given)
    for split in (data.analysis, data.retain, data.forget):
        if split.x.ndim < 2:
            continue
        return real_record(method, data, split, "it makes")
    raise refuse(method, data, "no data are held and the shape of a record is not given; give `record_shape`")


def kept_classes(method: UnlearningMethod, data: Splits, task: Task) -> tuple[int, ...]:
    """Return the classes that stay, ascending. Raises MethodNotApplicable where none is forgotten, none stays, or the model knows no such class."""
    if not data.classes:
        raise refuse(method, data, "the request names no class")
    if not all(0 <= each < task.outputs for each in data.classes):
        raise refuse(method, data, f"the model knows classes 0 to {task.outputs - 1} only")
    kept = tuple(each for each in range(task.outputs) if each not in data.classes)
    if not kept:
        raise refuse(method, data, "no class would be left to keep")
    return kept


def require_finite(method: str, model: nn.Module, record: torch.Size, run: Run) -> None:
    """Raise Diverged when the original's outputs on random records of the shape `record` are not finite: nothing could be learned from them."""
    rows = torch.randn((PROBES, *record), generator=run.stream("finite")).to(run.device)
    with evaluating(model), torch.no_grad():
        finite = bool(torch.isfinite(model(rows)).all())
    if not finite:
        raise Diverged(method=method, stage="before", detail="the original's outputs are not finite")
