"""Activation distance: how far the probabilities lie from the retrained model's, record by record."""

from services.verification.distance import OutputDistance
from services.verification.metric import METRICS
from services.verification.statistics.divergence import euclidean
from services.verification.statistics.scores import Floats


@METRICS.register("activation_distance")
class ActivationDistance(OutputDistance):
    """Mean Euclidean distance of the soft-max outputs (outputs, despite the name): 0 equal, sqrt 2 opposite certainties.

    The retrained model itself is measured against a second retrained model: that is the floor, below which no distance means anything.
    """

    unit = "share"
    bounds = (0.0, 2**0.5)

    def distances(self, log_p: Floats, log_q: Floats) -> Floats:
        """Return the Euclidean distance of the probabilities of each row, (n,)."""
        return euclidean(log_p, log_q)
