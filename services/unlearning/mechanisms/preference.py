"""Losses that prefer other answers to the forgotten ones, on log-probabilities of whole answers.

Source: Zhang et al., "Negative Preference Optimization", COLM 2024; Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for
LLM Unlearning", 2024; Rafailov et al., "Direct Preference Optimization", NeurIPS 2023.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.sequences import sequence_nll

ROWS_AT_ONCE = 64


def negative_preference(log_ratio: Tensor, beta: float) -> Tensor:
    """Return NPO's loss of log pi(y|x) - log pi0(y|x), (B,): (2/beta) ln 2 where the model is its reference; beta towards 0 is gradient ascent."""
    return -(2 / beta) * logsigmoid(-beta * log_ratio).mean()


def simple_preference(nll: Tensor, lengths: Tensor, beta: float, delta: float) -> Tensor:
    """Return SimNPO's loss of summed negative log-likelihoods (B,) over answers of `lengths` tokens; it asks for no reference."""
    return -(2 / beta) * logsigmoid(beta * (nll / lengths - delta)).mean()


def direct_preference(preferred_ratio: Tensor, forgotten_ratio: Tensor, beta: float) -> Tensor:
    """Return DPO's loss, scaled as NPO's, of the log-ratios (B,) of the preferred and of the forgotten answers."""
    return -(2 / beta) * logsigmoid(beta * (preferred_ratio - forgotten_ratio)).mean()


def remembered_likelihood(model: nn.Module, split: Split, run: Run, *, stage: str = "reference") -> Tensor:
    """Return the log-probability of each record's whole answer under `model`, (n,), computed once. Cancelled, DeadlineExceeded: after any batch."""
    parts: list[Tensor] = []
    of = -(-len(split) // ROWS_AT_ONCE)
    with evaluating(model), torch.no_grad():
        for step, batch in enumerate(split.batches(ROWS_AT_ONCE), start=1):
            nll, _ = sequence_nll(model, batch)
            parts.append(-nll)
            run.report(step, of, stage=stage, loss=nll.mean())
    return torch.cat(parts)
