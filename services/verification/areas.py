"""Readings that are areas under the curve, of one model and of two on the same records."""

from collections.abc import Callable, Mapping

import numpy as np

from services.learning.data import Split
from services.learning.run import Run
from services.verification.metric import BesideUnseen
from services.verification.outputs import Outputs, generator_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.shadows import Shadows
from services.verification.statistics.roc import Sides, auc, auc_interval, paired_auc_difference
from services.verification.statistics.scores import Floats, Integers, margins
from services.verification.statistics.unseen import areas_beside

NO_COMMON_CLASS = Unmeasured("a_model_has_seen_all_records_of_these_classes")


def area(sides: Sides, weights: Floats, *, level: float, n: int, detail: Mapping[str, object]) -> Reading:
    """Return the AUC with DeLong's interval; `weights` (m,) are those of the non-members."""
    low, high = auc_interval(*sides, level=level, weights=weights)
    return Reading(auc(*sides, weights), low, high, level, n, detail)


def area_difference(mine: Sides, theirs: Sides, weights: Floats, run: Run, purpose: str, *, level: float, n: int) -> Reading:
    """Return AUC(mine) - AUC(theirs) on the same rows, both sides resampled in pairs as the run's seed and `purpose` have it."""
    value, (low, high) = paired_auc_difference(mine, theirs, level=level, rng=generator_of(run, purpose), weights=weights)
    return Reading(value, low, high, level, n)


def area_beside_unseen(
    rows: tuple[Split, Split], outputs: tuple[Outputs, Outputs], unseen: Shadows, score: "Score", *, level: float
) -> BesideUnseen | Unmeasured:
    """Return the AUC of `score` for members against non-members beside that of models which had not seen them, each on the rows it had not seen.

    `outputs` are the judged model's on the rows, sorted by record id; `score` makes a member-like score (..., n) of margins (..., n).
    """
    theirs = all_measured(unseen.unseen_on(side) for side in rows)
    if isinstance(theirs, Unmeasured):
        return theirs
    labels: tuple[Integers, Integers] = (outputs[0].y, outputs[1].y)
    if not all(
        np.isin(labels[1 - side][theirs[1 - side].out[model]], labels[side][theirs[side].out[model]]).any()
        for side in (0, 1)
        for model in range(len(theirs[0].out))
    ):
        return NO_COMMON_CLASS
    mine = Sides(*(score(margins(each.z, each.y)) for each in outputs))
    found = areas_beside(mine, Sides(*(score(each.margins) for each in theirs)), (theirs[0].out, theirs[1].out), labels, level=level)
    return BesideUnseen.of(found, level=level, n=min(len(labels[0]), len(labels[1])), models=len(theirs[0].out))


Score = Callable[[Floats], Floats]
