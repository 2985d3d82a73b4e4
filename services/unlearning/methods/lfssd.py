"""Loss-free selective synaptic dampening: as `ssd`, with the outputs' squared norm in place of the loss, so that no label is read.

Source: Foster et al., "Loss-Free Machine Unlearning", ICLR 2024 Tiny Papers (arXiv 2402.19308).
Differs: as `ssd` does; labels serve the choice of alpha alone.
"""

from services.unlearning.mechanisms.dampening import SynapticDampening
from services.unlearning.method import METHODS


@METHODS.register("lfssd")
class Lfssd(SynapticDampening):
    """Dampen weights by absolute gradients of the outputs' squared norm."""

    scalar = "output_norm"
