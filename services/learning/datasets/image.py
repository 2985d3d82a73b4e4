"""Images stored as raw pixels, one fixed-size row of bytes per record."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from services.errors import InvalidInput
from services.learning.dataset import DATASETS, DatasetAdapter, LabelledParameters, column, labels

Scale = Annotated[float, Field(allow_inf_nan=False)]


@DATASETS.register("image")
class Image(DatasetAdapter):
    """Raw uint8 pixels in the order height, width, channel: bytes of that length, or lists of that many numbers from 0 to 255."""

    modality = "image"
    tasks = frozenset({"classification", "regression", "image_generation"})
    columns = ("pixels", "label")

    class Parameters(LabelledParameters):
        """Parameters of `image`."""

        height: int = Field(ge=1, le=4096, description="Rows of pixels.")
        width: int = Field(ge=1, le=4096, description="Columns of pixels.")
        channels: int = Field(1, ge=1, le=16, description="Values per pixel.")
        mean: tuple[Scale, ...] = Field((), description="Subtracted per channel after scaling to 0 to 1; empty means nothing is.")
        std: tuple[Annotated[Scale, Field(gt=0)], ...] = Field((), description="Divisor per channel after that; empty means none.")

        @model_validator(mode="after")
        def _one_per_channel(self) -> "Image.Parameters":
            if any(len(scale) not in {0, self.channels} for scale in (self.mean, self.std)):
                raise ValueError("mean and std take one number per channel")
            return self

    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, ch, H, W) uint8 and y (n,) int64. Raises MissingLabels, or InvalidInput where pixels are missing or of another size."""
        p = self.parameters
        y = labels(rows, p)
        flat = as_bytes(column(rows, "pixels"), p.height * p.width * p.channels)
        images = torch.from_numpy(flat).view(-1, p.height, p.width, p.channels)
        return images.permute(0, 3, 1, 2).contiguous(), y

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the function from uint8 (B, ch, H, W) to float32: divided by 255, then scaled by `mean` and `std`."""
        return Scaling(self.parameters)


class Scaling:
    """uint8 pixels (B, ch, H, W) to float32, one multiplication and one addition per value; its constants follow the pixels' device."""

    def __init__(self, parameters: Any) -> None:
        count = parameters.channels
        mean = torch.tensor(parameters.mean or (0.0,) * count, dtype=torch.float64)
        std = torch.tensor(parameters.std or (1.0,) * count, dtype=torch.float64)
        self._factor = (1 / (255 * std)).float()[:, None, None]
        self._offset = (-mean / std).float()[:, None, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B, ch, H, W) float32."""
        if self._factor.device != x.device:
            self._factor, self._offset = self._factor.to(x.device), self._offset.to(x.device)
        return x.float().mul_(self._factor).add_(self._offset)


def as_bytes(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return pixels as uint8 (n, size). Raises InvalidInput where a record is empty, of another length, or out of 0 to 255."""
    if pixels.dtype != object:
        flat = pixels.reshape(len(pixels), -1)
        if flat.shape[1] != size and len(flat):
            raise InvalidInput(detail=f"the column 'pixels' has {flat.shape[1]} values per record, not height * width * channels = {size}")
        if flat.dtype.kind not in "iu" or (flat.size and (flat.min() < 0 or flat.max() > 255)):
            raise InvalidInput(detail="the column 'pixels' must hold whole numbers from 0 to 255")
        return flat.astype(np.uint8).reshape(-1, size)
    values = pixels.tolist()
    if not all(isinstance(value, bytes) and len(value) == size for value in values):
        raise InvalidInput(detail=f"every value of the column 'pixels' must be {size} bytes (height * width * channels)")
    return np.frombuffer(bytearray().join(values), dtype=np.uint8).reshape(-1, size)
