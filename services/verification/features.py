"""The input of a network's last linear layer: what it knows of a record before it decides."""

import numpy as np
import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.modes import evaluating, image_layout, inputs_of
from services.learning.run import Run
from services.verification.outputs import NO_ARCHITECTURE, order_by_id
from services.verification.reading import Unmeasured
from services.verification.statistics.scores import Floats

BATCH = 1024


def features_on(model: nn.Module, rows: Split, run: Run, *, batch_size: int = BATCH) -> Floats | Unmeasured:
    """Return the penultimate features of every row, (n, d) float64, sorted by record id; unmeasured where the head is not to be found."""
    if run.architecture is None:
        return NO_ARCHITECTURE
    try:
        head = model.get_submodule(run.architecture.head)
    except AttributeError:
        return Unmeasured("no_head")
    found: list[Tensor] = []
    with evaluating(model), image_layout(model), torch.inference_mode(), inputs_of(head) as seen:
        for batch in rows.batches(batch_size):
            model(batch.x)
            found += [each.flatten(1).float().cpu() for each in seen]
            seen.clear()
    features = torch.cat(found).double().numpy()
    order = order_by_id(rows)
    if len(features) != len(rows) or not np.isfinite(features).all():
        return Unmeasured("no_finite_features")
    return features[order]
