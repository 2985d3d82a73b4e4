"""SISA: the constituents whose shard held a removed record are trained again from the slice before the first one that held it; the rest stay.

Source: Bourtoule et al., "Machine Unlearning", IEEE S&P 2021 (arXiv 1912.03817).
Differs: a record's shard and slice follow from its id and the seed of the training, so nothing has to be looked up and no other record moves; a
slice counts as unchanged only where the digests of its records, of the recipe and of the kept weights all agree. A network that was not trained in
shards counts as one shard of one slice, which costs a whole training.
"""

from torch import nn

from services.learning.data import Splits
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.sharding import ShardedNet
from services.learning.task import Task
from services.learning.training import fit
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.guard import Guard, diverging, with_retry
from services.unlearning.mechanisms.shard_training import expected_shards, expected_share, train_shards
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod


@METHODS.register("sisa")
class Sisa(UnlearningMethod):
    """Train again, without the removed records, only the constituents that had seen them."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "exact"
    needs = Needs(forget_set=False, retain_set=True, recipe=True)
    cost = Cost(of_recipe=0.5)
    retries = 0  # the same training would diverge again
    fresh_start = True  # what is kept of the original are constituents and slice states that never saw the records

    class Parameters(UnlearningMethod.Parameters):
        """Nothing to choose: shards and slices are the architecture's, the recipe is the original's."""

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode.

        Raises:
            MethodNotApplicable: every slice is as it was, so the records to forget were never among them. Diverged: a training loss is not finite.
        """
        admit(self, data, task, run)
        recipe: Recipe = run.recipe  # pyright: ignore[reportAssignmentType]  # `admit` saw it
        Guard.around(self.name, model, data.retain, task, run, factor=1.0)  # constituents that stay must be sound

        def attempt(_: float) -> None:
            with diverging(self.name, "shards"):
                if isinstance(model, ShardedNet):
                    self._resume(model, data, task, recipe, run)
                else:
                    self._one_shard(model, data, task, recipe, run)

        with_retry(self.name, model, run, attempt, retries=self.retries)
        return model

    def _resume(self, model: ShardedNet, data: Splits, task: Task, recipe: Recipe, run: Run) -> None:
        trained = int(model.rows.sum())
        seed = int(model.seed) if trained else derived_seed(run.seed, "shards")
        cost = train_shards(model, data.retain, task, recipe, run, seed=seed, resume=True, stage="sisa")
        if not cost.resumed:
            raise refuse(self, data, "no slice has changed: the records to forget were not among those that the model was trained on")
        removed = max(0, trained - len(data.retain))
        expected = {"shards": expected_shards(model.shards, removed), "share_for_one_record": expected_share(model.shards, model.slices)}
        run.note("effective", {"shards": model.shards, "slices": model.slices, "shard_seed": seed})
        run.note("steps", cost.steps or {"sisa": 0})
        run.note("cost", {**cost.described(), "records_removed": removed, "expected": expected})

    def _one_shard(self, model: nn.Module, data: Splits, task: Task, recipe: Recipe, run: Run) -> None:
        run.note("constituents", "the network was not trained in shards: it is trained again as a whole")
        fresh = run.fresh_model("sisa")
        result = fit(fresh, data.retain, task, recipe, run, stage="sisa", generator=run.stream("sisa/order"))
        model.load_state_dict(fresh.state_dict())
        passes = len(data.retain) * recipe.epochs
        run.note("steps", {"sisa": result.steps})
        run.note("cost", {"shards_trained": 1, "record_passes": passes, "whole_record_passes": passes, "share_of_whole_training": 1.0})
