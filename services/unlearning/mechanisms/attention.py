"""Attention maps of convolutional blocks and of layers over series, and how far a student's are from its teacher's.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (arXiv 2201.05629), after Zagoruyko and Komodakis, "Paying More
Attention to Attention", ICLR 2017.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.errors import InvalidInput

FOLLOWERS = (nn.Identity, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def attention(activation: Tensor) -> Tensor:
    """Return the map of each row: the mean of squares over channels, flattened and scaled to length 1, (B, ch, h, w) -> (B, h * w).

    Of a series (B, T, ch) it is (B, T), one value for each step.

    Raises:
        InvalidInput: `activation` is neither. A flat one would be 1 throughout, a term that says nothing.
    """
    if activation.ndim not in {3, 4}:
        raise InvalidInput(detail=f"attention is of maps (B, ch, h, w) or of series (B, T, ch), not of {tuple(activation.shape)}")
    channels = 1 if activation.ndim == 4 else 2
    return functional.normalize(activation.float().square().mean(dim=channels).flatten(1), dim=1)


def row_differences(student: Tensor, teacher: Tensor) -> Tensor:
    """Return for each row the mean squared difference of two attention maps (B, h * w), (B,)."""
    return (student - teacher).square().mean(dim=1)


def attention_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over all B * h * w entries of the squared difference of two attention maps, a scalar."""
    return (student - teacher).square().mean()


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are those of a convolution and what follows it (norm, activation), in order."""
    found: list[str] = []
    for parent_name, parent in model.named_modules():
        children = list(parent.named_children())
        for place, (_, child) in enumerate(children):
            if not isinstance(child, nn.Conv2d):
                continue
            last = place
            while last + 1 < len(children) and isinstance(children[last + 1][1], FOLLOWERS):
                last += 1
            found.append(".".join(filter(None, (parent_name, children[last][0]))))
    return tuple(dict.fromkeys(found))


def sequence_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the recurrent layers, and of modules that say that they return one vector for each step (`sequence_map`), in order."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.RNNBase) or getattr(module, "sequence_map", False))


@contextmanager
def tapped(model: nn.Module, names: Sequence[str]) -> Generator[list[Tensor]]:
    """Collect the attention maps of the modules called `names`, in the order in which they run, of every forward pass in the context."""
    maps: list[Tensor] = []

    def collect(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        maps.append(attention(output[0] if isinstance(output, tuple) else output))

    handles = [model.get_submodule(name).register_forward_hook(collect) for name in names]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def summed_difference(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the sum over layers of `attention_difference`, a scalar; 0 where there is no layer."""
    terms = [attention_difference(first, second) for first, second in zip(student, teacher, strict=True)]
    return torch.stack(terms).sum() if terms else torch.zeros(())
