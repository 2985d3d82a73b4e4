"""How a model is run for a while: in eval mode, in the fast layout for images, with seeded dropout, watched. Each leaves things as it found them."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norm layers of `model`, of any dimension."""
    family = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  the one base of all batch norms  # pyright: ignore[reportPrivateUsage]
    return [module for module in model.modules() if isinstance(module, family)]


@contextmanager
def mode_of(model: nn.Module, *, training: bool) -> Generator[None]:
    """Put `model` in train or eval mode for a while; every module gets its own mode back, also where they differed (frozen layers)."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Put `model` in eval mode for a while."""
    return mode_of(model, training=False)


@contextmanager
def image_layout(*models: nn.Module) -> Generator[None]:
    """Keep the weights of convolutions channels-last for a while: about twice as fast, same values, other strides.

    Afterwards they are contiguous again, as `view` and safetensors want them. Open it around a whole loop, and make optimisers inside.
    """
    with torch.inference_mode(mode=False):  # weights made in inference mode could never be trained again
        for model in models:
            model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        with torch.inference_mode(mode=False):
            for model in models:
                model.to(memory_format=torch.contiguous_format)


@contextmanager
def inputs_of(module: nn.Module) -> Generator[list[Tensor]]:
    """Collect what `module` is called with for a while."""
    seen: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach())

    handle = module.register_forward_pre_hook(take)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def global_draws(generator: torch.Generator, device: torch.device) -> Generator[None]:
    """Make what draws from torch's global generators (dropout) depend on `generator`; their state is restored at the end."""
    seed = int(torch.randint(2**62, (), generator=generator))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
