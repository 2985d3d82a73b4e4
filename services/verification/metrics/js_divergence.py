"""Jensen-Shannon divergence from the retrained model's outputs, record by record."""

from services.verification.distance import OutputDistance
from services.verification.metric import METRICS
from services.verification.statistics.divergence import jensen_shannon_bits
from services.verification.statistics.scores import Floats


@METRICS.register("js_divergence")
class JsDivergence(OutputDistance):
    """Mean Jensen-Shannon divergence in bits: 0 equal, 1 disjoint.

    The retrained model itself is measured against a second retrained model: that is the floor, below which no distance means anything.
    """

    unit = "bits"
    bounds = (0.0, 1.0)

    def distances(self, log_p: Floats, log_q: Floats) -> Floats:
        """Return the divergence of each row, (n,), bits."""
        return jensen_shannon_bits(log_p, log_q)
