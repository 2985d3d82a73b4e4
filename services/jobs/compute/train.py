"""The step `train`: a first version from a recipe, on every training record."""

import time

import torch

from models_store import tensors
from services.errors import InvalidInput
from services.jobs.compute.context import Bench
from services.jobs.compute.plugins import code_digest, versions
from services.jobs.messages import CANDIDATE_FILE
from services.unlearning.mechanisms.shard_training import train_whole


def train(bench: Bench) -> None:
    """Train a fresh model and write it as the candidate. Raises InvalidInput without a recipe, and what training raises."""
    if bench.recipe is None:
        raise InvalidInput(detail="a training job needs a recipe")
    run = bench.run("train", bench.spec.seeds.train)
    model = run.fresh_model("init")
    started = time.perf_counter()
    result = train_whole(model, bench.splits.retain, bench.task, bench.recipe, run)
    bench.save(model, CANDIDATE_FILE)
    bench.note(
        method_seconds=time.perf_counter() - started,
        steps=result.steps,
        final_loss=result.final_loss,
        parameters=bench.recipe.model_dump(),
        notes=run.notes,
        versions=versions(),
        code_digest=code_digest(),
        threads=torch.get_num_threads(),
        ranks=bench.team.size,
        tensors=describe(bench),
        fresh_start=True,
    )


def describe(bench: Bench) -> list[dict[str, object]]:
    """Return name, dtype and shape of the candidate's tensors."""
    state = tensors.load(bench.folder / CANDIDATE_FILE)
    return [{"name": key, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)} for key, value in sorted(state.items())]
