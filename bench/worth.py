"""`python -m bench worth`: what forgetting costs with its evidence, beside one retraining.

Each line is one method on one request, by the worker's own steps: the method; the references of the plan, trained as on the first request of a
dataset version; the readings; and, for a second candidate, the same evaluation with those references in the cache and nothing else. The ratio is of
method and evidence with cached references over one retraining by the whole recipe, all in seconds of the processor and in one run. The goal is a
quarter. Reading and decoding data, training the original and the network's way to a worker are outside.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from torch import nn

from bench import sets
from bench.methods import Watch, cut, plan_of, printing_run
from bench.methods import World as Posed
from bench.row import Row
from services.derived import Folder, Limits
from services.errors import LetheError
from services.jobs.compute.context import Bench
from services.jobs.compute.evaluate import evaluate, references
from services.jobs.compute.unlearn import unlearn
from services.jobs.compute.verify import verify
from services.jobs.messages import BASE_FILE, RUN_FILE, VERDICT_FILE, JobSpec, Seeds
from services.jobs.steps.plan import of_what_is_left
from services.learning.cache import FolderCache
from services.learning.data import Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.tenants.policies import SEEDS
from services.unlearning.method import METHODS
from services.verification import evaluation

GOAL = 0.25
DATA = ("digits", "fashion_mnist")
REQUESTS: Mapping[str, tuple[str, ...]] = {"class": ("unsir", "lra_npp"), "subset": ("bad_teacher", "amnesiac")}
"""Kinds of request with the methods that are measured for them; the first of each stands first on the ladder of the default policy."""
ROOM = Limits(size_bytes=2**33, ttl_s=86_400.0)
TRAININGS = 2
"""A plan with retrained references trains the reference and its twin."""
COLUMNS = ("data", "request", "method", "retraining", "method s", "first references", "readings", "cached references", "readings", "ratio", "verdict")


@dataclass(frozen=True, slots=True)
class Scene:
    """One request on one set: its parts, the original, the plan of the policy, and the folder in which jobs and their cache lie."""

    held: sets.Bench
    kind: str
    seed: int
    task: Task
    splits: Splits
    original: nn.Module
    plan: Mapping[str, Any]
    home: Path

    def job(self, name: str, method: str, parameters: Mapping[str, Any], *, again: bool = False) -> Bench:
        """Return the bench of a job as a worker would open it; `again` draws other numbers, so that another candidate is judged."""
        folder = self.home / name
        folder.mkdir(parents=True)
        seeds = Seeds(train=self.seed, unlearn=derived_seed(self.seed, f"unlearn-{again}") % 2**31, evaluate=self.seed, reference=self.seed)
        recipe = self.held.recipe.model_dump(mode="json")
        spec = JobSpec(
            job_id=UUID(int=1), kind="unlearn", round=1, task=self.task.name, architecture=self.held.architecture.name, architecture_params={},
            adapter="tabular", adapter_params={}, recipe=recipe, method=method, params=dict(parameters), request_kind=self.splits.kind,
            plan=self.plan_for(method), seeds=seeds, device="cpu", deadline_s=10**6,
        )  # fmt: skip
        bench = Bench(
            folder, spec, torch.device("cpu"), self.held.architecture, self.held.recipe, self.task, self.splits, lambda _: None, lambda: False,
            self.cache(),
        )  # fmt: skip
        bench.save(self.original, BASE_FILE)
        return bench

    def plan_for(self, method: str) -> dict[str, Any]:
        """Return the plan of a job, which asks further what its method leaves inside a model."""
        readings = self.plan["readings"]
        left = of_what_is_left(readings, self.task.name, {METHODS[method].guarantee}, kind=self.splits.kind)
        return {**self.plan, "readings": [*readings, *left]}

    def cache(self) -> FolderCache:
        """Return the cache of the dataset, as the worker keeps it."""
        ids = [name for part in (self.held.train, self.held.test) for name in part.ids]
        digests = {name: f"{number:032x}" for number, name in enumerate(ids)}
        return FolderCache(Folder(self.home / "derived", ROOM), facts={}, digests=digests, device="cpu")

    def keep_references(self) -> None:
        """Drop from the cache all but references: what an earlier evaluation of the same request left must not make the next one cheap."""
        for path in (self.home / "derived").glob("*.json"):
            if json.loads(path.read_text())["kind"] not in {"reference", "shadow"}:
                path.with_suffix(".safetensors").unlink()
                path.unlink()


def pose(held: sets.Bench, kind: str, seed: int, policy: str, home: Path) -> Scene:
    """Train the original by the whole recipe and plan a request as a policy asks."""
    task, splits = Classification(held.classes), cut(held, kind, seed)
    run = Run(seed=derived_seed(seed, "original"), architecture=held.architecture, recipe=held.recipe)
    original = run.fresh_model("original")
    fit(original, held.train, task, held.recipe, run)
    original.eval()
    device = torch.device("cpu")
    # a plan looks at the original alone, so it stands in for the models that are not trained yet
    posed = Posed(held, kind, seed, task, splits, original, original, original, Watch().took(), device, printing_run(held, seed, device), {}, home)
    return Scene(held, kind, seed, task, splits, original, plan_of(posed, SEEDS[policy]), home)


def seconds(action: Callable[[], object]) -> float:
    """Run an action and return its seconds of the processor."""
    watch = Watch()
    action()
    return watch.took().cpu_seconds


def measured(scene: Scene, method: str, parameters: Mapping[str, Any], *, retraining: float | None) -> dict[str, Any]:
    """Return what one method and its evidence cost; with `retraining` given, the references stand already and no first time is measured."""
    found: dict[str, Any] = {"retraining": retraining, "first_references": None, "first_readings": None}
    if retraining is None:
        first = scene.job(f"{method}-first", method, parameters)
        found["first_method_seconds"] = seconds(lambda: unlearn(first))
        found["first_references"] = seconds(lambda: references(first, first.run("evaluate", first.spec.seeds.evaluate)))
        found["first_readings"] = seconds(lambda: evaluate(first)) + seconds(lambda: verify(first))
        found["retraining"] = found["first_references"] / TRAININGS
    scene.keep_references()
    later = scene.job(f"{method}-later", method, parameters, again=True)
    found["method_seconds"] = seconds(lambda: unlearn(later))
    found["cached_references"] = seconds(lambda: references(later, later.run("evaluate", later.spec.seeds.evaluate)))
    found["cached_readings"] = seconds(lambda: evaluate(later)) + seconds(lambda: verify(later))
    told = json.loads((later.folder / RUN_FILE).read_text())
    verdict = json.loads((later.folder / VERDICT_FILE).read_text())["verdict"]
    if told["reference_from"] != "cache":
        raise RuntimeError("the references of the second evaluation were trained again")
    return found | {"verdict": " ".join((verdict["verdict"], *verdict["codes"]))}


def rows_of(scene: Scene, methods: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each method of a request; a method that refuses or diverges says so, and has no number."""
    retraining: float | None = None
    for method in methods:
        setting = sets.settings_of(scene.held.name, scene.kind, method)[0]
        try:
            found = measured(scene, method, setting.parameters, retraining=retraining)
        except LetheError as refusal:
            sys.stderr.write(f"{scene.held.name} {scene.kind} {method}: {str(refusal).splitlines()[0]}\n")
            continue
        retraining = found["retraining"]
        whole = found["method_seconds"] + found["cached_references"] + found["cached_readings"]
        detail = {
            "data": scene.held.name, "kind": scene.kind, "method": method, "parameters": dict(setting.parameters), "seed": scene.seed,
            "records": len(scene.held.train), "forget": len(scene.splits.forget), "network": scene.held.architecture.name,
            "epochs": scene.held.recipe.epochs, "threads": torch.get_num_threads(), "readings": len(scene.plan_for(method)["readings"]),
            **{name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()},
        }  # fmt: skip
        yield Row("worth: method and evidence", whole / found["retraining"], GOAL, "lower", detail)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        told: Mapping[str, Any] = row.detail
        numbers = ("retraining", "method_seconds", "first_references", "first_readings", "cached_references", "cached_readings")
        cells = ["-" if told[name] is None else f"{told[name]:.2f}" for name in numbers]
        request = f"{told['kind']}, {told['forget']} records"
        lines.append(f"| {told['data']} | {request} | `{told['method']}` | " + " | ".join([*cells, f"{row.ratio:.3f}", told["verdict"]]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the bench; return 1 where a data set is missing, after those that are there."""
    options = parse(arguments)
    torch.set_num_threads(1)
    METHODS.discover("services.unlearning.methods")
    evaluation.discover()
    rows: list[Row] = []
    missing = 0
    for name in options.data.split(","):
        try:
            held = sets.load(name, records=options.records)
        except sets.DataMissing as error:
            sys.stderr.write(f"{name}: {error}\n")
            missing = 1
            continue
        for kind in options.kinds.split(","):
            with tempfile.TemporaryDirectory() as home:
                for row in rows_of(pose(held, kind, options.seed, options.policy, Path(home)), REQUESTS[kind]):
                    rows.append(row)
                    print(row.line(), flush=True)
                    if options.json is not None:
                        with options.json.open("a") as lines:
                            lines.write(row.line() + "\n")
    sys.stderr.write(table(rows) + "\n")
    return missing


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench worth", description="Measure what forgetting costs with its evidence.")
    parser.add_argument("--data", default=",".join(DATA), help=f"names with commas between them, of {', '.join(sorted(sets.SETS))}")
    parser.add_argument("--kinds", default=",".join(REQUESTS), help=f"of {', '.join(REQUESTS)}")
    parser.add_argument("--policy", choices=sorted(SEEDS), default="gdpr-default")
    parser.add_argument("--records", type=int, help="train on this many records, and hold out half as many; by default all of both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append one line a method to this file")
    return parser.parse_args(arguments)
