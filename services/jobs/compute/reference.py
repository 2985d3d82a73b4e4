"""The step `reference`: train models on random halves of the records ahead, so that evaluations find them in the cache."""

from services.errors import InvalidInput
from services.jobs.compute.context import Bench
from services.verification.reading import Unmeasured
from services.verification.shadows import shadows


def reference(bench: Bench) -> None:
    """Train what the job's `params` ask for, {models: [R, ...]}. Raises InvalidInput where the records or the recipe do not allow it."""
    run = bench.run("reference", bench.spec.seeds.evaluate)
    run.shadow_seed = bench.spec.seeds.shadows
    for models in bench.spec.params["models"]:
        found = shadows(bench.splits, bench.task, run, models=int(models))
        if isinstance(found, Unmeasured):
            raise InvalidInput(detail=f"no reference models can be trained: {found.reason}")
    bench.note_cache()
