"""Mean squared error of predictions."""

import numpy as np

from services.verification.metric import METRICS
from services.verification.predictions import Predictions
from services.verification.statistics.scores import Floats
from services.verification.target_error import TargetError


@METRICS.register("mean_squared_error")
class MeanSquaredError(TargetError):
    """Mean of (prediction - target) squared, over steps and records: 0 exact. With `scale` spread it is the share of variance not explained."""

    def errors(self, found: Predictions, levels: tuple[float, ...]) -> Floats:  # noqa: ARG002  points are one number for each step
        """Return the squared error of each record, (n,)."""
        return np.square(found.points - found.y).mean(axis=1)
