"""Error histograms: how far each model's predictions are off, for the forgotten records and for records that it never saw."""

from collections.abc import Sequence

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, Axis, Figure, FigureData, Role, compared, counts_of, enough, forgotten_split, histogram, panel
from services.verification.metric import Models
from services.verification.outputs import rows_of
from services.verification.predictions import REAL_VALUED, predictions_on
from services.verification.reading import Measured, Unmeasured
from services.verification.statistics.bins import bin_count, shared_edges, skewed
from services.verification.statistics.scores import Floats


@FIGURES.register("error_histogram")
class ErrorHistogram(Figure):
    """Shares of the records by the absolute error of the prediction, of original, unlearned and retrained model over the same bins."""

    tasks = REAL_VALUED
    title = "Errors on the forgotten records beside records never trained on"
    caption = (
        "A model that still knows the forgotten records is less wrong on them than the retrained model is; one that was pushed too far is more wrong."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return the histograms; of several steps the mean error over them stands for a record."""
        sets = {"forgotten records": rows_of(data, forgotten_split(data)), "records never trained on": rows_of(data, "test")}
        named = compared(models)
        found: dict[str, dict[Role, Floats]] = {
            title: {role: predictions_on(model, rows, task).residuals for role, model in named.items()} for title, rows in enough(sets).items()
        }
        every = [column for columns in found.values() for column in columns.values()]
        log = skewed(every)
        edges = shared_edges(every, bin_count(min(len(column) for column in every)), log=log)
        panels = [panel(title, counts_of(columns, edges)) for title, columns in found.items()]
        return histogram(Axis("absolute error", "log" if log else "linear"), edges.tolist(), panels)
