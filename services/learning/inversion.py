"""From an image back to the latent that a generator would make it from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.learning.gan import GAN
from services.learning.modes import evaluating, image_layout
from services.learning.run import Run

LATENT_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Inverted:
    """For each of n images the best latent found, z (n, latent), and the mean squared error of its pixels, (n,)."""

    z: Tensor
    mse: Tensor


def encoded(gan: GAN, x: Tensor, y: Tensor | None) -> Inverted | None:
    """Return the encoder's latents of images `x` (n, ch, H, W), or None where the network has no encoder."""
    if gan.encoder is None:
        return None
    with evaluating(gan), torch.no_grad():
        z = gan.encoder(x)
        return Inverted(z, (gan.make(z, y) - x).square().flatten(1).mean(dim=1))


def invert(
    gan: GAN, x: Tensor, y: Tensor | None, run: Run, *, steps: int, restarts: int, lr: float, generator: torch.Generator, stage: str = "invert"
) -> Inverted:
    """Return the latents that come nearest to images `x` (n, ch, H, W): per image the best of `restarts` descents of `steps` steps by Adam.

    Minimises the squared error plus 0.01 times the squared norm of z; all images and restarts are one batch. Weights and modes stay as they are.
    Cancelled, DeadlineExceeded: after any step.
    """
    start = torch.randn((restarts * len(x), gan.latent), generator=generator).to(x.device)
    wanted, labels = x.repeat(restarts, 1, 1, 1), None if y is None else y.repeat(restarts)
    z = start.requires_grad_()
    optimizer = torch.optim.Adam([z], lr=lr)
    with evaluating(gan), image_layout(gan):
        for step in range(1, steps + 1):
            missed = (gan.make(z, labels) - wanted).square().flatten(1).sum(dim=1)
            loss = (missed + LATENT_WEIGHT * z.square().sum(dim=1)).sum()
            (z.grad,) = torch.autograd.grad(loss, [z])
            optimizer.step()
            run.report(step, steps, stage=stage, loss=missed.detach().mean())
        with torch.no_grad():
            errors = (gan.make(z, labels) - wanted).square().flatten(1).mean(dim=1).view(restarts, len(x))
    best = errors.argmin(dim=0)
    rows = torch.arange(len(x), device=x.device)
    return Inverted(z.detach().view(restarts, len(x), -1)[best, rows], errors[best, rows])
