"""Prediction densities: what each model predicts for the forgotten records."""

from collections.abc import Sequence

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, Axis, Figure, FigureData, Role, compared, counts_of, forgotten_split, histogram, panel
from services.verification.metric import Models
from services.verification.outputs import rows_of
from services.verification.predictions import REAL_VALUED, predictions_on
from services.verification.reading import Measured, Unmeasured
from services.verification.statistics.bins import bin_count, shared_edges
from services.verification.statistics.scores import Floats


@FIGURES.register("prediction_density")
class PredictionDensity(Figure):
    """Shares of the forgotten records by what is predicted for them, of original, unlearned and retrained model over the same bins."""

    tasks = REAL_VALUED
    title = "Predictions for the forgotten records"
    caption = (
        "The unlearned model should spread its predictions as the retrained model does, which never saw these records. Predictions that follow the "
        "original model instead are a sign that the records are still known."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return the histogram; of several steps the mean over them stands for a record."""
        rows = rows_of(data, forgotten_split(data))
        if isinstance(rows, Unmeasured):
            return rows
        found: dict[Role, Floats] = {role: predictions_on(model, rows, task).points.mean(axis=1) for role, model in compared(models).items()}
        edges = shared_edges(list(found.values()), bin_count(len(rows)))
        return histogram(Axis("prediction"), edges.tolist(), [panel("forgotten records", counts_of(found, edges))])
