"""Gated knowledge transfer: a fresh student learns from the original on pseudo-images, without those of the classes to be forgotten.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (arXiv 2201.05629).
Differs: a stopping rule is part of the method, because the forgotten class returns when the run goes on; the gate serves several classes;
every parameter of the student is drawn anew (a student that inherits any leaks the class); the student's rate follows a proxy loss, not real
records; what stays the same within a pseudo-batch is computed once; batches, generator and run are smaller on a CPU.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from services.errors import Diverged, ParameterOutOfRange
from services.learning.data import Splits
from services.learning.modes import evaluating, image_layout
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.attention import blocks
from services.unlearning.mechanisms.device_batch import device_batch
from services.unlearning.mechanisms.generator import LARGEST_SIDE, Generator
from services.unlearning.mechanisms.guard import snapshot, with_retry
from services.unlearning.mechanisms.noise import frozen
from services.unlearning.mechanisms.stopping import DataFree, OperatorEval, StoppingRule
from services.unlearning.mechanisms.transfer import STAGE, Rates, Settings, Transfer, fresh_student
from services.unlearning.mechanisms.zero_shot import kept_classes, record_shape, require_finite
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod

MOST_CLASSES = 10
SMALL = 1_000_000
EARLY, EARLY_EVERY, LATE_EVERY = 200, 5, 50  # a small network brings the class back within 10 pseudo-batches
LOW_ACCEPTANCE = 0.1


@METHODS.register("gkt")
class GatedKnowledgeTransfer(UnlearningMethod):
    """Distil a fresh student without any training record; for small images, stopped before the class returns."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=False, limits={"classes": MOST_CLASSES, "side": LARGEST_SIDE})
    modalities = frozenset({"image"})
    cost = Cost(fixed=200 * 64 * (1 + 10 * 3 + 3))
    fresh_start = False  # the student's weights are new, but all it knows comes from the original, the forgotten class maybe among it

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `gkt`. Defaults that depend on the device suit a network of under a million parameters on a CPU.

        A run cannot be without `stop_rule`. It defaults to the rule that sees real records, which alone can show that the class is gone.
        """

        z_dim: int = Field(128, ge=16, le=1024, description="Numbers that a pseudo-image is made of.")
        generator_width: int | None = Field(None, ge=4, le=512, description="Maps of the generator; null: 128, on a CPU 32.")
        batch_size: int | None = Field(None, ge=8, le=1024, description="Pseudo-images drawn at once; null: 256, on a CPU 64.")
        n_pseudo_batches: int | None = Field(None, ge=10, le=20_000, description="Most pseudo-batches; null: 4000, on a CPU 200.")
        n_gen: int = Field(1, ge=1, le=50, description="Steps of the generator per pseudo-batch.")
        n_stu: int = Field(10, ge=1, le=50, description="Steps of the student per pseudo-batch.")
        gate_eps: float | None = Field(
            None,
            ge=1e-4,
            le=0.5,
            description="Greatest probability of a forgotten class that the gate lets through; null: 0.01, 0.001 for small networks.",
        )
        temperature: float = Field(1.0, ge=0.1, le=10, description="Softmax temperature of teacher and student.")
        beta_attention: float | None = Field(None, ge=0, le=10_000, description="Weight of attention maps; null: 250, 0 for small networks.")
        lr_gen: float = Field(1e-3, ge=1e-6, le=0.1, description="First step size of the generator.")
        lr_stu: float = Field(1e-3, ge=1e-6, le=0.1, description="First step size of the student; halved on a plateau of its loss.")
        gen_lr_schedule: Literal["legacy", "constant", "plateau_proxy"] = Field(
            "legacy", description="The generator's step size: halved each 150 pseudo-batches as released, kept, or halved on a plateau of its loss."
        )
        grad_clip: float = Field(5.0, ge=0.1, le=100, description="Bound of both gradient norms.")
        student_bn: Literal["frozen", "train"] = Field(
            "frozen", description="Batch norm of the student: as it starts, or learned from pseudo-images."
        )
        stop_rule: Literal["operator_eval", "data_free"] = Field(
            "operator_eval", description="How the checkpoint is chosen; operator_eval is refused where no evaluation records of both kinds are held."
        )
        forget_threshold: float = Field(0.01, ge=0, le=1, description="Greatest forget accuracy of a checkpoint under operator_eval.")
        retain_floor: float = Field(0.5, ge=0, le=1, description="Least share of the original's retain accuracy; below it the run fails.")
        check_every: int | None = Field(None, ge=1, le=1000, description="Pseudo-batches between checks; null: 5 up to 200, then 50.")
        max_empty: int = Field(
            100, ge=1, le=1000, description="Batches in a row of which the gate keeps nothing before the last good generator is reloaded."
        )
        max_reloads: int = Field(3, ge=0, le=100, description="Such reloads before the run fails.")
        record_shape: tuple[int, int, int] | None = Field(None, description="Channels, height and width of a record; null: as the data's.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Give `model` the student's weights and return it in eval mode. x (B, ch, H, W) float32, sides of at most 32 pixels."""
        admit(self, data, task, run)
        kept_classes(self, data, task)
        record = self._images(data, task, run)
        require_finite(self.name, model, record, run)
        given, taps = self._settings(model, data, run)
        attempt = partial(self._transfer, model, data, task, run, given, taps, record)
        self._install(model, with_retry(self.name, model, run, attempt, retries=self.retries))
        return model

    def _images(self, data: Splits, task: Task, run: Run) -> torch.Size:
        record = record_shape(self, data, self.parameters.record_shape)
        if len(record) != 3 or not all(1 <= side <= LARGEST_SIDE for side in record[1:]):
            raise refuse(self, data, f"it makes images of at most {LARGEST_SIDE} x {LARGEST_SIDE} pixels, and a record is of shape {tuple(record)}")
        if task.outputs > MOST_CLASSES:
            raise refuse(self, data, f"with {task.outputs} classes a student learns next to nothing; it serves at most {MOST_CLASSES}")
        if run.architecture is None:
            raise refuse(self, data, "the model version names no architecture to build a student from")
        if self.parameters.stop_rule == "operator_eval" and not OperatorEval(data).possible:
            raise refuse(
                self, data, "no evaluation records of the forgotten and of other classes are held to stop by; `stop_rule` data_free needs none"
            )
        return record

    def _settings(self, model: nn.Module, data: Splits, run: Run) -> tuple[Settings, tuple[str, ...]]:
        p, cpu = self.parameters, run.device.type == "cpu"
        small = sum(each.numel() for each in model.parameters()) < SMALL
        beta = p.beta_attention if p.beta_attention is not None else (0.0 if small else 250.0)
        taps = blocks(model) if beta > 0 else ()
        if beta > 0 and not taps:
            raise ParameterOutOfRange(name="beta_attention", detail="the network has no convolution whose attention could be matched; use 0")
        given = Settings(
            classes=data.classes,
            batch=device_batch(p.batch_size, run),
            n_gen=p.n_gen,
            n_stu=p.n_stu,
            epsilon=p.gate_eps if p.gate_eps is not None else (0.001 if small else 0.01),
            temperature=p.temperature,
            beta=beta,
            clip=p.grad_clip,
            student_statistics=p.student_bn == "train",
            max_empty=p.max_empty,
            max_reloads=p.max_reloads,
            pseudo_batches=p.n_pseudo_batches or (200 if cpu else 4000),
        )
        width = self._width(run)
        run.note(
            "effective", {"batch_size": given.batch, "gate_eps": given.epsilon, "beta_attention": beta, "taps": list(taps), "generator_width": width}
        )
        return given, taps

    def _width(self, run: Run) -> int:
        return self.parameters.generator_width or (32 if run.device.type == "cpu" else 128)

    def _transfer(
        self, model: nn.Module, data: Splits, task: Task, run: Run, given: Settings, taps: tuple[str, ...], record: torch.Size, scale: float
    ) -> StoppingRule:
        student = fresh_student(model, run)
        seed = derived_seed(run.seed, "generator")
        generator = Generator.fresh(record, seed, z_dim=self.parameters.z_dim, width=self._width(run)).to(run.device).train()
        with frozen(model), evaluating(model), image_layout(model, student, generator):
            transfer = Transfer(self.name, model, student, generator, taps, given, run)
            rule = self._follow(transfer, data, task, scale)
        acceptance = transfer.kept / max(1, transfer.drawn)
        run.note("trajectory", [each.described() for each in rule.trajectory])
        run.note("steps", {STAGE: transfer.step})
        run.note("gate", {"acceptance": acceptance, "low": acceptance < LOW_ACCEPTANCE, "reloads": transfer.reloads})
        run.note("ended_by", rule.ended_by)
        run.report(given.steps, given.steps, stage=STAGE, loss=transfer.loss)
        return rule

    def _follow(self, transfer: Transfer, data: Splits, task: Task, scale: float) -> StoppingRule:
        p, given = self.parameters, transfer.given
        free = p.stop_rule == "data_free"
        measure = DataFree(transfer.teacher, given.classes, rows=4 * given.batch) if free else OperatorEval(data)
        original = measure.look(0, transfer.teacher).retain if isinstance(measure, OperatorEval) else None
        rule = StoppingRule(2 / task.outputs, patience=1) if free else StoppingRule(p.forget_threshold, target=original)
        rates = Rates(transfer, p.gen_lr_schedule, p.lr_gen * scale, p.lr_stu * scale)
        for k in range(1, given.pseudo_batches + 1):
            transfer.pseudo_batch()
            rates.after(k)
            if k == given.pseudo_batches or k % (p.check_every or (EARLY_EVERY if k <= EARLY else LATE_EVERY)) == 0:
                transfer.good_now()
                if isinstance(measure, DataFree):
                    measure.show(*transfer.probe())
                if rule.consider(measure.look(k, transfer.student), lambda: snapshot(transfer.student)):
                    break
        return rule

    def _install(self, model: nn.Module, rule: StoppingRule) -> None:
        floor = self.parameters.retain_floor * (rule.target or 1.0)
        if rule.best is None:
            least = min((each.forget for each in rule.trajectory if each.forget is not None), default=None)
            detail = f"no checkpoint forgets: at best {least} is left of the class, allowed {rule.threshold:g}"
            raise Diverged(method=self.name, stage=STAGE, detail=detail)
        if (rule.best.retain or 0.0) < floor:
            raise Diverged(method=self.name, stage=STAGE, detail=f"the best checkpoint retains {rule.best.retain}, less than {floor:g}")
        model.load_state_dict(rule.weights)
