"""Kernels of convolutions: which there are, and how their saliences choose the weights that are drawn anew."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]  # the one base of all convolutions

from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.task import Task


def kernels(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of every convolution by the name of the parameter, (out, in / groups, *kernel), or (in, out / groups, *kernel) where transposed.

    A kernel that several layers share is listed once.
    """
    owned = {id(module.weight): module for module in model.modules() if isinstance(module, _ConvNd)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in owned}


def planar(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of every two-dimensional convolution, (out, in / groups, H, W)."""
    return {name: weight for name, weight in kernels(model).items() if weight.ndim == 4}


def transposed(model: nn.Module) -> frozenset[str]:
    """Return the names of the kernels of transposed convolutions, whose first two axes are the other way round."""
    owned = {id(module.weight) for module in model.modules() if isinstance(module, _ConvTransposeNd)}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in owned)


def contrast_gradients(model: nn.Module, names: list[str], retain: Split, forget: Split, task: Task, *, batch_size: int) -> dict[str, Tensor]:
    """Return the gradient of mean loss on `retain` less mean loss on `forget` for the parameters `names`, in eval mode; nothing else is changed.

    The sums run over batches, so that `batch_size` bounds memory without a part in the result beyond rounding.
    """
    chosen = dict(model.named_parameters())
    weights = [chosen[name] for name in names]
    totals = [torch.zeros_like(weight) for weight in weights]
    with evaluating(model), torch.enable_grad():
        for split, sign in ((retain, 1.0), (forget, -1.0)):
            for batch in split.batches(batch_size):
                loss = task.losses(model, batch).sum() * (sign / len(split))
                gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
                totals = [total + each for total, each in zip(totals, gradients, strict=True)]
    return dict(zip(names, totals, strict=True))


def smallest(values: Tensor, share: float) -> Tensor:
    """Return the mask, of the shape of `values`, of the `share` of entries that are least in magnitude; ties fall to the first. Counted to the nearest."""
    flat = values.abs().flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[torch.argsort(flat, stable=True)[: round(share * flat.numel())]] = True
    return mask.view(values.shape)


def redraw(weight: Tensor, mask: Tensor, generator: torch.Generator) -> None:
    """Draw the entries of a kernel (out, in, *kernel) under `mask` anew, in place, normal with Kaiming's variance: 2 / fan-in. `generator` is on the CPU."""
    fresh = nn.init.kaiming_normal_(torch.empty(weight.shape), nonlinearity="relu", generator=generator)
    with torch.no_grad():
        weight.copy_(torch.where(mask, fresh.to(weight.device, weight.dtype), weight))
