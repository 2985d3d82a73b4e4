"""Forecasting: from a stretch of a series to the next step or the next several, each by its quantiles."""

from services.learning.real_valued import RealValued
from services.learning.targets import Targets
from services.learning.task import TASKS


@TASKS.register("forecasting")
class Forecasting(RealValued):
    """Records (B, T, ch) with targets (B, H), or (B,) for one step; the model returns (B, H * Q). By default the loss is the quantile loss.

    Source: the quantile loss of Lim et al., "Temporal Fusion Transformers", International Journal of Forecasting 2021.
    """

    modalities = frozenset({"series"})
    own = Targets.model_validate({"loss": "quantile"})
