"""Linear one-vs-rest heads with a convex loss: trained with a random linear term, and moved by one Newton step when rows are removed.

Source: Guo et al., "Certified Data Removal from Machine Learning Models", ICML 2020 (arXiv 1911.03030), Algorithms 1 and 2.
The objective over n rows is sum of losses + lambda * n / 2 * |w|^2 + b . w, with b drawn from N(0, s^2 I). Everything is float64.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.errors import NonFinite, ParameterOutOfRange
from services.learning.data import Split
from services.learning.modes import evaluating, inputs_of

NEWTON_STEPS = 100
HALVINGS = 40


class Loss(ABC):
    """A loss of the logit z (n,) and the target t (n,). `gamma` bounds how fast its second derivative changes; 0 for a quadratic."""

    gamma: ClassVar[float]

    @abstractmethod
    def value(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the loss of each row, (n,)."""

    @abstractmethod
    def slope(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the first derivative in z, (n,)."""

    @abstractmethod
    def curvature(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the second derivative in z, (n,)."""


class Logistic(Loss):
    """log(1 + exp(-t z)), t in {-1, 1}."""

    gamma = 0.25

    def value(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the loss of each row."""
        return functional.softplus(-t * z)

    def slope(self, z: Tensor, t: Tensor) -> Tensor:
        """Return -t * sigmoid(-t z)."""
        return -t * torch.sigmoid(-t * z)

    def curvature(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  the curvature is the same for both targets
        """Return sigmoid(z) * sigmoid(-z)."""
        return torch.sigmoid(z) * torch.sigmoid(-z)


class Quadratic(Loss):
    """(z - t)^2 / 2, the loss of ridge regression: a Newton step is exact for it."""

    gamma = 0.0

    def value(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the loss of each row."""
        return 0.5 * (z - t).square()

    def slope(self, z: Tensor, t: Tensor) -> Tensor:
        """Return z - t."""
        return z - t

    def curvature(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  constant
        """Return 1."""
        return torch.ones_like(z)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one training: `x` (n, d) of norm at most 1, `t` (K, n) the targets of the K heads."""

    x: Tensor
    t: Tensor

    def __len__(self) -> int:
        return int(self.x.shape[0])


def gradient(w: Tensor, x: Tensor, t: Tensor, loss: Loss, *, l2: float, linear: Tensor | None = None) -> Tensor:
    """Return the gradient of one head's objective at `w` (d,): over the n rows of `x`, with l2 * n * w and `linear` (d,)."""
    whole = x.T @ loss.slope(x @ w, t) + l2 * len(x) * w
    return whole if linear is None else whole + linear


def hessian(w: Tensor, x: Tensor, t: Tensor, loss: Loss, *, l2: float) -> Tensor:
    """Return the Hessian of one head's objective at `w`, (d, d): over the n rows of `x`, with l2 * n on the diagonal."""
    weighted = x * loss.curvature(x @ w, t)[:, None]
    return x.T @ weighted + l2 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def train_head(x: Tensor, t: Tensor, loss: Loss, *, l2: float, linear: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, int]:
    """Minimise one head's objective by damped Newton steps from zero; return the weights (d,) and the steps taken.

    Raises NonFinite when the gradient's norm is not below `tolerance` * n after 100 steps: the objective is flat, or the rows are not finite.
    """

    def objective(w: Tensor) -> float:
        return float(loss.value(x @ w, t).sum() + 0.5 * l2 * len(x) * w.square().sum() + linear @ w)

    w = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
    for step in range(NEWTON_STEPS):
        slope = gradient(w, x, t, loss, l2=l2, linear=linear)
        if float(slope.norm()) <= tolerance * len(x):
            return w, step
        move = torch.cholesky_solve(slope[:, None], torch.linalg.cholesky(hessian(w, x, t, loss, l2=l2)))[:, 0]
        length, here, promised = 1.0, objective(w), float(slope @ move)
        for _ in range(HALVINGS):
            if objective(w - length * move) <= here - 1e-4 * length * promised or promised <= 1e-12 * (1 + abs(here)):
                break
            length /= 2
        w = w - length * move
    raise NonFinite(what="the gradient of a linear head after Newton's method did not become small: its rows or weights")


@dataclass(frozen=True, slots=True)
class Removal:
    """One head after a Newton step: `w` (d,), and `bound`, which the norm of the objective's gradient has grown by at most."""

    w: Tensor
    bound: float


def spectral_norm(x: Tensor) -> float:
    """Return the largest singular value of `x` (n, d)."""
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(x.T @ x)[-1])))


def remove_rows(w: Tensor, remaining: Rows, gone: Rows, head: int, loss: Loss, *, l2: float, norm: float) -> Removal:
    """Return one head after the Newton step that removes the rows `gone`: w + H^-1 * sum over them of (slope + l2 * w), H over the others.

    `norm` is the spectral norm of the remaining rows. The bound is gamma * norm * |H^-1 delta| * |X H^-1 delta|.
    """
    delta = gone.x.T @ loss.slope(gone.x @ w, gone.t[head]) + l2 * len(gone) * w
    factor = torch.linalg.cholesky(hessian(w, remaining.x, remaining.t[head], loss, l2=l2))
    move = torch.cholesky_solve(delta[:, None], factor)[:, 0]
    return Removal(w + move, loss.gamma * norm * float(move.norm()) * float((remaining.x @ move).norm()))


def has_bias(head: nn.Linear) -> bool:
    """Return whether `head` adds a bias."""
    return any(name == "bias" for name, _ in head.named_parameters(recurse=False))


def head_inputs(model: nn.Module, head: nn.Linear, split: Split, *, batch_size: int = 1024) -> Tensor:
    """Return what `head` is given for each record of `split` in order, and a 1 where it has a bias: (n, d) float64, in eval mode."""
    with evaluating(model), torch.no_grad(), inputs_of(head) as seen:
        for batch in split.batches(batch_size):
            model(batch.x)
    features = torch.cat(seen).double() if seen else torch.zeros(0, head.in_features, dtype=torch.float64, device=head.weight.device)
    return functional.pad(features, (0, 1), value=1.0) if has_bias(head) else features


def scaled(features: Tensor, scale: float) -> Tensor:
    """Return rows divided by `scale`, of norm at most 1. Raises ParameterOutOfRange where one is longer: the bound would not hold for it."""
    longest = float(features.norm(dim=1).max()) if len(features) else 0.0
    if not longest <= scale:
        raise ParameterOutOfRange(name="feature_bound", detail=f"a row of features has norm {longest:.6g}, more than {scale:.6g}")
    return features / scale


def one_vs_rest(y: Tensor, outputs: int) -> Tensor:
    """Return targets 1 for the own class and -1 for the others, (outputs, n) float64."""
    return functional.one_hot(y, outputs).T.double() * 2 - 1


def read_head(head: nn.Linear, scale: float) -> Tensor:
    """Return the weights of `head` for rows divided by `scale`, bias last, (K, d) float64."""
    weight = head.weight.detach().double()
    whole = torch.cat([weight, head.bias.detach().double()[:, None]], dim=1) if has_bias(head) else weight
    return whole * scale


def write_head(head: nn.Linear, weights: Tensor, scale: float) -> None:
    """Write weights (K, d) for rows divided by `scale` into `head`, in its own precision."""
    whole = weights / scale
    with torch.no_grad():
        head.weight.copy_(whole[:, : head.in_features])
        if has_bias(head):
            head.bias.copy_(whole[:, head.in_features])


@dataclass(frozen=True, slots=True)
class Head:
    """A head and what it is given: `features` of the records that stay, `forgotten` of those that go, both unscaled, with their labels."""

    layer: nn.Linear
    features: Tensor
    labels: Tensor
    forgotten: Tensor
    forgotten_labels: Tensor

    @classmethod
    def of(cls, model: nn.Module, layer: nn.Linear, retain: Split, forget: Split) -> "Head":
        """Run `model` over both sets and keep what reaches `layer`."""
        return cls(layer, head_inputs(model, layer, retain), retain.y, head_inputs(model, layer, forget), forget.y)

    def scale(self, bound: float | None) -> float:
        """Return what rows are to be divided by: `bound`, or the least power of two that no row which stays exceeds."""
        if bound is not None:
            return bound
        longest = float(self.features.norm(dim=1).max())
        return 2.0 ** math.ceil(math.log2(longest)) if math.isfinite(longest) and longest > 0 else 1.0

    def staying(self, scale: float, outputs: int) -> Rows:
        """Return the rows that stay, at norm 1 or less. Raises ParameterOutOfRange where one is longer."""
        return Rows(scaled(self.features, scale), one_vs_rest(self.labels, outputs))

    def going(self, scale: float, outputs: int) -> Rows:
        """Return the rows that go, at norm 1 or less. Raises ParameterOutOfRange where one is longer."""
        return Rows(scaled(self.forgotten, scale), one_vs_rest(self.forgotten_labels, outputs))


def gradient_left(layer: nn.Linear, rows: Rows, loss: Loss, *, l2: float, scale: float, linear: Tensor | None = None) -> Tensor:
    """Return the gradient of every head's objective at the weights that are written in `layer`, (K, d); `linear` (K, d) where it is known."""
    terms = [None] * len(rows.t) if linear is None else list(linear)
    return torch.stack([gradient(w, rows.x, t, loss, l2=l2, linear=term) for w, t, term in zip(read_head(layer, scale), rows.t, terms, strict=True)])
