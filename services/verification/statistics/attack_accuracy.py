"""Scores of published tables that are made of how often a membership attack is right, and of accuracy.

Source: Cadet et al., "Deep Unlearn: Benchmarking Machine Unlearning for Image Classification", arXiv 2410.01276 (indiscernibility); Choi and Na,
"Towards Machine Unlearning Benchmarks: Forgetting the Personal Identities in Facial Recognition Systems", arXiv 2311.02240 (NoMUS).
"""

import numpy as np

from services.verification.statistics.intervals import Interval, clopper_pearson
from services.verification.statistics.learned import SplitCounts, advantage_interval


def indiscernibility(attack: float) -> float:
    """Return 1 - |attack - .5| / .5 of the share of right calls: 1 a coin does as well, 0 the attack is always right, or always wrong."""
    return 1.0 - abs(attack - 0.5) / 0.5


def nomus(test: float, attack: float) -> float:
    """Return .5 test + .5 (1 - 2 |attack - .5|) of held-out accuracy and the share of right calls: 1 all right and indiscernible, 0 neither."""
    return 0.5 * test + 0.5 * indiscernibility(attack)


def indiscernibility_interval(tested: SplitCounts, *, level: float, rng: np.random.Generator) -> Interval:
    """Return the interval of the indiscernibility: that of the attack's distance from one half over rows, given the fits, turned over."""
    near, far = advantage_interval(tested, level=level, rng=rng)
    return Interval(1.0 - 2.0 * far, 1.0 - 2.0 * near)


def nomus_interval(right: int, asked: int, tested: SplitCounts, *, level: float, rng: np.random.Generator) -> Interval:
    """Return the interval of NoMUS from `right` of `asked` held-out records and the attack.

    Each half has an interval that misses half as often as `level` allows, so that their sum holds however the two hang together: the attack's
    non-members are held-out records too.
    """
    each = 1.0 - (1.0 - level) / 2
    accuracy = clopper_pearson(right, asked, level=each)
    hidden = indiscernibility_interval(tested, level=each, rng=rng)
    return Interval(0.5 * (accuracy.low + hidden.low), 0.5 * (accuracy.high + hidden.high))
