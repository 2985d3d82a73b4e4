"""Accuracy: the share of records that the model labels as they are labelled."""

from math import log

from pydantic import Field

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, BesideUnseen, Metric, Models
from services.verification.outputs import by_id, outputs_on, rows_of
from services.verification.reading import Unmeasured
from services.verification.shadows import Shadows
from services.verification.share_right import ShareRight
from services.verification.statistics.roc import class_weights
from services.verification.statistics.scores import Integers
from services.verification.statistics.unseen import Control, shares_beside


@METRICS.register("accuracy")
class Accuracy(ShareRight):
    """Share of right answers: 1 all right, 1/C guessing, 0 none; on forgotten records the aim is the retrained model's share, not 0.

    `detail` holds the accuracy of each class with its records.
    """

    splits = ("forget_train", "forget_test", "retain_train", "retain_test", "test")

    class Parameters(Metric.Parameters):
        """Parameters of the accuracy."""

        rows: int | None = Field(None, ge=50, le=10_000_000, description="At most this many records, drawn by the seed; null: all.")

    def rows(self, data: Splits, run: Run, split: str) -> Split | Unmeasured:
        """Return the records that are asked about: the same ones for every model."""
        rows, most = rows_of(data, split), self.parameters.rows
        if isinstance(rows, Unmeasured) or most is None or len(rows) <= most:
            return rows
        return by_id(rows, at_most=most, generator=run.stream(f"accuracy/{split}"))

    def beside_unseen(
        self,
        models: Models,
        data: Splits,
        task: Task,
        run: Run,  # noqa: ARG002
        *,
        split: str,
        unseen: Shadows,
    ) -> BesideUnseen | Unmeasured:
        """Return the accuracy beside the mean, over the records, of that of models which had not seen the record.

        Those learned from half of the records. What that costs is read from held-out records, which neither they nor the original have seen, and is
        added to their accuracy.
        """
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        theirs = unseen.unseen_on(rows)
        if isinstance(theirs, Unmeasured):
            return theirs
        out = outputs_on(models.unlearned, rows, task)
        control = _control(models, data, task, out.y, unseen)
        found = shares_beside(out.right, theirs.right, theirs.out, level=self.parameters.level, control=control)
        return BesideUnseen.of(found, level=self.parameters.level, n=len(out), models=len(theirs.right))


def _control(models: Models, data: Splits, task: Task, labels: Integers, unseen: Shadows) -> Control | None:
    """Return what held-out records of the same labels (n,), weighted to their mix, say of the original and of the models on halves; None without any.

    The original learned from all N records, a retrained model learns from N - k, the others from H. Accuracy is taken to rise with the logarithm of
    the number of records, so that of the original's lead a retrained model has the share log((N - k) / H) / log(N / H).
    """
    held_out = rows_of(data, "test")
    kept, whole = len(data.retain), len(data.retain) + len(data.forget)
    if not isinstance(held_out, Split) or kept == 0 or whole <= unseen.learned:
        return None
    theirs = unseen.unseen_on(held_out)
    out = outputs_on(models.original, held_out, task)
    weights = class_weights(labels, out.y)
    if isinstance(theirs, Unmeasured) or weights.sum() == 0:
        return None
    return Control(out.right, theirs.right, weights, log(kept / unseen.learned) / log(whole / unseen.learned))
