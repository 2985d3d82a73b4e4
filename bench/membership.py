"""The relative membership score beside the matrix of all pairs that published code fills, at 4,000 records and a population of as many."""

import time
from collections.abc import Callable

import numpy as np

from bench.row import Row
from services.verification.statistics.relative_membership import relative_scores

SIZE = 4000
REPEATS = 5
CALLS = 20  # of ours in one timing: one alone is near the resolution of the clock


def measure() -> Row:
    """Return the processor time of the matrix over that of the sorted form, the least of five runs each; both give the same numbers."""
    rng = np.random.default_rng(6)
    records, population = rng.random(SIZE), rng.random(SIZE)

    def pairs() -> np.ndarray:
        return (records[:, None] / population[None, :] >= 1).mean(axis=1)

    ours = least(lambda: [relative_scores(records, population) for _ in range(CALLS)]) / CALLS
    theirs = least(pairs)
    furthest = float(np.abs(relative_scores(records, population) - pairs()).max())
    detail = {"records": SIZE, "population": SIZE, "sorted_ms": round(1e3 * ours, 3), "pairs_ms": round(1e3 * theirs, 1), "furthest_apart": furthest}
    return Row("rmia against the matrix of pairs", theirs / ours, 100.0, "higher", detail)


def least(work: Callable[[], object]) -> float:
    """Return the least processor time of several runs, in seconds."""
    taken: list[float] = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)
