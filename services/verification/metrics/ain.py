"""The anamnesis index: how fast the unlearned model relearns, beside the retrained one.

Source: Chundawat et al., "Zero-Shot Machine Unlearning" (arXiv 2201.05629).
"""

from torch import nn

from services.learning.run import Run
from services.verification.metric import METRICS, Models
from services.verification.outputs import NO_REFERENCE
from services.verification.reading import Unmeasured
from services.verification.relearning import Anamnesis


@METRICS.register("ain")
class AnamnesisIndex(Anamnesis):
    """Relearn steps of the model over those of the retrained one: 1 alike, far below 1 information is left, far above 1 over-erased.

    Median over seeds of the ratio under the same batches, with the bootstrap interval of its logarithm. `detail.bound` says where a run was cut
    off and the value is only a lower or an upper bound; `detail.coarse` that 1 to 3 steps quantise it grossly; a model already at the bar has 0.
    Unmeasured where the retrained model is at the bar from the start (it knows such records anyway), or where runs of both were cut off.
    """

    compares_to = frozenset({"retrained"})

    def reference(self, models: Models, run: Run) -> nn.Module | Unmeasured:  # noqa: ARG002
        """Return the retrained model."""
        return NO_REFERENCE if models.retrained is None else models.retrained
