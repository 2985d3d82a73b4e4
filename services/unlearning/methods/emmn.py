"""Error minimising-maximising noise: forget a class with no data at all, by noise unlike it and noise like every other class. A last resort.

In the manner of Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (arXiv 2201.05629), whose authors released no code for it:
this is a reconstruction, and no result of theirs may be expected of it.
Differs: both kinds of noise are regularised; batch norm keeps its statistics while the noise is shown; the step size is chosen without any
real record, by what stays on noise held out and by what leaks on noise like the forgotten class.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy, mean_probability
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import LeastSteps, descend, plan_steps
from services.unlearning.mechanisms.device_batch import device_batch
from services.unlearning.mechanisms.guard import Guard, GuardFactor, snapshot, with_retry
from services.unlearning.mechanisms.min_max_noise import Materials, materials_of, split_of
from services.unlearning.mechanisms.noise import VirtualList, learn_noise
from services.unlearning.mechanisms.zero_shot import kept_classes, record_shape, require_finite
from services.unlearning.method import METHODS, REAL_NUMBERS, Cost, Needs, UnlearningMethod

AGREEMENT_FLOOR = 0.9
LEAK_LIMIT = 0.9
LARGEST_SIDE, MOST_CLASSES = 32, 10
ON_PROXIES = "agreement and leak are measured on noise, not on real records: evaluate on records of your own before promotion"
TOO_LARGE = f"images of more than {LARGEST_SIDE} pixels or more than {MOST_CLASSES} classes: expect it to fail"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One step size: `agreement` with the original on the proxy, `leak` the mean probability that the forgotten classes still get on their noise."""

    lr: float
    agreement: float
    leak: float

    @property
    def eligible(self) -> bool:
        """Whether it keeps enough and leaks less than nearly everything."""
        return self.agreement >= AGREEMENT_FLOOR and self.leak <= LEAK_LIMIT

    def described(self) -> dict[str, float]:
        """Return the candidate for the report."""
        return {"lr": self.lr, "agreement": self.agreement, "leak": self.leak}


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate, and the weights that it stands for."""

    candidate: Candidate
    weights: dict[str, Tensor]


def choose(candidates: list[Candidate]) -> Candidate | None:
    """Return the least leak among those that keep enough, never the greatest agreement alone; None where none is eligible."""
    return min((each for each in candidates if each.eligible), key=lambda each: each.leak, default=None)


@METHODS.register("emmn")
class ErrorMinMaxNoise(UnlearningMethod):
    """Impair a class by noise alone, in the manner of the zero-shot paper; approximate, last resort."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=False)
    modalities = REAL_NUMBERS
    cost = Cost(fixed=3 * 150 * 256, per_class=400 * 256 * 2)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `emmn`."""

        noise_batch: int | None = Field(None, ge=4, le=1024, description="Rows of noise per class; null: 256, on a CPU 64.")
        noise_steps: int = Field(400, ge=10, le=2000, description="Steps of Adam on the noise.")
        noise_lr: float = Field(0.1, ge=1e-4, le=1, description="First step size of Adam on the noise.")
        lr_halve_every: int = Field(100, ge=10, le=1000, description="Steps after which the step size of the noise is halved.")
        lambda_max: float = Field(0.1, ge=0, le=10, description="Weight of the squared norm of noise unlike a forgotten class.")
        lambda_min: float = Field(0.01, ge=0, le=10, description="Weight of the squared norm of noise like a class.")
        copies: int = Field(20, ge=1, le=200, description="How often each row of noise is shown in an epoch.")
        impair_epochs: int = Field(1, ge=1, le=5, description="Passes over the noise.")
        impair_lrs: tuple[Annotated[float, Field(ge=1e-6, le=0.1)], ...] = Field(
            (1e-4, 1e-3, 1e-2), min_length=1, max_length=10, description="Step sizes to try; proxies choose."
        )
        batch_size: int = Field(256, ge=8, le=4096, description="Rows per step.")
        min_steps: LeastSteps = Field(150, description="Least steps of a stage that shows fewer than 20,000 rows.")
        bn_mode: Literal["frozen", "train"] = Field("frozen", description="Batch norm while noise is shown: as it is, or moved by the noise.")
        repair_epochs: int = Field(0, ge=0, le=5, description="Passes over the noise like the other classes, afterwards.")
        proxy_holdout: float = Field(0.2, ge=0.05, le=0.5, description="Share of the noise like the other classes that only chooses the step size.")
        guard_factor: GuardFactor = Field(10.0, description="Stop when the loss on held-out noise exceeds this many times its first value.")
        record_shape: tuple[Annotated[int, Field(ge=1, le=65536)], ...] | None = Field(None, description="Shape of a record; null: as the data's.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. Of `data` only the classes and the shape of a record are read."""
        admit(self, data, task, run)
        kept = kept_classes(self, data, task)
        record = record_shape(self, data, self.parameters.record_shape)
        require_finite(self.name, model, record, run)
        materials = self._materials(model, kept, data, record, task, run)
        guard = Guard.around(self.name, model, materials.proxy, task, run, factor=self.parameters.guard_factor)
        large = any(side > LARGEST_SIDE for side in record[1:]) or task.outputs > MOST_CLASSES
        run.note("warnings", [ON_PROXIES, *([TOO_LARGE] if large else [])])
        chosen = with_retry(self.name, model, run, partial(self._sweep, model, materials, task, run, guard), retries=self.retries)
        if chosen is None:
            detail = f"no step size keeps {AGREEMENT_FLOOR:g} of the held-out noise and leaks at most {LEAK_LIMIT:g}: {run.notes['sweep']}"
            raise Diverged(method=self.name, stage="impair", detail=detail)
        model.load_state_dict(chosen.weights)
        return model

    def _materials(self, model: nn.Module, kept: tuple[int, ...], data: Splits, record: torch.Size, task: Task, run: Run) -> Materials:
        p = self.parameters
        batch = device_batch(p.noise_batch, run)
        like, unlike = len(kept) + len(data.classes), len(data.classes)
        noise = learn_noise(
            model,
            (*kept, *data.classes, *data.classes),
            record,
            task,
            run,
            batch=batch,
            steps=p.noise_steps,
            lr=p.noise_lr,
            l2=(p.lambda_min,) * like + (p.lambda_max,) * unlike,
            signs=(1.0,) * like + (-1.0,) * unlike,
            train_mode=False,
            halve_every=p.lr_halve_every,
        )
        run.note("noise", {"rows_per_class": batch, "first_loss": noise.losses[:, 0].tolist(), "last_loss": noise.losses[:, -1].tolist()})
        return materials_of(noise, model, batch=batch, kept=len(kept), forgotten=len(data.classes), holdout=p.proxy_holdout)

    def _sweep(self, model: nn.Module, materials: Materials, task: Task, run: Run, guard: Guard, scale: float) -> Found | None:
        original, found, tried, failure = snapshot(model), [], [], None
        for lr in self.parameters.impair_lrs:
            model.load_state_dict(original)
            try:
                candidate = self._impair(model, materials, task, run, guard, lr * scale)
            except Diverged as diverged:
                failure = failure or diverged
                tried.append({"lr": lr * scale, "diverged": diverged.facts["detail"]})
            else:
                found.append(Found(candidate, snapshot(model)))
                tried.append(candidate.described())
            run.note("sweep", list(tried))
        model.load_state_dict(original)
        if not found and failure is not None:
            raise failure
        chosen = choose([each.candidate for each in found])
        run.note("ended_by", "steps")
        run.note("outcome", chosen.described() if chosen is not None else None)
        return next((each for each in found if each.candidate is chosen), None)

    def _impair(self, model: nn.Module, materials: Materials, task: Task, run: Run, guard: Guard, lr: float) -> Candidate:
        p = self.parameters
        steps, effective = {"noise": p.noise_steps}, {}
        stages = (("impair", materials.shown, p.impair_epochs), ("repair", materials.like_kept, p.repair_epochs))
        for stage, noise, epochs in (each for each in stages if each[2]):
            shown = VirtualList(noise, p.copies, split_of(noise).take(torch.zeros(0, dtype=torch.int64)))
            plan = plan_steps(len(shown), batch_size=p.batch_size, epochs=epochs, min_steps=p.min_steps)
            steps[stage], effective[stage] = plan.steps, plan.described()

            def loss_of(rows: Tensor, shown: VirtualList = shown) -> Tensor:
                return task.losses(model, shown.batch(rows)).mean()

            fixed = p.bn_mode == "frozen"
            descend(model, plan, loss_of, run, guard, stage=stage, lr=lr, generator=run.stream(stage), mode="frozen" if fixed else "train")
        guard.check(model, "impair")
        run.note("steps", steps)
        run.note("effective", effective)
        agreement = accuracy(model, materials.proxy) or 0.0
        return Candidate(lr, agreement, mean_probability(model, materials.leak) or 0.0)
