"""LRA-NPP: find the features that recur when a class is recognised, by layer-wise relevance, and zero their weights. Nothing is trained.

Source: layer-wise relevance analysis and neuronal path perturbation, arXiv 2410.23693.
Differs: relevance at the head is read in closed form, batched; the analysis rows are held-out rows that no metric and no attack sees; `k` can be
found by bisection; `path` also zeroes the bias of a neuron that it cuts, so that the neuron is dead; index sets of two layers are never mixed.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy

from services.errors import Diverged, ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy, predicted
from services.unlearning.mechanisms.applicability import admit, real_record, refuse
from services.unlearning.mechanisms.bisection import Stage, fewest, trials
from services.unlearning.mechanisms.features import head_of
from services.unlearning.mechanisms.guard import Guard, with_retry
from services.unlearning.mechanisms.overlap import shared_rows
from services.unlearning.mechanisms.perturbation import BATCH, Cut, Perturbation, Reading, silence
from services.unlearning.mechanisms.propagation import Unpropagatable
from services.unlearning.mechanisms.relevance import features_of, producer_of
from services.unlearning.method import METHODS, REAL_NUMBERS, Cost, Needs, UnlearningMethod

FEWEST_ROWS = 4
KEPT_ROWS = 500
FLOOR_DROP = 0.03
SILENT = -1e4  # finite, so that losses and checkpoints stay finite
GUARD_FACTOR = 10.0
WARNING = "output suppression, not erasure: features of the class may stay, and this is not a deletion certificate"


@METHODS.register("lra_npp")
class LraNpp(UnlearningMethod):
    """Suppress whole classes of a network with a linear head, from a few held-out records of each. No training record is read."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "suppression"
    needs = Needs(forget_set=False, retain_set=False, unseen_set=True)
    modalities = REAL_NUMBERS
    cost = Cost(fixed=36 * 12)
    retries = 0  # there is no rate to lower

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `lra_npp`."""

        n_analysis: int = Field(36, ge=4, le=1000, description="Held-out records per class, or all that the analysis split holds.")
        n_top: int | None = Field(None, ge=1, le=1_000_000, description="Features listed per record; null: as many as are zeroed.")
        k: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto"] = Field("auto", description="Features to zero per class; auto: by bisection.")
        scope: Literal["class_row", "neuron", "path"] = Field(
            "class_row", description="Zero a feature for the class, for all classes, or together with the neuron that makes it."
        )
        start: Literal["predicted", "target"] = Field("predicted", description="Logit at which relevance starts; target: the true class's.")
        eps: float = Field(0.1, ge=1e-9, le=1, description="Epsilon of the relevance rule.")
        rank_abs: bool | None = Field(None, description="Rank by activation times gradient without sign; null: only for vision transformers.")
        retain_floor: float | None = Field(None, ge=0, le=1, description="Least accuracy on held-out records of other classes; null: 0.03 below.")
        suppress_output: bool = Field(False, description="Also fix the class's logit at a value that never wins.")
        every_layer: bool = Field(False, description="Carry relevance through every layer and cut contrastively there; scope must be path.")

    def inspect(self, whole: Splits) -> None:
        """Refuse analysis rows that were trained on. Raises MethodNotApplicable."""
        rows = whole.analysis.with_labels(whole.classes, keep=True)
        shared = len(torch.cat([shared_rows(rows, whole.forget), shared_rows(rows, whole.retain)]).unique())
        if shared:
            raise refuse(self, whole, f"{shared} of {len(rows)} analysis records of the class are training records too, and it needs unseen ones")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record) real-valued, y (B,) int64; D_f and D_r are not read."""
        admit(self, data, task, run)
        samples = {label: self._samples(data, label, run) for label in data.classes}
        head, producer = self._layers(model, data, task, run)
        kept = data.analysis.with_labels(data.classes, keep=False).sample(KEPT_ROWS, run.stream("kept"))
        guard = Guard.around(self.name, model, kept, task, run, factor=GUARD_FACTOR) if len(kept) else None
        p, reading = self.parameters, self._reading(model)
        batches = sum(math.ceil(len(rows) / BATCH) + math.ceil(len(kept) / BATCH) for rows in samples.values())
        relevance, search, perturb = (
            Stage(run, "relevance", batches),
            Stage(run, "search", len(samples) * trials(head.in_features)),
            Stage(run, "perturb", len(samples)),
        )

        def attempt(_scale: float) -> None:
            cuts: dict[int, tuple[Cut, int, str]] = {}
            before: float | None = None
            for label, rows in samples.items():
                try:
                    work = Perturbation(
                        model, head, label, (rows, kept), p.scope, reading, relevance.tick, producer=producer, every_layer=p.every_layer
                    )
                except Unpropagatable as error:
                    raise refuse(self, data, f"relevance cannot be carried through every layer: {error}") from error
                before = work.kept.accuracy if before is None else before
                cuts[label] = self._chosen(work, before, search)
                work.apply(cuts[label][0])
                if p.suppress_output:
                    silence(model, work.head_name, label, level=SILENT)
                perturb.tick(cross_entropy(work.tried(cuts[label][0])[0], rows.y))
            search.end()
            after = None if guard is None else guard.check(model, "perturb")
            run.note("retain_loss", {"before": None if guard is None else guard.before, "after": after})
            run.note("steps", {stage.name: stage.step for stage in (relevance, search, perturb)})
            k = {str(label): count for label, (_, count, _) in cuts.items()}
            rows_read = {str(label): len(rows) for label, rows in samples.items()}
            run.note(
                "effective", {"features": head.in_features, "k": k, "n_analysis": rows_read, "rank_abs": reading.absolute, "kept_rows": len(kept)}
            )
            facts = told(model, cuts, samples, kept)
            for name, value in facts.items():
                run.note(name, value)
            self._hold_floor(facts["outcome"]["analysis_retain_accuracy"])

        with_retry(self.name, model, run, attempt, retries=self.retries)
        return model

    def _samples(self, data: Splits, label: int, run: Run) -> Split:
        rows = data.analysis.with_labels((label,), keep=True).sample(self.parameters.n_analysis, run.stream(f"analysis/{label}"))
        if len(rows) < FEWEST_ROWS:
            raise refuse(self, data, f"it needs at least {FEWEST_ROWS} unseen records of class {label}, and the analysis split holds {len(rows)}")
        real_record(self, data, rows, "relevance is defined for")
        if len(shared_rows(rows, data.retain)):
            raise refuse(self, data, f"analysis records of class {label} are training records too, and it needs unseen ones")
        return rows

    def _layers(self, model: nn.Module, data: Splits, task: Task, run: Run) -> tuple[nn.Linear, nn.Linear | None]:
        p = self.parameters
        head = head_of(model, run, task.outputs)
        probe = data.analysis.batch(torch.arange(min(8, len(data.analysis)))).x
        if head is None or features_of(model, head, probe) is None:
            raise refuse(self, data, "the network does not end in a linear layer with one output per class")
        for name, value in (("k", p.k), ("n_top", p.n_top)):
            if isinstance(value, int) and value > head.in_features:
                raise ParameterOutOfRange(name=name, detail=f"the head has {head.in_features} features, not {value}")
        if p.every_layer and p.scope != "path":
            raise ParameterOutOfRange(name="every_layer", detail=f"it cuts paths, so scope must be path, not {p.scope}")
        if p.suppress_output and "bias" not in dict(head.named_parameters()):
            raise ParameterOutOfRange(name="suppress_output", detail="the head has no bias to fix the logit by")
        producer = producer_of(model, head, probe) if p.scope == "path" and not p.every_layer else None
        if p.scope == "path" and not p.every_layer and producer is None:
            raise refuse(self, data, "no single linear layer makes the head's features, so a path needs every_layer")
        return head, producer

    def _reading(self, model: nn.Module) -> Reading:
        p = self.parameters
        attention = any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
        return Reading(p.n_top, p.start, p.eps, attention if p.rank_abs is None else p.rank_abs)

    def _chosen(self, work: Perturbation, before: float | None, search: Stage) -> tuple[Cut, int, str]:
        k = self.parameters.k
        if not bool(torch.isfinite(work.own.logits).all()):
            raise Diverged(method=self.name, stage="relevance", detail="the original's logits are not finite")
        if isinstance(k, int):
            return work.cut(k), k, "k"
        floor = self.parameters.retain_floor
        return fewest(work, before - FLOOR_DROP if floor is None and before is not None else floor, search, method=self.name)

    def _hold_floor(self, after: float | None) -> None:
        floor = self.parameters.retain_floor
        if floor is not None and after is not None and after < floor:
            raise Diverged(method=self.name, stage="perturb", detail=f"accuracy on the other classes is {after:.4g}, below the floor {floor:.4g}")


def told(model: nn.Module, cuts: dict[int, tuple[Cut, int, str]], samples: dict[int, Split], kept: Split) -> dict[str, Any]:
    """Return for the report which weights were zeroed, never their values, and what the model still says on the analysis rows."""
    places = {str(label): cut.described() for label, (cut, _, _) in cuts.items()}
    winners = predicted(model, kept)
    return {
        "zeroed": places,
        "zeroed_sha256": hashlib.sha256(json.dumps(places, sort_keys=True).encode()).hexdigest(),
        "ended_by": {str(label): ended for label, (_, _, ended) in cuts.items()},
        "outcome": {
            "analysis_forget_accuracy": {str(label): accuracy(model, rows) for label, rows in samples.items()},
            "analysis_retain_accuracy": float((winners == kept.y.cpu()).double().mean()) if len(kept) else None,
            "retain_rows_given_a_forgotten_class": int(torch.isin(winners, torch.tensor(list(cuts))).sum()),
        },
        "warning": WARNING,
    }
