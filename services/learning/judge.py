"""A small classifier that looks at images: what class they show, and where they lie among its features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.data import Split
from services.learning.modes import evaluating, image_layout, inputs_of
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.task import TASKS
from services.learning.training import fit

LOOK_BATCH = 500


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judge says of n images: classes (n,) int64 and features (n, d) float32, both on the CPU."""

    classes: Tensor
    features: Tensor


@dataclass(frozen=True, slots=True)
class Judge:
    """A classifier of images (B, ch, H, W) in the model's own scale; its features are what its last layer takes."""

    model: nn.Module

    def look(self, images: Tensor) -> Seen:
        """Return classes and features of `images` (n, ch, H, W)."""
        classes, features = [torch.zeros(0, dtype=torch.int64)], []
        with evaluating(self.model), image_layout(self.model), torch.no_grad(), inputs_of(self.model.get_submodule("head")) as seen:
            for part in images.split(LOOK_BATCH):
                classes.append(self.model(part).argmax(dim=1).cpu())
                features.append(seen.pop().float().cpu())
        return Seen(torch.cat(classes), torch.cat(features))

    def look_at_records(self, rows: Split) -> Seen:
        """Return classes and features of the records of `rows` in order."""
        found = [self.look(batch.x) for batch in rows.batches(LOOK_BATCH)]
        return Seen(torch.cat([each.classes for each in found]), torch.cat([each.features for each in found]))


def small_network(**parameters: int) -> Architecture:
    """Return the small convolutional classifier of the registry; what is not registered yet is looked for."""
    if "tiny_cnn" not in ARCHITECTURES:
        ARCHITECTURES.discover("services.learning.architectures")
    if "classification" not in TASKS:
        TASKS.discover("services.learning.tasks")
    family = ARCHITECTURES["tiny_cnn"]
    return family(family.Parameters.model_validate(parameters))


def train_judge(rows: Split, classes: int, run: Run, purpose: str, *, epochs: int, width: int = 8, batch_size: int = 64) -> Judge:
    """Return a classifier trained on `rows`, its seeds derived from `purpose`. Cancelled, DeadlineExceeded: through `run.report`."""
    channels = int(rows.batch(torch.arange(1)).x.shape[1])
    network = small_network(outputs=classes, channels=channels, width=width)
    model = network.fresh(derived_seed(run.seed, f"{purpose}/weights")).to(run.device)
    recipe = Recipe.model_validate({"learning_rate": 3e-3, "epochs": epochs, "batch_size": batch_size, "schedule": "cosine"})
    fit(model, rows, TASKS["classification"](classes), recipe, run, stage=purpose, generator=run.stream(purpose))
    return Judge(model.eval())
