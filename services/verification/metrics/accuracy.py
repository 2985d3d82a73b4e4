"""Accuracy: the share of records that the model labels as they are labelled."""

from services.verification.metric import METRICS
from services.verification.share_right import ShareRight


@METRICS.register("accuracy")
class Accuracy(ShareRight):
    """Share of right answers: 1 all right, 1/C guessing, 0 none; on forgotten records the aim is the retrained model's share, not 0.

    `detail` holds the accuracy of each class with its records.
    """

    splits = ("forget_train", "forget_test", "retain_train", "retain_test", "test")
