"""What a method refuses before it starts: another task, another kind of request, a set it needs and was not given."""

import torch

from services.errors import InvalidInput, MethodNotApplicable, UnsupportedTask
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.method import METHODS, UnlearningMethod


def others(method: UnlearningMethod, kind: str) -> str:
    """Return the names of the other methods that serve a request of `kind`, for the message."""
    able = [name for name in METHODS if name != method.name and kind in METHODS[name].granularities]
    return ", ".join(able) or "none"


def refuse(method: UnlearningMethod, data: Splits, detail: str) -> MethodNotApplicable:
    """Return the error that says why `method` cannot serve this request, and which methods could."""
    return MethodNotApplicable(method=method.name, detail=detail, could=others(method, data.kind))


def real_record(method: UnlearningMethod, data: Splits, split: Split, needing: str) -> torch.Size:
    """Return the shape of one record of `split` as the model takes it, of which none need be held. Raises MethodNotApplicable: it is no real numbers."""
    x = split.batch(torch.zeros(0, dtype=torch.int64)).x
    if not x.is_floating_point():
        raise refuse(method, data, f"{needing} records of real numbers, and these are tokens")
    return x.shape[1:]


def admit(method: UnlearningMethod, data: Splits, task: Task, run: Run) -> None:
    """Check that `method` fits task, request and data.

    Raises:
        UnsupportedTask: the task is not one of the method's. MethodNotApplicable: the kind of request is not, the original's recipe or
        architecture is missing, or the forget set is. InvalidInput: there is no retain record.
    """
    if task.name not in method.tasks:
        raise UnsupportedTask(component=method.name, task=task.name, tasks=", ".join(sorted(method.tasks)))
    if data.kind not in method.granularities:
        raise refuse(method, data, f"it does not serve {data.kind} requests")
    if method.needs.recipe and run.recipe is None:
        raise refuse(method, data, "the model version keeps no training recipe, so it cannot be trained again as it was")
    if method.needs.recipe and run.architecture is None:
        raise refuse(method, data, "the model version names no architecture to build afresh")
    if method.needs.forget_set and len(data.forget) == 0:
        raise refuse(method, data, "it needs the records to be forgotten, and they are no longer held")
    if method.needs.retain_set and len(data.retain) == 0:
        raise InvalidInput(detail="no record is left to keep")
