"""Texts and images in one feature space, by a CLIP network that is already on this machine; nothing is ever downloaded.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from services.unlearning.mechanisms.concepts import ConceptBank

WEIGHTS = "openai/clip-vit-base-patch32"
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipMissing(Exception):
    """CLIP cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP network and `tokens`, which turns texts into its inputs."""

    network: Any
    tokens: Callable[[list[str]], dict[str, Tensor]]
    pixels: int

    def images(self, x: Tensor) -> Tensor:
        """Return the features (B, d) of images (B, 1 or 3, H, W) in [0, 1], of length 1."""
        colour = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        sized = interpolate(colour, size=(self.pixels, self.pixels), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        shift, scale = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        with torch.no_grad():
            return normalize(self.network.get_image_features(pixel_values=(sized - shift) / scale).pooler_output, dim=1)

    def bank(self, names: Sequence[str], device: torch.device) -> ConceptBank:
        """Return `names` as directions: the features of the bare words, of length 1, without intercept."""
        inputs = {name: tensor.to(device) for name, tensor in self.tokens(list(names)).items()}
        with torch.no_grad():
            vectors = normalize(self.network.get_text_features(**inputs).pooler_output, dim=1)
        return ConceptBank(tuple(names), vectors, torch.zeros(len(names), device=device))


def local_clip(device: torch.device) -> Clip:
    """Return the CLIP network kept on this machine. Raises ClipMissing: the library or the weights are not here."""
    if find_spec("transformers") is None:
        raise ClipMissing("the library transformers is not installed")
    transformers = import_module("transformers")  # optional, and its types take the checker a quarter of a minute
    try:
        network: Any = transformers.CLIPModel.from_pretrained(WEIGHTS, local_files_only=True)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)
    except OSError as error:
        raise ClipMissing(f"the weights {WEIGHTS} are not on this machine, and none are downloaded") from error
    return Clip(
        network.eval().requires_grad_(False).to(device),
        lambda texts: dict(tokenizer(texts, padding=True, return_tensors="pt")),
        int(network.config.vision_config.image_size),
    )
