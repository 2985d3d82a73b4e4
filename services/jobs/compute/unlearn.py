"""The step `unlearn`: the chosen method on the runner's copy of the original."""

import time
from dataclasses import asdict
from typing import Any

import torch

from services import memory
from services.errors import IntegrityBroken, MethodNotApplicable, UnsupportedTask
from services.jobs.compute.context import Bench, withheld
from services.jobs.compute.plugins import code_digest, versions
from services.jobs.compute.train import describe
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE
from services.unlearning.method import METHODS, UnlearningMethod


def method_of(bench: Bench) -> UnlearningMethod:
    """Return the job's method with its parameters. Raises UnknownComponent, UnsupportedTask, MethodNotApplicable."""
    chosen = METHODS[bench.spec.method or ""]
    if bench.spec.task not in chosen.tasks:
        raise UnsupportedTask(component=chosen.name, task=bench.spec.task, tasks=", ".join(sorted(chosen.tasks)))
    if bench.spec.request_kind not in chosen.granularities:
        could = ", ".join(name for name in METHODS if bench.spec.request_kind in METHODS[name].granularities)
        raise MethodNotApplicable(method=chosen.name, detail=f"it does not forget {bench.spec.request_kind}", could=could)
    if chosen.needs.recipe and bench.recipe is None:
        raise MethodNotApplicable(method=chosen.name, detail="the base version was uploaded without a recipe", could="methods without one")
    if bench.team.size > 1 and not memory.shared({"sharded": chosen.sharded, "memory": asdict(chosen.memory)}, bench.spec.params, bench.spec.task):
        could = ", ".join(name for name in METHODS if METHODS[name].sharded and bench.spec.task in METHODS[name].tasks)
        raise MethodNotApplicable(method=chosen.name, detail="it cannot work on weights that several devices share", could=could)
    return chosen(chosen.Parameters.model_validate(_parameters(bench)))


def _parameters(bench: Bench) -> dict[str, Any]:
    params = dict(bench.spec.params)
    chosen = METHODS[bench.spec.method or ""].Parameters
    if bench.spec.halved and "batch_size" in chosen.model_fields:
        given = chosen.model_validate(params)
        params["batch_size"] = max(1, int(given.model_dump()["batch_size"]) // 2)
    return params


def unlearn(bench: Bench) -> None:
    """Run the method and write the candidate; its time excludes loading, saving and every measurement.

    Raises:
        IntegrityBroken: the original's weights are not those of before the method ran; then there is no candidate. Else what the method raises.
    """
    method = method_of(bench)
    original = bench.digest(BASE_FILE)
    model = bench.model(BASE_FILE)
    method.inspect(bench.splits)
    seen = withheld(bench.splits, forget=method.needs.forget_set, retain=method.needs.retain_set)
    run = bench.run("unlearn", bench.spec.seeds.unlearn)
    started = time.perf_counter()
    unlearned = method.unlearn(model, seen, bench.task, run)
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    seconds = time.perf_counter() - started
    if bench.digest(BASE_FILE) != original:
        raise IntegrityBroken(detail="the weights of the original changed while the method ran")
    bench.save(unlearned, CANDIDATE_FILE)
    bench.note_cache()
    notes = run.notes if bench.named_elsewhere is None else {**run.notes, "retained_records_that_name_it": bench.named_elsewhere}
    bench.note(
        method_seconds=seconds,
        method=method.name,
        method_version=method.version,
        guarantee=run.notes.get("guarantee", method.guarantee),
        secret_seeds=method.guarantee == "certified",
        fresh_start=method.fresh_start,
        parameters=method.parameters.model_dump(mode="json"),
        notes={name: note for name, note in notes.items() if name not in method.private_notes},
        versions=versions(),
        code_digest=code_digest(),
        threads=torch.get_num_threads(),
        ranks=bench.team.size,
        tensors=describe(bench),
    )
