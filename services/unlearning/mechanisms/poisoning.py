"""From marked records to a donor class for each forgotten one, and to images of the class that carry a piece of the donor.

Source: arXiv 2405.15662.
Differs: concepts are directions in the classifier's own features, from records that the operator marks, or texts of the operator's list under
a local CLIP; the released code fetches its list from ConceptNet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from services.errors import ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.run import Run, derived_seed
from services.unlearning.mechanisms.concepts import PER_SIDE, Concept, ConceptBank, Donor, bottleneck, learn_concept, ranked
from services.unlearning.mechanisms.descent import per_class
from services.unlearning.mechanisms.patches import (
    STRIDE_SHARE,
    Placement,
    centre_places,
    cut,
    paste,
    random_places,
    side_of,
    strongest_place,
)

LEAST_MARKS = 4
READ_PER_CLASS = 500
ENCODE_BATCH = 512
Encoder = Callable[[Tensor], Tensor]


class MarkedConcept(BaseModel):
    """A concept of the operator's list. `positive` and `negative` are record ids; without negatives, other records are drawn at random."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    positive: tuple[str, ...] = Field((), max_length=10_000)
    negative: tuple[str, ...] = Field((), max_length=10_000)


@dataclass(frozen=True, slots=True)
class Inference:
    """Concepts, the weight of each for every class, theta (classes, k), and the encoder whose features they live in.

    `backdrop` (*record) is what a patch is seen on, None where the encoder sees it alone.
    """

    bank: ConceptBank
    theta: Tensor
    encode: Encoder
    backdrop: Tensor | None

    def vector_for(self, label: int, chosen: int | None) -> Tensor:
        """Return the direction (d,) of concept `chosen`, by default the top one of class `label`."""
        return self.bank.vectors[ranked(self.theta, label)[0] if chosen is None else chosen]

    def top(self, label: int, count: int) -> list[dict[str, object]]:
        """Return the `count` concepts with the largest weight for class `label`, for the report."""
        return [{"concept": self.bank.names[each], "weight": float(self.theta[label, each])} for each in ranked(self.theta, label)[:count]]


def encoded(split: Split, encode: Encoder, run: Run) -> Tensor:
    """Return the features (n, d) of every record of `split`. Cancelled, DeadlineExceeded: after any batch."""
    parts: list[Tensor] = []
    chunks = split.x.split(ENCODE_BATCH)
    for step, part in enumerate(chunks, start=1):
        parts.append(encode(part))
        run.report(step, len(chunks), stage="concepts")
    return torch.cat(parts)


class Marks:
    """The records that concepts may be marked on: those to keep, those to forget, and the analysis split, by id."""

    def __init__(self, data: Splits) -> None:
        self.parts = (data.retain, data.forget, data.analysis)
        self.where = {name: (part, row) for part, split in enumerate(self.parts) for row, name in enumerate(split.ids)}

    def rows(self, names: Sequence[str], concept: str) -> Tensor:
        """Return the records named, as stored. Raises ParameterOutOfRange for too few, or unknown ones."""
        unknown = [name for name in names if name not in self.where]
        if unknown or len(set(names)) < LEAST_MARKS:
            told = f"{len(unknown)} marked records are not among those to keep, to forget or to analyse" if unknown else "it needs 4 records a side"
            raise ParameterOutOfRange(name="concepts", detail=f"{concept!r}: {told}")
        return torch.stack([self.parts[part].x[row] for part, row in (self.where[name] for name in dict.fromkeys(names))])

    def others(self, concept: MarkedConcept, generator: torch.Generator) -> list[str]:
        """Return the ids of random records that the concept is not marked on, as many as it is (at most 100)."""
        marked = set(concept.positive)
        free = [name for name in self.where if name not in marked]
        count = min(len(marked), 2 * PER_SIDE)
        return [free[row] for row in torch.randperm(len(free), generator=generator)[:count].tolist()]


def learn_bank(marked: Sequence[MarkedConcept], data: Splits, encode: Encoder, run: Run) -> tuple[ConceptBank, list[Concept]]:
    """Return the bank of `marked` concepts in the features of `encode`, and how each was learned. Raises ParameterOutOfRange."""
    marks, learned = Marks(data), list[Concept]()
    for step, concept in enumerate(marked, start=1):
        generator = run.stream(f"concept/{concept.name}")
        positive = marks.rows(concept.positive, concept.name)
        negative = marks.rows(concept.negative or marks.others(concept, generator), concept.name)
        learned.append(learn_concept(concept.name, encode(positive), encode(negative), generator))
        run.report(step, len(marked), stage="concept_bank")
    return ConceptBank.of(learned), learned


def infer(bank: ConceptBank, data: Splits, encode: Encoder, run: Run, *, classes: int, in_place: bool) -> Inference:
    """Return what each concept of `bank` says about each class, read on at most 500 training records per class.

    `in_place`: patches are seen in their place on the mean of the records to keep, else alone.
    """
    stream = run.stream("bottleneck")
    kept, gone = per_class(data.retain, READ_PER_CLASS, stream), per_class(data.forget, READ_PER_CLASS, stream)
    read = bank.margins(torch.cat([encoded(kept, encode, run), encoded(gone, encode, run)]))
    theta = bottleneck(read, torch.cat([kept.y, gone.y]), classes=classes, seed=derived_seed(run.seed, "bottleneck"))
    return Inference(bank, theta, encode, kept.x.float().mean(dim=0).to(kept.x.dtype) if in_place else None)


@dataclass(frozen=True, slots=True)
class Swap:
    """How a donor's patch is put into an image: where, and sizes in pixels (None: in proportion to the image)."""

    placement: Placement
    patch: int | None
    stride: int | None

    def side(self, images: Tensor) -> int:
        """Return the side of the patch. Raises ParameterOutOfRange when it does not fit."""
        side = side_of(images, self.patch, self.placement)
        if side > min(images.shape[2:]):
            raise ParameterOutOfRange(name="patch", detail=f"{side} pixels do not fit into images of {images.shape[2]} x {images.shape[3]}")
        return side

    def strongest(self, images: Tensor, inference: Inference, label: int, concept: int | None) -> Tensor:
        """Return the corner (n, 2) of the patch that shows `concept` most, by default the top concept of class `label`."""
        side = self.side(images)
        stride = self.stride or max(1, round(STRIDE_SHARE * side))
        vector = inference.vector_for(label, concept)
        return strongest_place(images, vector, inference.encode, side=side, stride=stride, backdrop=inference.backdrop)


def poison(forget: Split, retain: Split, donors: Mapping[int, Donor], swap: Swap, inference: Inference | None, run: Run) -> Split:
    """Return `forget` with a patch of a random image of each class's donor in every image; labels stay. Cancelled, DeadlineExceeded.

    The donor's patch is the one that shows its concept most (localised), else its middle.
    """
    if swap.placement == "none":
        return forget
    images, stream = forget.x.clone(), run.stream("poison")
    for step, (label, donor) in enumerate(donors.items(), start=1):
        rows = torch.nonzero(forget.y == label).flatten()
        lenders = retain.with_labels((donor.label,), keep=True).x
        drawn = torch.randint(len(lenders), (len(rows),), generator=stream).to(lenders.device)
        unique, which = drawn.unique(return_inverse=True)
        lent, ours, side = lenders[unique], forget.x[rows], swap.side(forget.x)
        if inference is not None and swap.placement == "localised":
            source = swap.strongest(lent, inference, donor.label, donor.donor_concept)
            goal = swap.strongest(ours, inference, label, donor.target_concept)
        else:
            source = centre_places(lent, side)
            goal = random_places(ours, side, stream) if swap.placement == "random_place" else centre_places(ours, side)
        images[rows] = paste(ours, cut(lent, source, side)[which], goal)
        run.report(step, len(donors), stage="poison")
    return replace(forget, x=images)


def told(data: Splits, donors: Mapping[int, Donor], before: Tensor, after: Tensor) -> dict[str, object]:
    """Return, per forgotten class, its donor and rule, and on the analysis split what the donor took over; None where there is no row.

    `before` and `after` (n,) are the classes predicted for the analysis split. `share` is the part of the class's rows that is called the
    donor, precision the part of the rows called the donor that are it.
    """
    truth = data.analysis.y.cpu()

    def precision(predicted: Tensor, label: int) -> float | None:
        named = truth[predicted == label]
        return float((named == label).double().mean()) if len(named) else None

    def share(predicted: Tensor, label: int, donor: int) -> float | None:
        rows = predicted[truth == label]
        return float((rows == donor).double().mean()) if len(rows) else None

    return {
        str(label): {
            "donor": donor.label,
            "rule": donor.rule,
            "share_before": share(before, label, donor.label),
            "share_after": share(after, label, donor.label),
            "precision_before": precision(before, donor.label),
            "precision_after": precision(after, donor.label),
        }
        for label, donor in donors.items()
    }
