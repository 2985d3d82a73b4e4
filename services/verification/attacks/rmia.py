"""Relative membership inference: for what share of a population is a record more likely under the judged model than it ought to be?

Source: Zarifzadeh et al., "Low-Cost High-Power Membership Inference Attacks", ICML 2024 (arXiv 2312.03262).
"""

from typing import Literal

import numpy as np
from pydantic import Field
from scipy import special
from torch import nn

from services.learning.data import Split, Splits
from services.learning.task import Task
from services.verification.attack import ATTACKS
from services.verification.outputs import rows_of
from services.verification.reading import Unmeasured
from services.verification.reference_attack import ReferenceAttack, Scored
from services.verification.shadows import margins_on
from services.verification.statistics.relative_membership import OFFLINE_A, expected_probability, relative_scores
from services.verification.statistics.scores import Floats


@ATTACKS.register("rmia")
class RelativeMembership(ReferenceAttack):
    """AUC of the relative score, D_f against like-labelled records never trained on: .5 tells nothing, 1 member, 0 inverted.

    The population is the verification split, of which no reference model saw a record; without one it is the non-members themselves.
    """

    paper = "arXiv 2312.03262"

    class Parameters(ReferenceAttack.Parameters):
        """Parameters of the attack."""

        gamma: float = Field(1.0, ge=1, le=100, description="How many times more likely a record must be than a member of the population.")
        references: Literal["offline", "online"] = Field(
            "offline", description="Expected probability from models that did not learn from a record, or from all."
        )

    def scores(self, model: nn.Module, rows: Split, scored: Scored, data: Splits, task: Task) -> Floats:
        """Return the share of the population below each row (n,)."""
        found = rows_of(data, "test")
        population = scored.non_members if isinstance(found, Unmeasured) else found
        return relative_scores(self._ratios(model, rows, scored, task), self._ratios(model, population, scored, task), gamma=self.parameters.gamma)

    def _ratios(self, model: nn.Module, rows: Split, scored: Scored, task: Task) -> Floats:
        phi, keep = scored.references.on(rows)
        a = OFFLINE_A if self.parameters.references == "offline" else None
        held = np.asarray(special.expit(margins_on(model, rows, task)), dtype=np.float64)
        return held / expected_probability(np.asarray(special.expit(phi), dtype=np.float64), keep, a=a)

    def form(self, scored: Scored) -> str:  # noqa: ARG002  the base's signature
        """Return `online` or `offline`."""
        return str(self.parameters.references)
