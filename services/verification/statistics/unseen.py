"""A model beside models that had not seen a record: shares of right answers, and areas under the curve, over records and models alike.

Of R models each learned from a random half of the records, so that of each record about half of the models say what one says that never saw it. Both
records and models are samples: the variance of a mean is the one that records give it, plus that of the models' own means over their number. Records
are shared by models, so their part is counted a little twice, which makes intervals wider rather than narrower (at eight models by a tenth or so).
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.verification.statistics.intervals import Interval, normal_quantile
from services.verification.statistics.roc import Sides, auc, class_weights, placements
from services.verification.statistics.scores import Floats, Integers

Flags = NDArray[np.bool_]
Difference = Callable[[int, int, Flags], float]


class Beside(NamedTuple):
    """`value` is the judged model minus the others, with its interval; `reference` what the others have in the mean.

    `floor` is how far two of them lie apart on records that neither saw, brought to the number of all records by the square root. `correction` is
    what was taken off for the size of what they learned from.
    """

    value: float
    interval: Interval
    reference: float
    floor: float
    correction: float = 0.0


class Control(NamedTuple):
    """Records that no model has seen: right answers of the original (v,) and of the models (R, v), the weight of each record (v,).

    `share` is that part of the difference between the two by which a retrained model is taken to be better than models of half the records.
    """

    right: Flags
    theirs: Flags
    weights: Floats
    share: float


def shares_beside(right: Flags, theirs: Flags, out: Flags, *, level: float, control: Control | None = None) -> Beside:
    """Return the share of right answers of a model, `right` (n,), beside that of models `theirs` (R, n) that had not seen the record, `out` (R, n).

    With a `control` the models' share is raised by what they lack in size, which both they and the original show on records that nobody saw.

    Raises:
        ValueError: a record has no model that had not seen it, or a model has seen every record.
    """
    _every_side_has_some(out)
    ours, rows = right.astype(np.float64), len(right)
    others = np.where(out, theirs, 0.0).sum(axis=0) / out.sum(axis=0)
    of_models = np.array([float(np.mean(ours[mine] - each[mine])) for each, mine in zip(theirs.astype(np.float64), out, strict=True)])
    value, of_rows = float(np.mean(ours - others)), float(np.var(ours - others, ddof=1)) / rows if rows > 1 else 0.0
    correction = 0.0
    if control is not None:
        weights = control.weights / control.weights.sum()
        gaps = control.right.astype(np.float64) - control.theirs.astype(np.float64)
        correction = control.share * float(gaps.mean(axis=0) @ weights)
        of_models = of_models - control.share * (gaps @ weights)
        spread = np.square(weights * (gaps.mean(axis=0) - gaps.mean(axis=0) @ weights))
        of_rows += control.share**2 * float(spread.sum()) * len(weights) / max(1, len(weights) - 1)
    half = _half_width(of_rows, of_models, rows, level)
    floor = _apart(out, lambda first, second, common: float(np.mean(theirs[first, common]) - np.mean(theirs[second, common])))
    value -= correction
    return Beside(value, _clipped(value, half), float(np.mean(others)) + correction, floor, correction)


def areas_beside(mine: Sides, theirs: Sides, out: tuple[Flags, Flags], labels: tuple[Integers, Integers], *, level: float) -> Beside:
    """Return the AUC of a model beside the mean AUC of models, each on the members and non-members that it had not seen.

    Args:
        mine: scores (m,) of members and (k,) of non-members; theirs: (R, m) and (R, k); out: which of them a model had not seen, (R, m) and (R, k).
        labels: (m,) and (k,); the non-members of each model are weighted to the class mix of its members.
    Raises:
        ValueError: a model has seen every member, or every non-member of the members' classes.
    """
    count, m, k = len(theirs.members), len(mine.members), len(mine.non_members)
    effect_m, effect_k = np.zeros(m), np.zeros(k)
    gaps, areas = np.zeros(count), np.zeros(count)
    for number in range(count):
        inside, outside, share = _of_one(number, out, labels)
        first = placements(mine.members[inside], mine.non_members[outside], share)
        second = placements(theirs.members[number, inside], theirs.non_members[number, outside], share)
        areas[number], gaps[number] = float(second[0].mean()), float((first[0] - second[0]).mean())
        effect_m[inside] += (first[0] - second[0] - gaps[number]) / len(inside) / count
        effect_k[outside] += share * (first[1] - second[1] - gaps[number]) / count
    of_rows = float(np.square(effect_m).sum()) * m / max(1, m - 1) + float(np.square(effect_k).sum()) * k / max(1, k - 1)
    value = float(gaps.mean())

    def apart(first: int, second: int, common: Flags) -> float:
        both = out[1][first] & out[1][second]
        inside, outside = np.flatnonzero(common), np.flatnonzero(both & np.isin(labels[1], labels[0][common]))
        inside = inside[np.isin(labels[0][inside], labels[1][outside])]
        if not len(inside):
            return 0.0
        share = class_weights(labels[0][inside], labels[1][outside])
        areas = [auc(theirs.members[one, inside], theirs.non_members[one, outside], share) for one in (first, second)]
        return areas[0] - areas[1]

    return Beside(value, _clipped(value, _half_width(of_rows, gaps, min(m, k), level)), float(areas.mean()), _apart(out[0], apart))


def _of_one(number: int, out: tuple[Flags, Flags], labels: tuple[Integers, Integers]) -> tuple[Integers, Integers, Floats]:
    """Return the members and non-members that one model had not seen, of classes on both sides, and the weights of the non-members, which sum to 1."""
    inside, outside = (np.flatnonzero(side[number]) for side in out)
    outside = outside[np.isin(labels[1][outside], labels[0][inside])]
    inside = inside[np.isin(labels[0][inside], labels[1][outside])]
    if not len(inside):
        raise ValueError("a model has seen every member, or every non-member of its class")
    weights = class_weights(labels[0][inside], labels[1][outside])
    return inside, outside, weights / weights.sum()


def _every_side_has_some(out: Flags) -> None:
    if not (out.any(axis=0).all() and out.any(axis=1).all()):
        raise ValueError("a record has no model that had not seen it, or a model has seen every record")


def _half_width(of_rows: float, of_models: Floats, rows: int, level: float) -> float:
    """Return half the width of the interval; never less than what so few records leave possible where none of them differs (Tango's bound)."""
    z = normal_quantile(level)
    of_all = of_rows + (float(np.var(of_models, ddof=1)) / len(of_models) if len(of_models) > 1 else 0.0)
    return max(z * float(np.sqrt(of_all)), z**2 / (rows + z**2))


def _clipped(value: float, half: float) -> Interval:
    return Interval(max(-1.0, value - half), min(1.0, value + half))


def _apart(out: Flags, difference: Difference) -> float:
    """Return the mean distance of two models on the records that neither saw, brought to the number of all records."""
    found: list[float] = []
    for first, second in combinations(range(len(out)), 2):
        common = out[first] & out[second]
        if common.any():
            found.append(abs(difference(first, second, common)) * float(np.sqrt(common.mean())))
    return float(np.mean(found)) if found else 0.0
