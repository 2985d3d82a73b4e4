"""Layer-wise relevance at the input of a linear head: in closed form, counted over samples, ranked, and the zeroing of what ranks first.

Source: arXiv 2410.23693; the epsilon rule of layer-wise relevance propagation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from services.learning.modes import evaluating, inputs_of

Scope = Literal["class_row", "neuron", "path"]
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Head:
    """Weights (C, d) and bias (C,) of a linear head in float64, apart from the network they came from."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> "Head":
        """Return a copy of the layer's numbers."""
        weight = layer.weight.detach().double().clone()
        bias = dict(layer.named_parameters()).get("bias")
        return cls(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double().clone())

    def logits(self, features: Tensor) -> Tensor:
        """Return (n, C) for features (n, d)."""
        return features.double() @ self.weight.T + self.bias

    def without(self, label: int, neurons: Tensor, scope: Scope) -> "Head":
        """Return the head as it acts once `neurons` (k,) are cut from `label`, or from every class where they die altogether."""
        weight = self.weight.clone()
        if scope == "class_row":
            weight[label, neurons] = 0.0
        else:
            weight[:, neurons] = 0.0
        return Head(weight, self.bias)


def features_of(model: nn.Module, head: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the head's inputs (n, d) and the logits (n, C) for prepared records `x`, in eval mode.

    None where the logits are not what the head gives for one vector per record, so that nothing could be said about them from it.
    """
    with evaluating(model), torch.no_grad(), inputs_of(head) as caught:
        logits: Tensor = model(x)
        if len(caught) != 1 or caught[0].shape != (len(x), head.in_features):
            return None
        own = nn.functional.linear(caught[0], head.weight, head.bias)
    fits = own.shape == logits.shape and torch.allclose(own, logits, atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True)
    return (caught[0], logits) if fits else None


def relevance(features: Tensor, head: Head, targets: Tensor, *, eps: float, absolute: bool = False) -> Tensor:
    """Return R[j] = x[j] W[t,j] / (z[t] + eps s(z[t])), s(z) = 1 where z > 0 else -1, for features (n, d) and targets t (n,); (n, d) float64.

    Relevance starts as 1 at the target's logit; the bias, inside z, absorbs its part. `absolute` returns |x[j] W[t,j]|, activation times
    gradient, as the rule for transformers has it.
    """
    products = features.double() * head.weight[targets]
    if absolute:
        return products.abs()
    reached = head.logits(features).gather(1, targets[:, None])
    return products / (reached + torch.where(reached > 0, eps, -eps))


def ranked(values: Tensor, *, n_top: int, k: int) -> Tensor:
    """Return the `k` columns that are most often among the `n_top` largest of their row of `values` (n, d), best first, int64 on the CPU.

    Ties go to the larger mean, then to the lower number. A column that is among them in no row is never taken, so there may be fewer.
    """
    values = values.cpu()
    top = values.sort(dim=1, descending=True, stable=True).indices[:, :n_top]
    counts = torch.bincount(top.flatten(), minlength=values.shape[1])
    means = values.mean(dim=0)
    by_mean = means.sort(descending=True, stable=True).indices
    order = by_mean[counts[by_mean].sort(descending=True, stable=True).indices]
    return order[counts[order] > 0][:k]


def producer_of(model: nn.Module, head: nn.Linear, x: Tensor) -> nn.Linear | None:
    """Return the linear layer whose output j alone decides input j of `head`, with 0 for 0 (ReLU, dropout between); None where there is none.

    Found by trial on records `x`: every other output is set to 0, and exactly the same inputs of the head must become 0.
    """
    plain = features_of(model, head, x)
    called: list[nn.Linear] = []

    def record(module: nn.Module, _inputs: object, _output: object) -> None:
        if isinstance(module, nn.Linear):
            called.append(module)

    def halve(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * odd

    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        features_of(model, head, x)
    finally:
        for handle in handles:
            handle.remove()
    if plain is None or not called or called.count(called[-1]) != 1 or called[-1].out_features != head.in_features:
        return None
    odd = (torch.arange(head.in_features, device=x.device) % 2).to(plain[0].dtype)
    handle = called[-1].register_forward_hook(halve)
    try:
        half = features_of(model, head, x)
    finally:
        handle.remove()
    agrees = half is not None and torch.allclose(half[0], plain[0] * odd, atol=TOLERANCE, rtol=TOLERANCE)
    return called[-1] if agrees else None
