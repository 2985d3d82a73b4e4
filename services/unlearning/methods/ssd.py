"""Selective synaptic dampening: what matters for the forget set far more than for the whole training set is scaled down, without training.

Source: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024 (arXiv 2308.07707).
Differs: importances are those of single records, and the released code's of batches only where those name no weights that will do, or where they
are asked for; alpha is found on the analysis split unless given, and a given one that costs too much is doubled: at the paper's 10 some classes
take the rest of the model with them. The importance for the whole set depends on no request and may be kept.
"""

from services.unlearning.mechanisms.dampening import SynapticDampening
from services.unlearning.method import METHODS


@METHODS.register("ssd")
class Ssd(SynapticDampening):
    """Dampen weights by squared gradients of the loss."""

    tasks = frozenset({"classification", "regression", "forecasting"})
    scalar = "loss"
