"""Patches of images: where one shows a concept most, and how one is put in another's place. Images are (n, ch, H, W) as stored.

Source: arXiv 2405.15662 (patches of 64 pixels every 16 of an image of 224, enlarged, compared with the concept by cosine).
Differs: sizes follow the image instead of enlarging every image to 224 pixels; in the classifier's own features, which know places, a patch
is seen in its place on a backdrop and not enlarged; nothing is written as JPEG in between.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

Placement = Literal["none", "localised", "random_place", "centre"]
PATCH_SHARE = 64 / 224
FIXED_SHARE = 96 / 224
STRIDE_SHARE = 16 / 64
PATCHES_AT_ONCE = 1024


def side_of(images: Tensor, given: int | None, placement: Placement) -> int:
    """Return the side of a patch in pixels: `given`, else 64 (localised) or 96 (fixed places) of 224 in proportion to the shorter side."""
    share = PATCH_SHARE if placement == "localised" else FIXED_SHARE
    return given if given is not None else max(1, round(share * min(images.shape[2:])))


def corners_of(length: int, side: int, stride: int) -> Tensor:
    """Return where patches of `side` begin along `length`, every `stride` pixels; the last one touches the end."""
    starts = list(range(0, length - side + 1, stride))
    return torch.tensor([*starts, length - side] if starts[-1] != length - side else starts)


def places_of(images: Tensor, side: int, stride: int) -> Tensor:
    """Return the upper left corners (p, 2) of all patches of an image, row by row."""
    return torch.cartesian_prod(corners_of(images.shape[2], side, stride), corners_of(images.shape[3], side, stride)).view(-1, 2)


def pixels(places: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the index of a patch per image: image (n, 1, 1), row (n, side, 1), column (n, 1, side), for places (n, 2)."""
    reach = torch.arange(side, device=places.device)
    rows, columns = places[:, 0, None] + reach, places[:, 1, None] + reach
    return torch.arange(len(places), device=places.device)[:, None, None], rows[:, :, None], columns[:, None, :]


def cut(images: Tensor, places: Tensor, side: int) -> Tensor:
    """Return one patch per image (n, ch, side, side), at places (n, 2)."""
    image, row, column = pixels(places.to(images.device), side)
    return images[image, :, row, column].permute(0, 3, 1, 2)


def paste(images: Tensor, patches: Tensor, places: Tensor) -> Tensor:
    """Return a copy of `images` with patches (n, ch, side, side) at places (n, 2)."""
    changed = images.clone()
    image, row, column = pixels(places.to(images.device), patches.shape[-1])
    changed[image, :, row, column] = patches.permute(0, 2, 3, 1).to(changed.dtype)
    return changed


def enlarged(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `patches` at `size` pixels, by bilinear interpolation, in their own dtype."""
    grown = interpolate(patches.float(), size=size, mode="bilinear", align_corners=False)
    return grown if patches.is_floating_point() else grown.round().clamp(0, 255).to(patches.dtype)


def strongest_place(
    images: Tensor, concept: Tensor, encode: Callable[[Tensor], Tensor], *, side: int, stride: int, backdrop: Tensor | None
) -> Tensor:
    """Return the corner (n, 2) of each image's patch whose features `encode` (b, ch, H, W) -> (b, d) are nearest `concept` (d,) by cosine.

    Each patch is seen in its place on `backdrop` (ch, H, W), or alone at the size of the image when there is none.
    """
    places = places_of(images, side, stride)
    at_once = max(1, PATCHES_AT_ONCE // len(places))
    size = (int(images.shape[2]), int(images.shape[3]))
    best: list[Tensor] = [torch.zeros(0, 2, dtype=torch.int64)]
    for part in images.split(at_once):
        spots = places.repeat(len(part), 1)
        patches = cut(part.repeat_interleave(len(places), dim=0), spots, side)
        seen = enlarged(patches, size) if backdrop is None else paste(backdrop.expand(len(patches), -1, -1, -1), patches, spots)
        features = encode(seen)
        scores = cosine_similarity(features, concept[None].to(features), dim=1).view(len(part), len(places))
        best.append(places[scores.argmax(dim=1).cpu()])
    return torch.cat(best)


def centre_places(images: Tensor, side: int) -> Tensor:
    """Return the corner (n, 2) of each image's middle patch."""
    middle = torch.tensor([(images.shape[2] - side) // 2, (images.shape[3] - side) // 2])
    return middle.expand(len(images), 2)


def random_places(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return a random corner (n, 2) per image."""
    rows = torch.randint(images.shape[2] - side + 1, (len(images),), generator=generator)
    columns = torch.randint(images.shape[3] - side + 1, (len(images),), generator=generator)
    return torch.stack([rows, columns], dim=1)
