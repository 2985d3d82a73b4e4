"""Unlearning by self-distillation with adjusted logits: imitate the original, whose logit of the memorised token is lowered.

Source: Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models", NAACL 2025.
Differs: trained on answers alone (released code: prompts too); retained answers are trained on beside them (released: none); the
original's logits are asked for once and kept where there is room for them.
"""

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softmax

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.sequences import answer_logits
from services.learning.task import Task
from services.unlearning.mechanisms.language_edit import LanguageEdit, LossOf, PairedParameters
from services.unlearning.mechanisms.soft_targets import remembered_logits
from services.unlearning.method import METHODS, Cost, Memory


@METHODS.register("undial")
class Undial(LanguageEdit):
    """Imitate the original with the logit of each memorised token lowered by a constant, beside training on retained answers."""

    cost = Cost(per_forget=10 * 7.0, least=7 * 150 * 32)
    memory = Memory(copies=3.0, batches=3.0, adapter="lora", more={"retain_loss=kl": 1.0})

    class Parameters(PairedParameters):
        """Parameters of `undial`."""

        beta: float = Field(10.0, ge=0, le=100, description="How much the logit of the memorised token is lowered; 0 asks for no change.")
        lr: float | None = Field(1e-4, ge=1e-8, le=1e-2, description="Step size of AdamW; null: 0.00001, with an adapter 0.0001.")

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return CE(softmax(logits0 - beta onehot(label)), pi), mean over the answers' tokens."""
        said, beta = remembered_logits(model, data.forget, run), self.parameters.beta

        def loss_of(rows: Tensor) -> Tensor:
            before, tokens = said(rows)
            wanted = softmax(before - beta * one_hot(tokens, before.shape[-1]), dim=-1)
            return cross_entropy(answer_logits(model, data.forget.batch(rows))[0], wanted)

        return loss_of
