"""The anamnesis index without a retrained model: how fast the unlearned model relearns, beside a newly initialised one."""

from torch import nn

from services.learning.run import Run
from services.verification.metric import METRICS, Models
from services.verification.outputs import NO_ARCHITECTURE
from services.verification.reading import Unmeasured
from services.verification.relearning import Anamnesis


@METRICS.register("ain_fresh")
class FreshAnamnesisIndex(Anamnesis):
    """Relearn steps of the model over those of a network that was never trained: far below 1 for nearly every model, retrained ones too.

    It is the stand-in for `ain` where there is no retrained model, and not to be compared with it: a fresh network has to learn all that the
    retained records teach as well. Otherwise as `ain`.
    """

    def reference(self, models: Models, run: Run) -> nn.Module | Unmeasured:  # noqa: ARG002
        """Return a network of the run's architecture, freshly drawn."""
        return NO_ARCHITECTURE if run.architecture is None else run.fresh_model("ain_fresh")
