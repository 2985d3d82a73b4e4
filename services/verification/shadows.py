"""Reference models: networks trained by the original's recipe on random halves of the records, so that each record has models that never saw it.

Source: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022 (arXiv 2112.03570), with the pool of this service: the
forget set, the retain set and the non-members of the attack split, so that members and non-members are treated alike.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from services.learning.cache import records_digest
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import fit
from services.verification.outputs import NO_ARCHITECTURE, by_id, generator_of, joined, order_by_id, outputs_on, rows_of
from services.verification.reading import Unmeasured
from services.verification.statistics.likelihood_ratio import Kept, halves
from services.verification.statistics.scores import Floats, margins

NO_RECIPE = Unmeasured("no_recipe")
NO_TRAINING_DATA = Unmeasured("no_training_data_held")
NOT_KEPT = Unmeasured("not_kept_of_these_records")
FLIPPED = "/flipped"


@dataclass(frozen=True, slots=True)
class Shadows:
    """R reference models by what they say: `phi` (R, n) margins, and `keep` (R, n), which record each learned from; columns in the order of `ids`.

    `plain` (R, n) are margins of the records as they are, where `phi` is of all their views, and `right` (R, n) says which the model labels right.
    """

    ids: tuple[str, ...]
    phi: Floats
    keep: Kept
    plain: Floats
    right: Kept

    def on(self, rows: Split) -> tuple[Floats, Kept]:
        """Return the columns of `rows`, sorted by record id as a model's own outputs are."""
        columns = self._columns(rows)
        return self.phi[:, columns], self.keep[:, columns]

    def unseen_on(self, rows: Split) -> "Unseen | Unmeasured":
        """Return what the models say of `rows`, sorted by record id, and which of them had not seen each; of rows that are not kept nothing is known."""
        if not set(rows.ids) <= set(self.ids):
            return NOT_KEPT
        columns = self._columns(rows)
        return Unseen(self.plain[:, columns], self.right[:, columns], ~self.keep[:, columns])

    @property
    def learned(self) -> float:
        """How many records a model learned from, in the mean."""
        return float(self.keep.sum(axis=1).mean())

    def _columns(self, rows: Split) -> list[int]:
        place = {name: number for number, name in enumerate(self.ids)}
        return [place[name] for name in sorted(rows.ids)]


@dataclass(frozen=True, slots=True)
class Unseen:
    """What R models say of n records: margins (R, n), whether they are right (R, n), and whether they had not seen the record, `out` (R, n)."""

    margins: Floats
    right: Kept
    out: Kept


def margins_on(model: nn.Module, rows: Split, task: Task) -> Floats:
    """Return the margin phi of each row (n,), sorted by record id; of images, the mean over the image and its mirror image."""
    order = order_by_id(rows)
    labels = rows.y.detach().cpu().long().numpy()
    found = [margins(task.predict(model, view).detach().cpu().double().numpy(), labels) for view in views(rows)]
    return np.mean(found, axis=0)[order]


def views(rows: Split) -> list[Split]:
    """Return the rows as they are and, of images, mirrored: a record that was learned is known in each of its views."""
    if rows.x.ndim != 4:
        return [rows]
    return [rows, replace(rows, x=rows.x.flip(-1), ids=tuple(f"{name}{FLIPPED}" for name in rows.ids))]


def shadows(data: Splits, task: Task, run: Run, *, models: int) -> Shadows | Unmeasured:
    """Return `models` reference models, trained now or kept from an earlier evaluation of the same records.

    Verification rows are in no training set; they are the population that other attacks compare with. What is trained hangs on the records, the
    recipe and the seed of `run.for_shadows()`: requests on the same records share it, and a job of its own may have trained it ahead.

    Raises:
        Cancelled, DeadlineExceeded: through `run.report`.
    """
    if run.recipe is None:
        return NO_RECIPE
    if run.architecture is None:
        return NO_ARCHITECTURE
    if not len(data.retain):
        return NO_TRAINING_DATA
    non_members = rows_of(data, "attack")
    population = rows_of(data, "test")
    if isinstance(non_members, Unmeasured):
        return non_members
    pool = by_id(joined(joined(data.forget, data.retain), non_members))
    seen = pool if isinstance(population, Unmeasured) else joined(pool, by_id(population))
    keep, run = np.zeros((models, len(seen)), dtype=np.bool_), run.for_shadows()
    keep[:, : len(pool)] = halves(models, len(pool), rng=generator_of(run, "shadows/keep"))
    recipe = run.recipe.model_dump(mode="json") if run.recipe is not None else {}

    def key() -> dict[str, object]:
        return {"keeps": "phi plain right", "records": records_digest(seen), "recipe": recipe, "task": task.name, "models": models, "seed": run.seed}

    def compute() -> dict[str, Tensor]:
        said = [_trained_on(number, pool, keep, seen, task, run) for number in range(models)]
        return {name: torch.from_numpy(np.stack([each[name] for each in said])) for name in ("phi", "plain", "right")}

    found = {name: tensor.cpu().numpy() for name, tensor in run.cache.remember("shadow", key, compute, records=seen.ids).items()}
    return Shadows(seen.ids, found["phi"].astype(np.float64), keep, found["plain"].astype(np.float64), found["right"].astype(np.bool_))


def _trained_on(number: int, pool: Split, keep: Kept, seen: Split, task: Task, run: Run) -> dict[str, Floats]:
    """Train one model on its half and return what it says of every row of `seen`, in that order, each (n,): `phi`, `plain` and `right` of Shadows."""
    recipe = run.recipe
    if recipe is None:
        raise ValueError("reference models are trained by the original's recipe, and there is none")
    purpose = f"shadow/{number}"
    model = run.fresh_model(purpose)
    rows = pool.take(torch.from_numpy(np.flatnonzero(keep[number, : len(pool)])))
    fit(model, rows, task, recipe, run, stage=purpose, generator=run.stream(f"{purpose}/order"))
    place = np.argsort(np.array(order_by_id(seen)))
    model.eval()
    out = outputs_on(model, seen, task)
    plain = margins(out.z, out.y)
    phi = plain if len(views(seen)) == 1 else margins_on(model, seen, task)
    return {name: values[place] for name, values in (("phi", phi), ("plain", plain), ("right", out.right.astype(np.float64)))}
