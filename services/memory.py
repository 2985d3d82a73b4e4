"""How much memory a job takes: one formula for the gateway, which refuses what no worker could hold, and for the worker about to open the job.

Weights are counted by how often they stand in memory at the worst moment of a step; beside them stand the records, and what the batches of one
step leave for the backward pass. What a runner holds before it has a job (interpreter, libraries) is not counted: a worker's capacity is without it.

An estimate, not a bound: the peaks measured for `grad_diff` with its references and for `undial`, with 25 million weights and few records, lie within a
third of it. It knows nothing of what a convolution keeps of a batch, and of metrics that train a copy it knows two copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

FLOAT_BYTES = 4
RECORDS_HELD = 12
"""How many bytes in memory a byte of the compressed record file is taken to become: columns, tensors, one part again as a batch. Not measured."""
JUDGED = 2
"""Original and unlearned model, while readings are taken."""
REFERENCES = 2
"""The retrained reference that is finished, and the original that a retraining is compared with; its twin is the model in training."""
COPIED_BY_METRICS = 2
BLOCK_WIDTHS = 18
"""Numbers that one transformer block keeps of one token for the backward pass, in hidden widths: norms, projections, the wide layer and its inputs."""
LOGIT_COPIES = 3
"""Logits, their log-softmax and the gradient of one of them."""
ROWS_WITHOUT_GRADIENT = 64
STATES = {"adam": 2.0, "adamw": 2.0, "sgd": 1.0}
MANY_NETWORKS = frozenset({"image_generation"})
DEFAULT: dict[str, Any] = {"copies": 2.0, "trained": 1.0, "states": 2.0, "batches": 1.0}


@dataclass(frozen=True, slots=True)
class Need:
    """What a job takes: `copies` times `weights_bytes`, beside `records_bytes` and `batch_bytes`."""

    weights_bytes: int
    copies: float
    records_bytes: int = 0
    batch_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes on one device."""
        return self.on(1)

    def on(self, devices: int) -> int:
        """Return the bytes on each of `devices` that share the weights; records and batches stand on each whole."""
        return ceil(self.copies * self.weights_bytes / devices) + self.records_bytes + self.batch_bytes


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one worker can give a job: `memory_bytes` on each of `devices`, beside what its runner holds already. `kind` is `cpu` or `cuda`."""

    memory_bytes: int
    devices: int = 1
    kind: str = "cpu"

    def devices_for(self, need: Need, *, sharded: bool) -> int | None:
        """Return the fewest devices on which a job fits, where it can be dealt to several (`sharded`); None where it fits on none."""
        most = self.devices if sharded else 1
        return next((devices for devices in range(1, most + 1) if need.on(devices) <= self.memory_bytes), None)


def method_copies(fact: Mapping[str, Any], params: Mapping[str, Any]) -> float:
    """Return how often the weights stand in memory while a method runs.

    Args:
        fact: the fact `memory` of the method: `copies` of the whole, the share of the weights that is `trained` with a gradient and `states` of its
            optimiser, `adapter`, the parameter that trains an adapter in their place, and `more`, copies by parameter and value (`name=value`).
        params: of the job.
    """
    held = {**DEFAULT, **fact}
    trained = 0.0 if held.get("adapter") and params.get(held["adapter"]) else float(held["trained"])
    more = sum(float(copies) for choice, copies in (held.get("more") or {}).items() if _chosen(choice, params))
    return float(held["copies"]) + more + trained * (1.0 + float(held["states"]))


def _chosen(choice: str, params: Mapping[str, Any]) -> bool:
    name, _, value = choice.partition("=")
    return str(params.get(name)) == value


def training_copies(recipe: Mapping[str, Any]) -> float:
    """Return how often the weights stand in memory while a model is trained by a recipe: itself, its gradient, the states of its optimiser."""
    return 2.0 + STATES.get(str(recipe.get("optimizer", "adam")), 2.0)


def job_copies(fact: Mapping[str, Any], params: Mapping[str, Any], recipe: Mapping[str, Any] | None, *, retrained: bool) -> float:
    """Return the most of the method and of its judging, where with `retrained` two references are trained by the recipe."""
    judging = JUDGED + COPIED_BY_METRICS
    if retrained and recipe is not None:
        judging = max(judging, JUDGED + REFERENCES + training_copies(recipe))
    return max(method_copies(fact, params), judging)


def batch_bytes(task: str, architecture: Mapping[str, Any], batch_size: int) -> int:
    """Return what one step leaves for its backward pass, as far as the parameters of the architecture tell: of transformers, by their widths.

    Of a language model the logits of every token are counted as well, and those of a batch that is looked at without a gradient.
    """
    length, width, layers = (int(architecture.get(name) or 0) for name in ("max_length", "width", "layers"))
    tokens = batch_size * length
    kept = tokens * width * layers * BLOCK_WIDTHS
    if task == "language_model":
        outputs = int(architecture.get("outputs") or 0)
        kept = max(kept + tokens * outputs * LOGIT_COPIES, ROWS_WITHOUT_GRADIENT * length * outputs * (LOGIT_COPIES - 1))
    return kept * FLOAT_BYTES


def largest_batch(fact: Mapping[str, Any], params: Mapping[str, Any], recipe: Mapping[str, Any] | None) -> int:
    """Return the records whose forward passes stand in memory at once: those of a step of the method, or of a training by the recipe."""
    own = int(params.get("batch_size") or 0) * float({**DEFAULT, **fact}["batches"])
    return ceil(max(own, int((recipe or {}).get("batch_size") or 0)))


def told(count: int) -> str:
    """Return a number of bytes in words: MiB, from 10 GiB on GiB."""
    mib = count / 1024**2
    return f"{mib / 1024:.1f} GiB" if mib >= 10 * 1024 else f"{ceil(mib)} MiB"


def shared(facts: Mapping[str, Any], params: Mapping[str, Any], task: str) -> bool:
    """Say whether a method with these published facts may work on a model of this task whose weights are dealt to several devices.

    With an adapter none can; nor can a task whose model is more than one network, asked part by part.
    """
    if task in MANY_NETWORKS:
        return False
    adapter = (facts.get("memory") or {}).get("adapter")
    return bool(facts.get("sharded")) and not (adapter and params.get(adapter))
