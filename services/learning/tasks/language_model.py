"""Causal language modelling of answers: the next token, given the question and the answer so far."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from services.errors import InvalidInput
from services.learning.data import Batch, Split
from services.learning.modes import evaluating
from services.learning.sequences import sequence_losses, trimmed
from services.learning.task import TASKS, Task
from services.learning.tokens import IGNORED

ROWS_AT_ONCE = 64


@TASKS.register("language_model")
class LanguageModel(Task):
    """Records are tokens x (B, T); y is x with all but the answer masked by -100; the model returns logits (B, T, V).

    A record's loss is the mean negative log-likelihood of its answer's tokens, in nats per token, so that long answers do not weigh more than
    short ones. `outputs` is the number of token ids.
    """

    modalities = frozenset({"text"})
    loss_unit = "nats per token"

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each record's mean negative log-likelihood over its answer's tokens, (B,) float32, without label smoothing."""
        return self._losses(model, batch, smoothing=0.0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean over records of their loss, with the task's label smoothing, a scalar."""
        return self._losses(model, batch, smoothing=self.label_smoothing).mean()

    def predict(self, model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:
        """Return (n, T, 2) float32 on the CPU: the log-probability of each answer token, and 1 where it is the likeliest one; 0 elsewhere.

        Place t speaks of token t, given all before it.
        """
        found = torch.zeros(*split.x.shape, 2)
        start = 0
        with evaluating(model), torch.inference_mode():
            for batch in split.batches(min(batch_size, ROWS_AT_ONCE)):
                kept = trimmed(batch)
                logits = model(kept.x).float()[:, :-1]
                wanted = kept.y[:, 1:]
                answered = wanted != IGNORED
                token = wanted.clamp(min=0)
                logs = log_softmax(logits, dim=-1).gather(-1, token[..., None]).squeeze(-1)
                rows = slice(start, start + len(wanted))
                found[rows, 1 : kept.x.shape[1], 0] = torch.where(answered, logs, 0.0).cpu()
                found[rows, 1 : kept.x.shape[1], 1] = (answered & (logits.argmax(dim=-1) == token)).float().cpu()
                start += len(wanted)
        return found

    def trivial_loss(self, split: Split) -> float:  # noqa: ARG002  the uniform predictor's loss does not depend on the records
        """Return ln V, the loss of the uniform prediction."""
        return math.log(self.outputs)

    def check(self, split: Split) -> None:
        """Raise InvalidInput unless x and y are tokens of this model, y masked outside the answers, and every record has an answer."""
        x, y = split.x, split.y
        if x.dtype != torch.int64 or y.dtype != torch.int64 or x.ndim != 2 or x.shape != y.shape:
            raise InvalidInput(detail=f"records must be tokens (n, T) with labels of the same shape, not {tuple(x.shape)} and {tuple(y.shape)}")
        if len(split) == 0:
            return
        low, high = (int(bound) for bound in torch.aminmax(x))
        if low < 0 or high >= self.outputs:
            raise InvalidInput(detail=f"tokens run from {low} to {high}, but the model has {self.outputs}: the tokenizer is not the model's")
        answered = y != IGNORED
        if bool((y[answered] != x[answered]).any()):
            raise InvalidInput(detail="labels must be the record's own tokens, or -100 where nothing is to be learned")
        if not bool(answered[:, 1:].any(dim=1).all()):
            raise InvalidInput(detail="a record has no answer")

    def _losses(self, model: nn.Module, batch: Batch, *, smoothing: float) -> Tensor:
        parts = [
            sequence_losses(model(kept.x), kept.y, smoothing=smoothing)
            for x, y in zip(batch.x.split(ROWS_AT_ONCE), batch.y.split(ROWS_AT_ONCE), strict=True)
            for kept in [trimmed(Batch(x, y))]
        ]
        total, count = (torch.cat(part) for part in zip(*parts, strict=True))
        return total / count.clamp(min=1)
