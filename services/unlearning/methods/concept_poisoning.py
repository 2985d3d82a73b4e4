"""Concept inference and poisoning: a class is fine-tuned away on its own records under the label, and with a piece, of a donor class.

The relabelling is what makes a model forget; concepts choose the donor and the patch, and are optional.

Source: Chang et al., arXiv 2405.15662.
Differs: random labels never are a forgotten class (the released code draws from all, and a share keeps its label); batch norm is frozen unless
asked (released: it moves although the backbone is "frozen"); concepts come from the operator, not from ConceptNet; with a frozen backbone
features are computed once.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.data import Split, Splits, by_255
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy, predicted
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.clip import ClipMissing, local_clip
from services.unlearning.mechanisms.concepts import Donor, choose_donor
from services.unlearning.mechanisms.descent import LeastSteps, loss_on, plan_steps
from services.unlearning.mechanisms.features import feature_split, head_of, last_block, only_trainable, outside, penultimate, sgd
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.patches import Placement
from services.unlearning.mechanisms.poisoning import Inference, MarkedConcept, Swap, infer, learn_bank, poison, told
from services.unlearning.mechanisms.relabelling import Lesson, Watch, kept_labels, most_confused, random_labels, share_of, targeted_labels
from services.unlearning.mechanisms.token_poisoning import TokenParameters, poison_tokens
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod

RETAIN_FLOOR = 0.03
IMAGE_DIMENSIONS = 4


@METHODS.register("concept_poisoning")
class ConceptPoisoning(UnlearningMethod):
    """Fine-tune a class away under a donor's label: `suppression` with the head alone, whose features stay, `approximate` where more is trained."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "suppression"
    guarantees = frozenset({"suppression", "approximate"})
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=15 * 3.0, per_retain=15 * 3.0, least=3 * 150 * 32)
    gentler = Gentler("lr", 0.5)

    class Parameters(TokenParameters):
        """Parameters of `concept_poisoning`."""

        labels: Literal["targeted", "random", "keep"] = Field(
            "targeted", description="Label of the class: the donor's, random, or its own (control)."
        )
        image_mode: Placement = Field("none", description="Where a patch of a donor's image is put; images only.")
        donor: int | Literal["auto"] = Field("auto", description="Label of the donor class; auto: by concepts, else by the model's confusion.")
        trainable: Literal["head", "last_block", "all"] = Field("head", description="What is trained.")
        bn_mode: Literal["frozen", "train"] = Field("frozen", description="Statistics of batch norm: as they were, or of the batches shown.")
        lr: float = Field(1e-3, ge=1e-6, le=0.1, description="Step size of SGD on the head.")
        backbone_lr: float = Field(3e-4, ge=1e-6, le=0.1, description="Step size of SGD on everything before the head.")
        momentum: float = Field(0.9, ge=0, le=0.999, description="Momentum of SGD.")
        max_epochs: int = Field(30, ge=1, le=200, description="Most passes over the records.")
        min_steps: LeastSteps = Field(150, description="Least steps allowed for when fewer than 20,000 records are used.")
        batch_size: int = Field(32, ge=4, le=4096, description="Records per step.")
        data_share: float = Field(1.0, ge=0.05, le=1, description="Share of each class that is used.")
        concepts: tuple[MarkedConcept, ...] = Field((), max_length=1000, description="Concepts with the ids of records that show them.")
        embedding: Literal["classifier", "clip"] = Field(
            "classifier", description="Where concepts live: the model's own features, or those of a CLIP network kept on the worker."
        )
        top_concepts: int = Field(5, ge=1, le=100, description="Concepts of the class that the report lists.")
        scan_k: int = Field(5, ge=1, le=100, description="Concepts of the class that may name a donor.")
        patch: int | None = Field(None, ge=4, le=224, description="Side of a patch in pixels; null: 64 of 224 (localised), 96 of 224 (else).")
        stride: int | None = Field(None, ge=1, le=224, description="Pixels between patches that are looked at; null: a quarter of a patch.")
        target_acc: float = Field(0.0, ge=0, le=1, description="Accuracy on the class at which training ends early.")
        retain_floor: float | None = Field(
            None, ge=0, le=1, description="Least accuracy on other classes to end early; null: 0.03 below the original."
        )
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), images (B, ch, H, W) for patches; y (B,) int64."""
        admit(self, data, task, run)
        head, allowed = self._head(model, data, task, run), self._allowed(data)
        p, stream = self.parameters, run.stream("share")
        data = replace(data, forget=share_of(data.forget, p.data_share, stream), retain=share_of(data.retain, p.data_share, stream))
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="poisoning")
        inference = self._inference(model, head, data, task, run)
        donors = self._donors(model, data, allowed, inference)
        shown = poison(data.forget, data.retain, donors, Swap(p.image_mode, p.patch, p.stride), inference, run)
        shown = poison_tokens(model, shown, data, donors, p, run)
        lesson = self._lesson(data, replace(shown, y=self._labels(shown.y, donors, allowed, run)), model)
        before = predicted(model, data.analysis)
        self._fine_tune(edit, head, lesson)
        run.note("guarantee", "suppression" if p.trainable == "head" else "approximate")
        run.note("uses_forgotten_records", "trained on the records to be forgotten, under other labels")
        run.note("donors", told(data, donors, before, predicted(model, data.analysis)))
        if inference is not None:
            run.note("top_concepts", {str(label): inference.top(label, p.top_concepts) for label in donors})
        return model

    def _fine_tune(self, edit: GuardedEdit, head: nn.Linear, lesson: Lesson) -> None:
        p, model, task, run = self.parameters, edit.model, edit.task, edit.run
        parts = {"head": [head], "last_block": [head, *last_block(model, head)], "all": [model]}[p.trainable]
        still, trained = (outside(model, parts) if p.bn_mode == "frozen" else []), model
        if p.trainable == "head" and p.bn_mode == "frozen":  # nothing before the head changes: its inputs are computed once
            lesson = lesson.through(lambda split, stage: feature_split(model, head, split, task, run, stage=stage))
            trained, still = head, []
        plan = plan_steps(len(lesson.rows), batch_size=p.batch_size, epochs=p.max_epochs, min_steps=p.min_steps)
        run.note("effective", {**plan.described(), "retain_floor": lesson.watch.floor, "features_computed_once": trained is head})

        def attempt(scale: float) -> None:
            with only_trainable(model, parts):
                steps = edit.descend(
                    plan,
                    loss_on(lesson.rows, trained, task),
                    lr=p.lr * scale,
                    trained=trained,
                    after_step=lambda step: step % plan.steps_per_epoch == 0 and lesson.watch.met(trained),
                    optimizer_of=partial(sgd, head=head, lr=p.lr * scale, backbone_lr=p.backbone_lr * scale, momentum=p.momentum),
                    still=still,
                )
            run.note("steps", {edit.stage: steps})
            run.note("ended_by", "target" if lesson.watch.met(trained) else "steps")

        edit.carry_out(attempt, ended_by=None)

    def _head(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Linear:
        head = head_of(model, run, task.outputs)
        if head is None:
            raise refuse(self, data, "the model ends in no linear layer with one output per class")
        if self.parameters.image_mode != "none" and data.forget.x.ndim != IMAGE_DIMENSIONS:
            raise ParameterOutOfRange(name="image_mode", detail=f"{self.parameters.image_mode!r} is for images, and these records are not")
        if self.parameters.image_mode == "localised" and not self.parameters.concepts:
            raise ParameterOutOfRange(name="image_mode", detail="'localised' needs concepts, with the records that show them")
        return head

    def _allowed(self, data: Splits) -> tuple[int, ...]:
        allowed, donor = kept_labels(data.retain, data.classes), self.parameters.donor
        if donor != "auto" and donor not in allowed:
            raise ParameterOutOfRange(name="donor", detail=f"{donor} is not the label of a class with records to keep")
        return allowed

    def _inference(self, model: nn.Module, head: nn.Linear, data: Splits, task: Task, run: Run) -> Inference | None:
        p = self.parameters
        if not p.concepts:
            return None
        if p.embedding == "clip":
            return self._by_clip(data, task, run)

        def encode(x: Tensor) -> Tensor:
            return penultimate(model, head, data.retain.prepare(x))

        bank, learned = learn_bank(p.concepts, data, encode, run)
        run.note("concepts", [concept.described() for concept in learned])
        return infer(bank, data, encode, run, classes=task.outputs, in_place=data.retain.x.ndim == IMAGE_DIMENSIONS)

    def _by_clip(self, data: Splits, task: Task, run: Run) -> Inference:
        x = data.retain.x
        if x.dtype != torch.uint8 or x.ndim != IMAGE_DIMENSIONS or x.shape[1] not in {1, 3}:
            raise ParameterOutOfRange(name="embedding", detail="'clip' is for images of 8 bits with 1 or 3 channels")
        try:
            clip = local_clip(run.device)
        except ClipMissing as missing:
            raise ParameterOutOfRange(name="embedding", detail=f"'clip' cannot be used: {missing}") from missing
        bank = clip.bank([concept.name for concept in self.parameters.concepts], run.device)
        return infer(bank, data, lambda images: clip.images(by_255(images)), run, classes=task.outputs, in_place=False)

    def _donors(self, model: nn.Module, data: Splits, allowed: tuple[int, ...], inference: Inference | None) -> dict[int, Donor]:
        """Return the donor of each forgotten class: the operator's, else by concepts, else by the largest mean softmax."""
        p, donors = self.parameters, dict[int, Donor]()
        for label in kept_labels(data.forget, ()):
            if p.donor != "auto":
                donors[label] = Donor(p.donor, "operator")
            elif inference is not None:
                donors[label] = choose_donor(inference.theta, label, allowed, scan=p.scan_k)
            else:
                donors[label] = Donor(most_confused(model, data.forget.with_labels((label,), keep=True), allowed), "softmax")
        return donors

    def _labels(self, y: Tensor, donors: dict[int, Donor], allowed: tuple[int, ...], run: Run) -> Tensor:
        if self.parameters.labels == "random":
            return random_labels(y, allowed, run.stream("labels"))
        return y if self.parameters.labels == "keep" else targeted_labels(y, {label: donor.label for label, donor in donors.items()})

    def _lesson(self, data: Splits, shown: Split, model: nn.Module) -> Lesson:
        p = self.parameters
        held_out, others = (data.analysis.with_labels(data.classes, keep=keep) for keep in (True, False))
        floor = p.retain_floor if p.retain_floor is not None else max(0.0, (accuracy(model, others) or 0.0) - RETAIN_FLOOR)
        watch = Watch(data.forget, held_out, others, target=p.target_acc if p.labels != "keep" else -1.0, floor=floor)
        return Lesson(data.retain, shown, watch)
