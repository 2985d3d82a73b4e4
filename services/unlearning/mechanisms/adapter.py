"""Low-rank adapters: trained beside the frozen weights, then merged into them, so that nothing can be taken off again.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; the package peft.
Differs: merged before the model is handed back, with three checks: the adapter moved, without it the model is bit for bit what it was, and merged
it says what it said unmerged.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from services.errors import IntegrityBroken, ParameterOutOfRange
from services.learning.data import Splits
from services.learning.modes import evaluating, global_draws
from services.learning.run import Run
from services.unlearning.mechanisms.applicability import refuse
from services.unlearning.method import UnlearningMethod

FAMILIES = (("q_proj", "v_proj"), ("c_attn",), ("query_key_value",), ("query", "value"))
MERGED_TOLERANCE, MERGED_TOLERANCE_HALF = 1e-4, 3e-2
"""How far a merged model's logits may lie from the unmerged one's, as a share of the largest: of 32 bits, and of 16, whose products are rounded to
three digits. The small networks of the tests stay below a tenth of the first; an adapter merged in the wrong place moves logits by far more."""
HALF_BITS = 16


class Lora(BaseModel):
    """A low-rank adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(default=8, ge=1, le=256, description="Rank.")
    alpha: int = Field(default=16, ge=1, le=512, description="Scale; what is added is alpha / r times the product of the two matrices.")
    dropout: float = Field(default=0.05, ge=0, le=0.5, description="Dropout before the adapter, in training alone.")
    targets: tuple[str, ...] = Field(default=(), max_length=100, description="Names of the layers; none: the query and value projections.")


def lora_of(chosen: "bool | Lora") -> Lora | None:
    """Return the adapter that a parameter asks for: true is the default one."""
    return (Lora() if chosen else None) if isinstance(chosen, bool) else chosen


def targets_of(model: nn.Module, lora: Lora) -> list[str]:
    """Return the names of the layers that get an adapter. Raises ParameterOutOfRange: the model has none of that name."""
    held = {name.split(".")[-1] for name, _ in model.named_modules()}
    if lora.targets:
        missing = sorted(set(lora.targets) - held)
        if missing:
            raise ParameterOutOfRange(name="lora", detail=f"the model has no layer named {', '.join(missing)}")
        return list(lora.targets)
    for family in FAMILIES:
        if set(family) <= held:
            return list(family)
    raise ParameterOutOfRange(name="lora", detail="the model has no query and value projections; name the layers in `targets`")


def fitting(method: UnlearningMethod, model: nn.Module, lora: Lora, data: Splits) -> None:
    """Raise MethodNotApplicable where the model has no layers for the adapter, so that another method is tried."""
    try:
        targets_of(model, lora)
    except ParameterOutOfRange as unfit:
        raise refuse(method, data, str(unfit)) from unfit


class Adapted:
    """A model with an adapter in it. `probe` (B, T) are tokens on which the checks are made."""

    def __init__(self, model: nn.Module, lora: Lora, probe: Tensor, generator: torch.Generator) -> None:
        try:
            from peft import LoraConfig, LoraModel  # noqa: PLC0415  an optional package
        except ImportError as missing:
            raise ParameterOutOfRange(name="lora", detail="the package peft is not installed here") from missing
        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets_of(model, lora))
        self.model, self.probe = model, probe
        self.flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.said = self.answers()
        with global_draws(generator, probe.device):
            self.tuner: Any = LoraModel(model, {"default": config}, "default")
        self.first = {name: value.detach().clone() for name, value in self.weights().items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the adapter's own parameters."""
        return {name: parameter for name, parameter in self.model.named_parameters() if "lora_" in name}

    def answers(self) -> Tensor:
        """Return the logits on the probe, in eval mode."""
        with evaluating(self.model), torch.no_grad():
            return self.model(self.probe).detach().clone()

    def merge(self) -> dict[str, object]:
        """Put the adapter into the weights and take it off; return what the checks saw. Raises IntegrityBroken where one of them fails."""
        moved = sum(not torch.equal(self.first[name], value.detach()) for name, value in self.weights().items())
        unmerged = self.answers()
        self.tuner.disable_adapter_layers()
        restored = torch.equal(self.answers(), self.said)
        self.tuner.enable_adapter_layers()
        self.tuner.merge_and_unload(progressbar=False)
        self._restore()
        away = float((self.answers() - unmerged).abs().max())
        scale = max(1.0, float(unmerged.abs().max()))
        tolerance = MERGED_TOLERANCE if torch.finfo(unmerged.dtype).bits > HALF_BITS else MERGED_TOLERANCE_HALF
        if moved == 0 or not restored or not away <= tolerance * scale:
            raise IntegrityBroken(detail=f"adapter: {moved} tensors moved, base restored without it: {restored}, merged away from unmerged: {away:g}")
        return {"tensors": len(self.first), "tensors_moved": moved, "off_restores_base": restored, "merged_max_difference": away}

    def drop(self) -> None:
        """Take the adapter off and leave the weights as they were."""
        self.tuner.unload()
        self._restore()

    def _restore(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.flags[name])


@contextmanager
def adapted(model: nn.Module, lora: Lora | None, probe: Tensor, run: Run) -> Generator[Adapted | None]:
    """Train an adapter in place of the weights for a while: merged at the end, taken off where something fails. Without `lora` nothing is done."""
    if lora is None:
        yield None
        return
    held = Adapted(model, lora, probe, run.stream("adapter"))
    try:
        yield held
    except BaseException:
        held.drop()
        raise
    run.note("adapter", {**lora.model_dump(), **held.merge()})
