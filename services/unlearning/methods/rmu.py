"""Representation misdirection: the hidden vectors of forgotten answers are pushed to one random direction, those of retained ones are held.

Source: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning", ICML 2024.
Differs: the mean over an answer's tokens is each record's own (released code divides (B,) by (B, 1) and so mixes the records' lengths); the blocks
above the steered one are not run. As there, a frozen copy is asked for the hidden vectors of each retained batch.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.config import JsonDict
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.data import Batch, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.hidden_vectors import answer_distance, blocks_of, hold_outside, random_direction, states_after
from services.unlearning.mechanisms.language_edit import LanguageEdit, LanguageParameters, LossOf, frozen_copy
from services.unlearning.method import METHODS, Memory

MUST_BE_CHOSEN = ("rmu_layer", "rmu_c", "alpha")
CONFIRMED: JsonDict = {
    "anyOf": [
        {"required": list(MUST_BE_CHOSEN)},
        {"properties": {"defaults_confirmed": {"const": True}}, "required": ["defaults_confirmed"]},
    ]
}


@METHODS.register("rmu")
class RepresentationMisdirection(LanguageEdit):
    """Push the hidden vectors of forgotten answers to a random direction and hold those of retained answers where they are."""

    memory = Memory(copies=3.0, batches=3.0, adapter="lora")
    sharded = False  # it looks at hidden vectors, of which each device has its own rows alone

    class Parameters(LanguageParameters):
        """Parameters of `rmu`. Which block, length and weight serve depends on the model: each is given, or the defaults are confirmed."""

        model_config = ConfigDict(json_schema_extra=CONFIRMED)

        rmu_layer: int | None = Field(None, ge=0, le=1000, description="Block that is steered; null: 7, or the last but one of a smaller network.")
        rmu_c: float = Field(2.0, ge=0.1, le=1000, description="Length of the direction.")
        rmu_trainable: Literal["all"] | tuple[int, ...] = Field("all", description="All weights, or the blocks whose down projection is trained.")
        gamma: float = Field(1.0, ge=0, le=10_000, description="Weight of the forget loss.")
        alpha: float = Field(1.0, ge=0, le=10_000, description="Weight of the retain loss.")
        defaults_confirmed: bool = Field(default=False, description="Run with the defaults for what is not given, though nobody chose them.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, T) tokens, y (B, T) with -100 outside the answers."""
        admit(self, data, task, run)
        p = self.parameters
        missing = [name for name in MUST_BE_CHOSEN if name not in p.model_fields_set]
        if missing and not p.defaults_confirmed:
            raise ParameterOutOfRange(name=missing[0], detail="what serves depends on the model; give it, or set defaults_confirmed")
        run.note("chosen_by_nobody", sorted(missing))
        if p.rmu_trainable == "all":
            return super().unlearn(model, data, task, run)
        if p.lora is not False:
            raise ParameterOutOfRange(name="rmu_trainable", detail="an adapter trains its own weights; leave it at 'all'")
        with hold_outside(model, p.rmu_trainable):
            return super().unlearn(model, data, task, run)

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return E (1/T) sum over the answer's tokens of mean over dimensions (h - c u)^2."""
        layer, direction = self._layer(model), None

        def loss_of(rows: Tensor) -> Tensor:
            nonlocal direction
            batch = data.forget.batch(rows)
            states = states_after(model, layer, batch)
            if direction is None:
                direction = random_direction(states.shape[-1], run.stream("direction")).to(states.device)
            return answer_distance(states, self.parameters.rmu_c * direction, batch)

        return loss_of

    def keeping(self, model: nn.Module, data: Splits, task: Task, run: Run) -> Callable[[Batch], Tensor]:  # noqa: ARG002
        """Return E (1/T) sum over the answer's tokens of mean over dimensions (h - h0)^2."""
        layer, original = self._layer(model), frozen_copy(model)

        def loss_of(batch: Batch) -> Tensor:
            with torch.no_grad():
                before = states_after(original, layer, batch)
            return answer_distance(states_after(model, layer, batch), before, batch)

        return loss_of

    def _layer(self, model: nn.Module) -> int:
        blocks, chosen = len(blocks_of(model)), self.parameters.rmu_layer
        if chosen is None:
            return min(7, max(0, blocks - 2))
        if chosen >= blocks:
            raise ParameterOutOfRange(name="rmu_layer", detail=f"the model has {blocks} blocks, 0 to {blocks - 1}")
        return chosen
