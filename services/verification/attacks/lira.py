"""Likelihood-ratio membership inference: is a record's margin that of models which learned from it, or of models which did not?

Source: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022 (arXiv 2112.03570).
"""

from torch import nn

from services.learning.data import Split, Splits
from services.learning.task import Task
from services.verification.attack import ATTACKS
from services.verification.reference_attack import ReferenceAttack, Scored
from services.verification.shadows import margins_on
from services.verification.statistics.likelihood_ratio import ratios
from services.verification.statistics.scores import Floats


@ATTACKS.register("lira")
class LikelihoodRatio(ReferenceAttack):
    """AUC of the likelihood ratio, D_f against like-labelled records never trained on: .5 tells nothing, 1 member, 0 inverted.

    With fewer than 16 reference models a side the score is the offline, one-sided one with one spread for all records; from 16 on the online one.
    """

    paper = "arXiv 2112.03570"

    def scores(self, model: nn.Module, rows: Split, scored: Scored, data: Splits, task: Task) -> Floats:  # noqa: ARG002  the base's signature
        """Return the log ratio, or the log of the one-sided chance, of each row (n,)."""
        return ratios(margins_on(model, rows, task), *scored.references.on(rows)).scores

    def form(self, scored: Scored) -> str:
        """Return `online` or `offline`."""
        references, keep = scored.references.on(scored.members)
        return ratios(references[0], references, keep).form
