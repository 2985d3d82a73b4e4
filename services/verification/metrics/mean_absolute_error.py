"""Mean absolute error of predictions."""

from services.verification.metric import METRICS
from services.verification.predictions import Predictions
from services.verification.statistics.scores import Floats
from services.verification.target_error import TargetError


@METRICS.register("mean_absolute_error")
class MeanAbsoluteError(TargetError):
    """Mean of |prediction - target|, over steps and records: 0 exact. Of quantiles the one nearest the middle is the prediction."""

    def errors(self, found: Predictions, levels: tuple[float, ...]) -> Floats:  # noqa: ARG002  points are one number for each step
        """Return the absolute error of each record, (n,)."""
        return found.residuals
