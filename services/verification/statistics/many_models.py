"""A statistic of many unlearned against as many retrained models, beside what retrained models give against each other."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.verification.statistics.scores import Floats

SHUFFLES = 199

Chosen = NDArray[np.bool_]
Statistic = Callable[[Floats, Chosen], Floats]


class Beside(NamedTuple):
    """`value`: unlearned against retrained. `null`: further retrained models against the same ones, which is what the number is where nothing is left.

    `p` is the chance that as much is seen where unlearned and retrained models are of one distribution.
    """

    value: float
    null: float
    p: float


def beside(statistic: Statistic, unlearned: Floats, retrained: Floats, *, larger_is_farther: bool, rng: np.random.Generator) -> Beside:
    """Return a statistic of margins unlearned (N, n) against the first half of retrained (2N, n), the null of the second half, and the p-value.

    `statistic(pooled, chosen)` takes margins (2N, n) of both sides and which rows are the unlearned ones in each of b labellings, (b, 2N), and
    returns (b,). Under the null every labelling is as likely as the true one, so p is exact for any number of models; it cannot fall below 1 / 200.

    Raises:
        ValueError: there are not twice as many retrained models as unlearned ones.
    """
    models = len(unlearned)
    if len(retrained) != 2 * models:
        raise ValueError("the null takes as many retrained models again: two for each unlearned one")
    counterpart, others = retrained[:models], retrained[models:]
    true = np.arange(2 * models)[None, :] < models
    labellings = np.concatenate([true, rng.permuted(np.repeat(true, SHUFFLES, axis=0), axis=1)])
    found = statistic(np.concatenate([unlearned, counterpart]), labellings)
    null = statistic(np.concatenate([others, counterpart]), true)
    sign = 1.0 if larger_is_farther else -1.0
    as_far = int(np.sum(sign * found[1:] >= sign * found[0]))
    return Beside(float(found[0]), float(null[0]), (1 + as_far) / (1 + SHUFFLES))
