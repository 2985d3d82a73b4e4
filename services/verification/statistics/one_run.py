"""What the guesses of one run show: a lower bound on epsilon from canaries that were each included, or asked to be erased, by a coin.

Source: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023 (arXiv 2305.08846), theorem 5.2.
"""

import numpy as np
from scipy import stats

HIGHEST = 64.0
HALVINGS = 60


def chance_of_guesses(epsilon: float, *, canaries: int, guesses: int, right: int, delta: float = 0.0) -> float:
    """Return how probable `right` right guesses of `guesses` are, at most, under (epsilon, delta); `canaries` were planted in all."""
    q = 1.0 / (1.0 + np.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, q))
    if delta == 0 or right == 0:
        return min(1.0, tail)
    steps = np.arange(1, right + 1)
    slack = (stats.binom.sf(right - steps - 1, guesses, q) - tail) / steps
    return min(1.0, tail + 2 * canaries * delta * float(slack.max()))


def epsilon_of_guesses(*, canaries: int, guesses: int, right: int, delta: float = 0.0, alpha: float = 0.05) -> float:
    """Return the largest epsilon that the guesses refute at `alpha`; 0 means that nothing was shown, not that epsilon is 0.

    The number of guesses must be fixed before any is looked at: the best of several quoted at one `alpha` would refute what holds.

    Raises:
        ValueError: more guesses than canaries, or more right than guessed.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError("right guesses cannot exceed guesses, nor guesses canaries")

    def refuted(epsilon: float) -> bool:
        return chance_of_guesses(epsilon, canaries=canaries, guesses=guesses, right=right, delta=delta) < alpha

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, HIGHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
