"""The input of a network's last linear layer: what it knows of a record before it decides."""

import numpy as np
import torch
from torch import Tensor, nn

from services.learning.cache import model_digest, records_digest, worth_keeping
from services.learning.data import Split
from services.learning.modes import evaluating, image_layout, inputs_of
from services.learning.run import Run
from services.verification.outputs import NO_ARCHITECTURE, order_by_id
from services.verification.reading import Unmeasured
from services.verification.statistics.scores import Floats

BATCH = 1024
UNUSABLE = Unmeasured("no_finite_features")


class NotOneARecord(Exception):
    """A network called its head more or less than once for each record."""


def features_on(model: nn.Module, rows: Split, run: Run, *, batch_size: int = BATCH) -> Floats | Unmeasured:
    """Return the penultimate features of every row, (n, d) float64, sorted by record id; unmeasured where the head is not to be found.

    Those of many rows are kept in the cache of the run, row by row.
    """
    if run.architecture is None:
        return NO_ARCHITECTURE
    try:
        head = model.get_submodule(run.architecture.head)
    except AttributeError:
        return Unmeasured("no_head")

    def key() -> dict[str, object]:
        return {"checkpoint": model_digest(model), "records": records_digest(rows), "batch": batch_size}

    def compute() -> dict[str, Tensor]:
        return {"features": _read(model, head, rows, batch_size)}

    try:
        kept = run.cache.remember("features", key, compute, records=rows.ids, by_row=True) if worth_keeping(model, rows) else compute()
    except NotOneARecord:
        return UNUSABLE
    features = kept["features"].cpu().double().numpy()
    return features[order_by_id(rows)] if np.isfinite(features).all() else UNUSABLE


def _read(model: nn.Module, head: nn.Module, rows: Split, batch_size: int) -> Tensor:
    """Return the input of `head` for every row, (n, d) float32 on the CPU. Raises NotOneARecord."""
    found: list[Tensor] = []
    with evaluating(model), image_layout(model), torch.inference_mode(), inputs_of(head) as seen:
        for batch in rows.batches(batch_size):
            model(batch.x)
            found += [each.flatten(1).float().cpu() for each in seen]
            seen.clear()
    features = torch.cat(found)
    if len(features) != len(rows):
        raise NotOneARecord
    return features
