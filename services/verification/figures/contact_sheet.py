"""Contact sheet: what a generator makes of the same latents before, after, and where it was retrained.

Source: ISO/IEC 15948 (PNG), of which the plainest form is written.
"""

import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, NAMES, Figure, FigureData, Role, compared, images
from services.verification.generator_samples import sampled
from services.verification.metric import Models
from services.verification.reading import Measured, Unmeasured

ACROSS = 8
GAP = 2
SHEET = 320
"""Pixels that a sheet is about as wide as; samples are enlarged by whole numbers, never made smaller."""
LATENTS = "Image by image the latents are the same; a retrained generator is another one, and makes other images of them."
NOT_BEFORE = " The original is not shown: its samples may show the very images that were to be forgotten."


@FIGURES.register("contact_sheet")
class ContactSheet(Figure):
    """Sixty-four samples of original, unlearned and retrained generator; of a request for records the original's are left out."""

    tasks = frozenset({"image_generation"})
    title = "What the generator makes, before and after"
    caption = "Images that each generator makes of random numbers. A sheet shows what is common; what is rarely made may not be on it."

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return one sheet for each model. Images (n, ch, H, W) in [-1, 1] of one or three channels; of others the first is shown."""
        whole = data.kind == "class"
        sheets: list[tuple[str, Role, bytes]] = []
        for role, model in compared(models, original=whole).items():
            made = sampled(model, data, run, ACROSS * ACROSS, retained_only=False)[0]
            sheets.append((NAMES[role], role, png_of(made)))
        return images(sheets, note=LATENTS if whole else LATENTS + NOT_BEFORE)


def png_of(made: Tensor) -> bytes:
    """Return images (n, ch, H, W) in [-1, 1] as one PNG, eight across on white."""
    pixels = ((made.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels if pixels.shape[1] in {1, 3} else pixels[:, :1]
    scale = max(1, SHEET // (ACROSS * pixels.shape[3]))
    pixels = pixels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    count, channels, height, width = pixels.shape
    rows = -(-count // ACROSS)
    sheet = torch.full((channels, rows * (height + GAP) - GAP, ACROSS * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for place, image in enumerate(pixels):
        top, left = place // ACROSS * (height + GAP), place % ACROSS * (width + GAP)
        sheet[:, top : top + height, left : left + width] = image
    return written(sheet)


def written(pixels: Tensor) -> bytes:
    """Return pixels (1 or 3, H, W) uint8 as PNG, the same bytes each time: a head, the rows without a filter, an end, each with its checksum."""
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    plain = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), rows], dim=1).contiguous().numpy().tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(plain, 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
