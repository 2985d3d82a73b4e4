"""A network that makes pseudo-images out of noise.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (arXiv 2201.05629), the released code's generator.
Differs: sides other than 28 and 32 pixels are served by a smaller base and by the size of the last convolution.
"""

import torch
from torch import Tensor, nn

LARGEST_SIDE = 32
SLOPE = 0.2


def base_of(side: int) -> int:
    """Return the side of the first map, of which two doublings make at least `side`: 8 for 25 to 32 pixels, as in the released code."""
    return 8 if side > 24 else max(2, -(-side // 4))


def last_kernel(side: int) -> int:
    """Return the kernel that, padded by 1, cuts four times the base to `side`: 3 for 32 pixels, 7 for 28."""
    return 4 * base_of(side) + 3 - side


class Generator(nn.Module):
    """z (B, z_dim) -> images (B, channels, H, W) of about zero mean and unit variance per channel; no bound on their values.

    A linear layer to `width` maps, two doublings each followed by a convolution, and a last convolution; batch norm throughout.
    """

    def __init__(self, channels: int, height: int, width_px: int, *, z_dim: int = 128, width: int = 128) -> None:
        super().__init__()
        if not all(1 <= side <= LARGEST_SIDE for side in (height, width_px)):
            raise ValueError(f"images have sides of 1 to {LARGEST_SIDE} pixels here, not {height} x {width_px}")
        self.z_dim = z_dim
        base = (base_of(height), base_of(width_px))
        half = max(1, width // 2)
        self.body = nn.Sequential(
            nn.Linear(z_dim, width * base[0] * base[1]),
            nn.Unflatten(1, (width, *base)),
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(half, channels, (last_kernel(height), last_kernel(width_px)), padding=1),
            nn.BatchNorm2d(channels),
        )

    @classmethod
    def fresh(cls, record: torch.Size, seed: int, *, z_dim: int, width: int) -> "Generator":
        """Return a generator of `record` (channels, H, W) whose weights depend on `seed` alone; torch's global generator is left as it was."""
        channels, height, width_px = record
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(channels, height, width_px, z_dim=z_dim, width=width)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, channels, H, W)."""
        return self.body(z)
