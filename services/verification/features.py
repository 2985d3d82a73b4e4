"""The input of a network's last linear layer: what it knows of a record before it decides."""

import numpy as np
import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.modes import evaluating, image_layout
from services.learning.run import Run
from services.verification.reading import Unmeasured
from services.verification.statistics.scores import Floats

BATCH = 1024


def features_on(model: nn.Module, rows: Split, run: Run, *, batch_size: int = BATCH) -> Floats | Unmeasured:
    """Return the penultimate features of every row, (n, d) float64, sorted by record id; unmeasured where the head is not to be found."""
    if run.architecture is None:
        return Unmeasured("no_architecture")
    try:
        head = model.get_submodule(run.architecture.head)
    except AttributeError:
        return Unmeasured("no_head")
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001  the signature of a hook
        seen.append(inputs[0].detach().flatten(1).float().cpu())

    hook = head.register_forward_pre_hook(keep)
    try:
        with evaluating(model), image_layout(model), torch.inference_mode():
            for batch in rows.batches(batch_size):
                model(batch.x)
    finally:
        hook.remove()
    features = torch.cat(seen).double().numpy()
    order = sorted(range(len(rows)), key=rows.ids.__getitem__)
    if len(features) != len(rows) or not np.isfinite(features).all():
        return Unmeasured("no_finite_features")
    return features[order]
