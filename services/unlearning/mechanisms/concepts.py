"""Concepts as directions in a network's features, the bottleneck that reads classes from them, and the class that lends its concept.

Source: Kim et al., "Interpretability Beyond Feature Attribution", ICML 2018 (concept activation vectors); Yuksekgonul et al., "Post-hoc
Concept Bottleneck Models", ICLR 2023; arXiv 2405.15662 (donor by confusion).
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

PER_SIDE = 50
PENALTIES = (0.01, 0.1)
DonorRule = Literal["operator", "confusion", "shared", "next", "softmax"]


@dataclass(frozen=True, slots=True)
class Concept:
    """A direction in feature space: `vector` (d,), `intercept`, the accuracies and penalty of the classifier it comes from.

    `positive_margin` and `negative_margin` are mean signed distances of the marked records of each side that were trained on.
    """

    name: str
    vector: Tensor
    intercept: float
    penalty: float
    train_accuracy: float
    validation_accuracy: float
    positive_margin: float
    negative_margin: float

    def described(self) -> dict[str, object]:
        """Return the concept for the report, without its vector."""
        return {
            "name": self.name,
            "penalty": self.penalty,
            "train_accuracy": self.train_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "positive_margin": self.positive_margin,
            "negative_margin": self.negative_margin,
        }


def margins(features: Tensor, vectors: Tensor, intercepts: Tensor) -> Tensor:
    """Return (v_i . e + b_i) / |v_i| for features (n, d), vectors (k, d), intercepts (k,): (n, k), signed distances."""
    return (features @ vectors.T + intercepts) / vectors.norm(dim=1).clamp(min=1e-12)


def halves(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return at most 50 random rows to train on and as many others to validate on."""
    shuffled = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    edge = min(PER_SIDE, len(rows) // 2)
    return shuffled[:edge], shuffled[edge : 2 * edge]


def learn_concept(name: str, positive: Tensor, negative: Tensor, generator: torch.Generator) -> Concept:
    """Return the direction that tells `positive` (n, d) from `negative` (m, d) features, n and m at least 2, by a linear support vector machine.

    Of the penalties 0.01 and 0.1 the one with the better validation accuracy is taken, the smaller when they tie.
    Source: Yuksekgonul et al. Differs: one vector per concept; the released code keeps one per penalty.
    """
    from sklearn.svm import SVC  # noqa: PLC0415  a second that every runner would wait

    (shown, held), (shown_not, held_not) = halves(positive, generator), halves(negative, generator)
    x, y = torch.cat([shown, shown_not]), [1] * len(shown) + [0] * len(shown_not)
    x_held, y_held = torch.cat([held, held_not]), [1] * len(held) + [0] * len(held_not)
    best: Concept | None = None
    for penalty in PENALTIES:
        machine = SVC(C=penalty, kernel="linear").fit(x.cpu().numpy(), y)
        vector = torch.tensor(np.asarray(machine.coef_[0]).tolist()).to(x)
        intercept = float(machine.intercept_[0])
        signed = margins(x, vector[None], torch.tensor([intercept]).to(x))[:, 0]
        concept = Concept(
            name,
            vector,
            intercept,
            penalty,
            float(machine.score(x.cpu().numpy(), y)),
            float(machine.score(x_held.cpu().numpy(), y_held)),
            float(signed[: len(shown)].mean()),
            float(signed[len(shown) :].mean()),
        )
        if best is None or concept.validation_accuracy > best.validation_accuracy:
            best = concept
    if best is None:
        raise ValueError("there is no penalty to try")
    return best


@dataclass(frozen=True, slots=True)
class ConceptBank:
    """Concepts in one feature space: `names`, `vectors` (k, d), `intercepts` (k,)."""

    names: tuple[str, ...]
    vectors: Tensor
    intercepts: Tensor

    @classmethod
    def of(cls, concepts: list[Concept]) -> "ConceptBank":
        """Return the bank of `concepts`."""
        vectors = torch.stack([concept.vector for concept in concepts])
        intercepts = torch.tensor([concept.intercept for concept in concepts]).to(vectors)
        return cls(tuple(concept.name for concept in concepts), vectors, intercepts)

    def margins(self, features: Tensor) -> Tensor:
        """Return the signed distance of features (n, d) to every concept, (n, k)."""
        return margins(features, self.vectors, self.intercepts)


def bottleneck(concept_margins: Tensor, labels: Tensor, *, classes: int, seed: int) -> Tensor:
    """Return the weights (classes, k) of a sparse linear classifier of margins (n, k); a class without rows gets zeros.

    Logistic loss, elastic net, alpha 1e-5, share of the absolute penalty 0.99, at most 10,000 passes.
    Source: Yuksekgonul et al. Differs: the seed derives from the run's (released: 42).
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  a second that every runner would wait
    from sklearn.linear_model import SGDClassifier  # noqa: PLC0415

    machine = SGDClassifier(loss="log_loss", penalty="elasticnet", alpha=1e-5, l1_ratio=0.99, max_iter=10_000, random_state=seed % 2**32)
    theta = torch.zeros(classes, concept_margins.shape[1], dtype=torch.float64)
    if len(labels.unique()) < 2:
        return theta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(concept_margins.cpu().numpy().astype(np.float64), labels.cpu().numpy())
    weights = torch.from_numpy(np.asarray(machine.coef_, dtype=np.float64))
    present = sorted({int(label) for label in labels.tolist()})
    theta[present] = torch.cat([-weights, weights]) if len(present) == 2 else weights
    return theta


def ranked(theta: Tensor, label: int) -> list[int]:
    """Return the concepts of class `label` by falling weight in theta (classes, k); ties by number."""
    return torch.argsort(theta[label], descending=True, stable=True).tolist()


@dataclass(frozen=True, slots=True)
class Donor:
    """The class that lends label and patch, the rule that chose it, and the concepts (numbers) of the forgotten class and of the donor."""

    label: int
    rule: DonorRule
    target_concept: int | None = None
    donor_concept: int | None = None


def by_confusion(theta: Tensor, label: int, allowed: tuple[int, ...], *, scan: int) -> Donor | None:
    """Return the first of the class's `scan` top concepts whose strongest other class has it on top itself, or None."""
    order, others = ranked(theta, label), list(allowed)
    for concept in order[:scan]:
        strongest = others[int(theta[others, concept].argmax())]
        if ranked(theta, strongest)[0] == concept:
            return Donor(strongest, "confusion", order[0], concept)
    return None


def by_shared(theta: Tensor, label: int, allowed: tuple[int, ...]) -> Donor | None:
    """Return the other class with the largest weight on the class's top concept, or None where no concept tells anything about the class."""
    if not bool(theta[label].any()):
        return None
    top, others = ranked(theta, label)[0], list(allowed)
    return Donor(others[int(theta[others, top].argmax())], "shared", top, top)


def choose_donor(theta: Tensor, label: int, allowed: tuple[int, ...], *, scan: int) -> Donor:
    """Return the donor of class `label` among `allowed`: by confusion, else by its top concept, else the next class by number.

    Source: arXiv 2405.15662. Differs: classes without retain rows, and other forgotten ones, are never donors.
    """
    found = by_confusion(theta, label, allowed, scan=scan) or by_shared(theta, label, allowed)
    if found is not None:
        return found
    following = next((other for other in allowed if other > label), allowed[0])
    return Donor(following, "next", ranked(theta, label)[0], ranked(theta, following)[0])
