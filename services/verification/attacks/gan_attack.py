"""Membership attack on a GAN: does the discriminator call the forgotten images more real than images it never saw?

Source: Hayes et al., "LOGAN: Membership Inference Attacks Against Generative Models", PETS 2019 (arXiv 1705.07663), the white box.
Where no discriminator was kept, the score is how well the generator can be made to show the image: Chen et al., CCS 2020 (arXiv 1909.03935).
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.gan import as_gan
from services.learning.inversion import invert
from services.learning.run import Run
from services.learning.task import Task
from services.verification.areas import area, area_difference
from services.verification.attack import ATTACKS, Attack
from services.verification.metric import Direction, Models
from services.verification.outputs import NO_HELD_OUT, by_id, rows_of, with_labels_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.roc import Sides, class_weights
from services.verification.statistics.scores import Floats


@ATTACKS.register("gan_attack")
class GANAttack(Attack):
    """AUC of the discriminator's logit, forgotten images against held-out ones of the same classes: above .5 member, .5 nothing, below over-forgotten.

    Held-out images weigh as the classes of the forgotten ones. `detail.score` says whether the discriminator was read, or, where the checkpoint
    holds none, the error of inversion (best of several starts).
    """

    tasks = frozenset({"image_generation"})
    unit = "auc"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    paper = "arXiv 1705.07663"
    splits = ("forget_train", "retain_train")

    class Parameters(Attack.Parameters):
        """Parameters of the attack."""

        rows: int = Field(2000, ge=16, le=100_000, description="At most so many images a side.")
        inverted: int = Field(64, ge=8, le=5000, description="At most so many a side where images must be inverted.")
        inv_steps: int = Field(300, ge=10, le=5000, description="Steps of the inversion.")
        inv_restarts: int = Field(4, ge=1, le=64, description="Starts of the inversion.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the AUC with DeLong's interval."""
        white_box = as_gan(models.unlearned).discriminator is not None
        found = self._sides(data, run, split, white_box=white_box)
        if isinstance(found, Unmeasured):
            return found
        members, others = found
        scores = Sides(*(self._scores(models.unlearned, rows, task, run, white_box=white_box) for rows in found))
        detail = {"members": len(members), "non_members": len(others), "score": "discriminator" if white_box else "inversion"}
        n = min(len(members), len(others))
        return area(scores, _weights(members, others), level=self.parameters.level, n=n, detail=detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return AUC minus the AUC of `versus` on the same images, both by the discriminator, or by inversion where either has none."""
        pair = (models.unlearned, versus)
        white_box = all(as_gan(model).discriminator is not None for model in pair)
        found = self._sides(data, run, split, white_box=white_box)
        if isinstance(found, Unmeasured):
            return found
        mine, theirs = (Sides(*(self._scores(model, rows, task, run, white_box=white_box) for rows in found)) for model in pair)
        n = min(len(found[0]), len(found[1]))
        return area_difference(mine, theirs, _weights(*found), run, f"gan_attack/{split}/paired", level=self.parameters.level, n=n)

    def _sides(self, data: Splits, run: Run, split: str, *, white_box: bool) -> tuple[Split, Split] | Unmeasured:
        members = rows_of(data, split)
        if isinstance(members, Unmeasured):
            return members
        others = rows_of(data, "attack")
        if isinstance(others, Unmeasured):
            return others
        members, others = with_labels_of(members, others), with_labels_of(others, members)
        if min(len(members), len(others)) == 0:
            return NO_HELD_OUT
        most = self.parameters.rows if white_box else self.parameters.inverted
        streams = [run.stream(f"gan_attack/{name}") for name in (split, "attack")]
        return by_id(members, at_most=most, generator=streams[0]), by_id(others, at_most=most, generator=streams[1])

    def _scores(self, model: nn.Module, rows: Split, task: Task, run: Run, *, white_box: bool) -> Floats:
        """Return the score of each image, (n,), higher for members."""
        if white_box:
            return task.predict(model, rows).flatten().double().numpy()
        p, gan, batch = self.parameters, as_gan(model), rows.batch(torch.arange(len(rows)))
        y, stream = batch.y if gan.conditional else None, run.stream("gan_attack/inversion")
        found = invert(gan, batch.x, y, run, steps=p.inv_steps, restarts=p.inv_restarts, lr=0.05, generator=stream, stage="evaluate/invert")
        return -found.mse.double().cpu().numpy()


def _weights(members: Split, others: Split) -> np.ndarray:
    return class_weights(members.y.cpu().numpy(), others.y.cpu().numpy())
