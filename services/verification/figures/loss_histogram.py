"""Loss histograms: how well each model predicts the forgotten records, and records that it never saw."""

from collections.abc import Sequence

import torch
from torch import nn

from services.learning.data import Split, Splits
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, Axis, Figure, FigureData, Role, compared, counts_of, enough, forgotten_split, histogram, panel
from services.verification.metric import Models
from services.verification.outputs import by_id, outputs_on, rows_of
from services.verification.reading import Measured, Unmeasured
from services.verification.statistics.bins import bin_count, shared_edges, skewed
from services.verification.statistics.scores import Floats, negative_losses

MOST_ROWS = 512
BATCH = 64


@FIGURES.register("loss_histogram")
class LossHistogram(Figure):
    """Shares of the records by their loss, of the original, the unlearned and the retrained model over the same bins."""

    tasks = frozenset({"classification", "language_model"})
    title = "Loss of the forgotten records beside records never trained on"
    caption = (
        "The loss says how wrong a model is on a record. A model that still knows the forgotten records has smaller losses on them than the "
        "retrained model has; one that was pushed too far has larger ones."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return the histograms; records never trained on are left out where none are held."""
        sets = {"forgotten records": rows_of(data, forgotten_split(data)), "records never trained on": rows_of(data, "test")}
        named = compared(models)
        losses: dict[str, dict[Role, Floats]] = {
            title: {role: _losses(model, rows, task, run) for role, model in named.items()} for title, rows in enough(sets).items()
        }
        every = [column for columns in losses.values() for column in columns.values()]
        log = skewed(every)
        edges = shared_edges(every, bin_count(min(len(column) for column in every)), log=log)
        panels = [panel(title, counts_of(columns, edges)) for title, columns in losses.items()]
        return histogram(Axis(f"loss ({task.loss_unit})", "log" if log else "linear"), edges.tolist(), panels)


def _losses(model: nn.Module, rows: Split, task: Task, run: Run) -> Floats:
    """Return the loss of each record, (n,) float64; where the outputs are no logits of classes, of 512 records at most."""
    if task.name == "classification":
        found = outputs_on(model, rows, task)
        return -negative_losses(found.z, found.y)
    rows = by_id(rows, at_most=MOST_ROWS, generator=run.stream("figures/loss_histogram"))
    with torch.inference_mode(), evaluating(model):
        return torch.cat([task.losses(model, batch).double() for batch in rows.batches(BATCH)]).cpu().numpy()
