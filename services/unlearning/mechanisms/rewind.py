"""Rewinding: of the checkpoints of a run, return to the one that forgot just enough. A very high error on the forget set would tell it apart.

Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 (SCRUB+R).
"""

from torch import Tensor, nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.unlearning.mechanisms.accuracy import Matched, predicted
from services.unlearning.mechanisms.guard import snapshot


class Rewind:
    """Keeps the checkpoint whose accuracy on the forget set is nearest that on held-out records of the same classes."""

    def __init__(self, model: nn.Module, forget: Split, held_out: Split, matched: Matched) -> None:
        self.model, self.forget, self.held_out, self.matched = model, forget, held_out, matched
        self.truth = forget.y.cpu()
        self.gap, self.step, self.forget_accuracy, self.held_out_accuracy = float("inf"), 0, 0.0, 0.0
        self.weights: dict[str, Tensor] = {}

    @classmethod
    def matched_to(cls, model: nn.Module, data: Splits, run: Run) -> "Rewind | None":
        """Return the rewind of a request; None, with a note, where the analysis split has no record like those of the forget set."""
        matched = Matched.to(data.forget, data.analysis)
        if matched is None:
            run.note("rewind", "impossible: the analysis split holds no record of a class of the forget set")
            return None
        return cls(model, data.forget, data.analysis, matched)

    def look(self, step: int) -> None:
        """Measure the student after `step`, and keep it when it is nearest so far."""
        forgotten = float((predicted(self.model, self.forget) == self.truth).double().mean())
        self.consider(step, forgotten, self.matched.accuracy(predicted(self.model, self.held_out)))

    def consider(self, step: int, forgotten: float, expected: float) -> None:
        """Keep the student when its accuracies are nearer than those of every one before, or as near with fewer held-out errors."""
        gap = abs(forgotten - expected)
        if (gap, -expected) < (self.gap, -self.held_out_accuracy) or not self.weights:
            self.gap, self.step, self.forget_accuracy, self.held_out_accuracy = gap, step, forgotten, expected
            self.weights = snapshot(self.model)

    @classmethod
    def wanted(cls, model: nn.Module, data: Splits, run: Run, *, asked: bool | None) -> "Rewind | None":
        """Return the rewind where it is `asked` for; None asks for it on record requests only."""
        return cls.matched_to(model, data, run) if asked or (asked is None and data.kind == "records") else None

    def described(self) -> dict[str, object]:
        """Return the checkpoint chosen, for the report."""
        return {"step": self.step, "forget_accuracy": self.forget_accuracy, "held_out_accuracy": self.held_out_accuracy, "gap": self.gap}


def rewound(rewind: Rewind | None, model: nn.Module, run: Run) -> None:
    """Put the chosen checkpoint's weights into `model` where there is a rewind; the notes `ended_by` and `rewind` tell."""
    run.note("ended_by", "steps" if rewind is None else "rewind")
    if rewind is not None:
        model.load_state_dict(rewind.weights)
        run.note("rewind", rewind.described())
