"""Choice of a checkpoint between two aims: the knee of those that no other is better than in both."""

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A checkpoint: `low` is to be low, `high` is to be high."""

    step: int
    low: float
    high: float


def undominated(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in one aim without losing in the other."""
    return [one for one in points if not any(o.low <= one.low and o.high >= one.high and (o.low < one.low or o.high > one.high) for o in points)]


def knee(points: Sequence[Point]) -> Point:
    """Return the undominated point nearest the best of both aims, each aim scaled to its range; the earliest of those as near."""
    front = undominated(points)
    lows, highs = [one.low for one in front], [one.high for one in front]
    width, height = max(lows) - min(lows) or 1.0, max(highs) - min(highs) or 1.0
    return min(front, key=lambda one: (((one.low - min(lows)) / width) ** 2 + ((max(highs) - one.high) / height) ** 2, one.step))
