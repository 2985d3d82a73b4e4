"""An edit under the guard: what it notes, that a method says how often it tries, and that a failed edit leaves the original."""

import copy

import pytest
import torch
from torch import nn

from services.errors import Diverged
from services.learning.data import Split
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")

TASK = Classification(3)


def edit_of(model: nn.Module, run: Run, *, retries: int = 1) -> GuardedEdit:
    rows = torch.arange(60)
    probe = Split(nn.functional.one_hot(rows % 3, 3).float(), rows % 3, tuple(str(row) for row in rows.tolist()))
    method = METHODS["l1_sparse"](METHODS["l1_sparse"].Parameters())
    method.retries = retries
    return GuardedEdit.of(method, model, probe, TASK, run, stage="edit")


def sound() -> nn.Module:
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(3))
    return model


def scaled(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        model.weight.mul_(factor)


def test_a_plan_is_noted_beside_the_other_effective_values():
    run = Run(seed=0)

    plan = edit_of(sound(), run).plan(400, teacher="uniform", lr=0.5)

    assert run.notes["effective"] == {"teacher": "uniform", "lr": 0.5, **plan.described()}
    assert run.notes["steps"] == {"edit": plan.steps}


def test_an_attempt_that_the_guard_refuses_is_made_again_at_a_tenth():
    model, run, scales = sound(), Run(seed=0), []
    edit = edit_of(model, run)

    def attempt(scale: float) -> None:
        scales.append(scale)
        scaled(model, -1.0 if scale == 1 else 1.0)

    edit.carry_out(attempt)

    assert scales == [1.0, 0.1]
    assert run.notes["retain_loss"]["after"] == run.notes["retain_loss"]["before"]
    assert [entry["ended_by"] for entry in run.notes["attempts"]] == ["guard", "completed"]
    assert run.notes["ended_by"] == "steps"


def test_a_method_that_does_not_retry_fails_with_the_plain_reason_and_the_original_weights():
    model, run = sound(), Run(seed=0)
    before = copy.deepcopy(model.state_dict())
    edit = edit_of(model, run, retries=0)

    with pytest.raises(Diverged, match=r"diverged at stage edit: retain loss .* limit") as raised:
        edit.carry_out(lambda _: scaled(model, -1.0))

    assert "lr" not in raised.value.facts["detail"]
    assert torch.equal(model.weight, before["weight"])
    assert len(run.notes["attempts"]) == 1


@pytest.mark.parametrize("name", ["certified_removal", "lfssd", "lra_npp", "sisa", "ssd"])
def test_methods_without_a_rate_to_lower_try_once(name):
    assert METHODS[name].retries == 0
