"""Certified removal from a linear head: one Newton step takes records out, within a budget that a random linear term in training has opened.

Source: Guo et al., "Certified Data Removal from Machine Learning Models", ICML 2020 (arXiv 1911.03030).
Differs: the regulariser counts the rows that remain, so each removed row takes its share of it along; what rounding the head to its own precision
adds to the gradient is spent from the budget; a head whose ledger is missing, does not fit, or is used up is trained again on the rows that
remain. The certificate covers the head: what the layers below learned is not touched. Whoever knows the seed of a training knows its random term:
the certificate holds against those who do not.
"""

from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import nn

from services.drift import Spend
from services.errors import Diverged, NonFinite, ParameterOutOfRange
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.convex_head import (
    Head,
    Logistic,
    gradient,
    gradient_left,
    read_head,
    remove_rows,
    spectral_norm,
    train_head,
    write_head,
)
from services.unlearning.mechanisms.drift_ledger import CertifiedLedger
from services.unlearning.mechanisms.fingerprint import fingerprint
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod

LOSS = Logistic()
NOTE = "ledger"


@METHODS.register("certified_removal")
class CertifiedRemoval(UnlearningMethod):
    """Take records out of a linear head by a Newton step within a certified budget, else train the head again without them."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"records"})
    guarantee = "certified"  # a run without a budget lowers it, and so do layers below the head that nobody vouches for
    guarantees = frozenset({"certified", "approximate", "suppression"})
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=1.0, per_retain=1.0)
    retries = 0  # there is no rate to lower

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `certified_removal`. Without epsilon and delta there is no budget, and the head is trained again each time.

        Neither has a number for default: a budget that nobody chose would be a promise that nobody made. Neither is required, because the router asks
        for a method without parameters, and training the head again then needs none.
        """

        epsilon: float | None = Field(None, gt=0, le=100, description="Epsilon of the certificate; null: no budget, the head is trained again.")
        delta: float | None = Field(None, gt=0, le=0.1, description="Delta of the certificate; null: no budget, the head is trained again.")
        l2: float = Field(1e-3, ge=1e-8, le=10, description="Lambda: weight of the regulariser per row, when the head is trained.")
        noise: float = Field(10.0, ge=0, le=1000, description="Deviation s of the random linear term, when the head is trained.")
        feature_bound: float | None = Field(
            None, gt=0, le=1e9, description="Norm by which rows are divided; null: the next power of two above the longest."
        )
        features: Literal["undeclared", "public", "private_by_design", "retrained"] = Field(
            "undeclared", description="Why the layers below the head hold nothing of the records, in the owner's words to the certificate."
        )
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change the head of `model` in place and return it in eval mode. Raises ParameterOutOfRange for rows longer than `feature_bound`."""
        admit(self, data, task, run)
        if (self.parameters.epsilon is None) != (self.parameters.delta is None):
            raise ParameterOutOfRange(name="epsilon", detail="epsilon and delta are given together, or neither")
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="head")
        head = self._head(model, data, run)

        def attempt(_: float) -> None:
            try:
                self._take_out(model, head, data, task, run)
            except (NonFinite, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
                raise Diverged(method=self.name, stage=edit.stage, detail=str(error)) from error

        return edit.carry_out(attempt, ended_by=None)

    def _head(self, model: nn.Module, data: Splits, run: Run) -> Head:
        if run.architecture is None:
            raise refuse(self, data, "the model version names no architecture, so its head is not known")
        layer = model.get_submodule(run.architecture.head)
        if not isinstance(layer, nn.Linear):
            raise refuse(self, data, "the head of the network is not linear")
        below = sum(1 for _ in model.parameters()) - sum(1 for _ in layer.parameters())
        run.note("covers", {"head": run.architecture.head, "tensors_below": below, "features": self.parameters.features if below else "none"})
        return Head.of(model, layer, data.retain, data.forget)

    def _take_out(self, model: nn.Module, head: Head, data: Splits, task: Task, run: Run) -> None:
        state: dict[str, Any] = dict(run.inherited.get(NOTE) or {})
        why = self._unfit(state, fingerprint(model.state_dict(), (*data.retain.ids, *data.forget.ids)))
        if not why:
            removed = self._step(head, state, task, run)
            if removed is not None:
                self._close(model, removed, state, data, run, basis="newton_step")
                return
            why = "the removal would exceed the budget"
        run.note("trained_again", why)
        ledger, state = self._train(head, self._opened(state), task, run)
        self._close(model, ledger, state, data, run, basis="head_trained_again")

    def _unfit(self, state: dict[str, Any], found: str) -> str:
        """Return why the inherited ledger does not serve, or nothing."""
        if not state:
            return "no ledger came with the model"
        if state["budget"] is None:
            return "the head was trained without a random term, so it has no budget"
        return "" if state["fingerprint"] == found else "the weights or the records are not those that the ledger is about"

    def _ledger(self, state: dict[str, Any]) -> CertifiedLedger:
        """Return the inherited ledger, under the stricter of its epsilon and delta and the request's."""
        ledger, p = CertifiedLedger(noise=0.0, epsilon=1.0, delta=0.1), self.parameters
        ledger.load_state_dict(state["budget"])
        ledger.epsilon = min(ledger.epsilon, p.epsilon or ledger.epsilon)
        ledger.delta = min(ledger.delta, p.delta or ledger.delta)
        return ledger

    def _step(self, head: Head, state: dict[str, Any], task: Task, run: Run) -> CertifiedLedger | None:
        """Remove the rows by Newton steps and return the ledger after it, or None, with the head as it was, where the budget does not hold."""
        ledger, l2, scale = self._ledger(state), float(state["l2"]), float(state["scale"])
        stay, gone = head.staying(scale, task.outputs), head.going(scale, task.outputs)
        before, norm, moved, bound = read_head(head.layer, scale), spectral_norm(stay.x), [], 0.0
        for number in range(task.outputs):
            removal = remove_rows(before[number], stay, gone, number, LOSS, l2=l2, norm=norm)
            moved.append(removal.w)
            bound += removal.bound
            run.report(number + 1, task.outputs, stage="remove", loss=removal.bound)
        write_head(head.layer, torch.stack(moved), scale)
        exact = torch.stack([gradient(w, stay.x, t, LOSS, l2=l2) for w, t in zip(moved, stay.t, strict=True)])
        rounding = float((gradient_left(head.layer, stay, LOSS, l2=l2, scale=scale) - exact).norm(dim=1).sum())
        spent = Spend(state["fingerprint"][:16], {"bound": bound, "rounding": rounding})
        if not ledger.affords(spent):
            run.note("would_have_spent", dict(spent.amounts))
            write_head(head.layer, before, scale)
            return None
        ledger.step(spent)
        run.note("spent", dict(spent.amounts))
        run.note("steps", {"remove": task.outputs})
        return ledger

    def _opened(self, state: dict[str, Any]) -> CertifiedLedger | None:
        """Return an empty ledger under the request's epsilon and delta, else those of the ledger that ended; None where there are neither."""
        p = self.parameters
        if p.epsilon and p.delta:
            return CertifiedLedger(noise=p.noise, epsilon=p.epsilon, delta=p.delta) if p.noise else None
        if not state.get("budget"):
            return None
        ended = self._ledger(state)
        return CertifiedLedger(noise=ended.noise, epsilon=ended.epsilon, delta=ended.delta)

    def _train(self, head: Head, ledger: CertifiedLedger | None, task: Task, run: Run) -> tuple[CertifiedLedger | None, dict[str, Any]]:
        """Train the head on the remaining rows; return its ledger and what a later step needs to know."""
        p = self.parameters
        scale = head.scale(p.feature_bound)
        stay = head.staying(scale, task.outputs)
        random = torch.randn((task.outputs, stay.x.shape[1]), generator=run.stream("objective"), dtype=torch.float64).to(run.device)
        random *= ledger.noise if ledger is not None else 0.0
        solved, taken = [], 0
        for number in range(task.outputs):
            w, steps = train_head(stay.x, stay.t[number], LOSS, l2=p.l2, linear=random[number])
            solved.append(w)
            taken += steps
            run.report(number + 1, task.outputs, stage="train", loss=LOSS.value(stay.x @ w, stay.t[number]).mean())
        write_head(head.layer, torch.stack(solved), scale)
        run.note("steps", {"newton": taken})
        if ledger is not None:
            left = gradient_left(head.layer, stay, LOSS, l2=p.l2, scale=scale, linear=random)
            ledger.spent = {"training": float(left.norm(dim=1).sum())}
        return ledger, {"l2": p.l2, "scale": scale}

    def _close(self, model: nn.Module, ledger: CertifiedLedger | None, state: dict[str, Any], data: Splits, run: Run, *, basis: str) -> None:
        """Note the ledger that the new version carries, and what may be certified of it."""
        kept = {"l2": state["l2"], "scale": state["scale"], "fingerprint": fingerprint(model.state_dict(), data.retain.ids)}
        run.note(NOTE, {**kept, "budget": None if ledger is None else ledger.state_dict()})
        told: dict[str, object] = {}
        covers = cast("dict[str, Any]", run.notes["covers"])
        vouched = covers["features"] != "undeclared"
        run.note("guarantee", "suppression" if not vouched else "approximate" if ledger is None else "certified")
        if ledger is not None:
            told = {"epsilon": ledger.epsilon, "delta": ledger.delta, "remaining": ledger.remaining(), "removals": len(ledger)}
            told["holds_against"] = "whoever does not know the seed of the run"
        run.note("certificate", {"covers": "head only", "features": self.parameters.features, "basis": basis, **told})
