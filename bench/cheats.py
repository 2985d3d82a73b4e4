"""`python -m bench cheats`: does the audit catch fakes, and does it pass honest work?

Every fake of `bench.fakes` and `bench.other_fakes` is judged as an approximate method under the plan that a policy makes of the request; beside them
models that were retrained from scratch with fresh seeds, judged alike. A plan that cannot tell the original from a retrained model, or a retrained
model from another, is `cannot_pass`: it passes nothing and the request goes to an exact method. How many plans are that is printed as well.
"""

import argparse
import copy
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from bench import cheat_tables, fakes, other_fakes, sets
from bench.cheat_worlds import SCENES, Scene
from bench.fakes import FAKES, trained_on
from bench.methods import World, chosen, cut, plan_of, policy_of, unlearned
from services.errors import LetheError
from services.jobs.steps.reference import MODELS
from services.learning.run import Run
from services.learning.task import Task
from services.tenants.policies import SEEDS, PolicyBody
from services.unlearning.method import METHODS
from services.verification import evaluation
from services.verification.integrity import WeightFacts
from services.verification.metric import METRICS, Models
from services.verification.reading import Measured, Reading, Unmeasured
from services.verification.shadows import Shadows, shadows
from services.verification.verdict import IntegrityFacts, Verdict, judge

QUICK = ("digits", "digit_angle")
WRITTEN_IN = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in (fakes, other_fakes))).hexdigest()[:16]


def main(arguments: Sequence[str]) -> int:
    """Run the suite; return 1 where a fake passed under a plan that can be passed. A set whose files are missing is named and left out."""
    options = parse(arguments)
    console = Console(stderr=True, width=170)
    if options.lines is not None:
        return told([json.loads(line) for line in options.lines.read_text().splitlines()], console)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    evaluation.discover()
    rows: list[dict[str, Any]] = []
    for data in options.data:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            try:
                world = SCENES[data].make(seed, options.cache)
            except sets.DataMissing as missing:
                console.print(f"[red]{data}: {missing}[/red]", highlight=False)
                break
            for row in judged(world, SCENES[data], data, options):
                rows.append(row)
                console.print(cheat_tables.line_of(row), highlight=False)
                if options.json is not None:
                    with options.json.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
    return told(rows, console)


def told(rows: Sequence[Mapping[str, Any]], console: Console) -> int:
    """Print the tables of lines; return 1 where a fake passed."""
    for table in cheat_tables.tables(rows):
        console.print(table)
    for line in cheat_tables.shares(rows):
        console.print(line, highlight=False)
    return 1 if cheat_tables.got_through(rows) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench cheats", description="Judge fakes and honest models by the same plans.")
    parser.add_argument("--data", default="all", help=f"all, shipped (with scikit-learn), or names with commas between them: {', '.join(SCENES)}")
    parser.add_argument("--policy", choices=("fitting", *sorted(SEEDS)), default="gdpr-default", help="`fitting` is `demo` for small sets")
    parser.add_argument("--reference", choices=("retrained", "shadow-band"), default="retrained", help="what the readings are held against")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--honest", type=int, default=4, help="retrained models with fresh seeds for each request")
    parser.add_argument("--fakes", default="all", help="all, none, or names with commas between them")
    parser.add_argument("--methods", default="none", help="approximate methods whose work is judged beside them: all, none, or names with commas")
    parser.add_argument(
        "--beside", default="", help="metrics taken of each model for information, with commas between them; no verdict hangs on them"
    )
    parser.add_argument("--quick", action="store_true", help="two requests, one seed, three honest models: at most three minutes on two cores")
    parser.add_argument("--json", type=Path, help="append one line a case to this file")
    parser.add_argument("--lines", type=Path, help="judge nothing, print the tables of the lines in this file")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    usual = {name: scene for name, scene in SCENES.items() if not scene.aside}
    groups = {"all": list(usual), "shipped": [name for name, scene in usual.items() if scene.shipped]}
    options.data = groups.get(options.data) or options.data.split(",")
    options.fakes = {"all": list(FAKES), "none": []}.get(options.fakes, options.fakes.split(","))
    options.beside = [name for name in options.beside.split(",") if name]
    unknown = [*(name for name in options.data if name not in SCENES), *(name for name in options.fakes if name not in FAKES)]
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}")
    if options.quick:
        options.data, options.seeds, options.honest = list(QUICK), 1, 3
    return options


# --- one request -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of one request: a plan that is made once, and task and run that keep what the models answered."""

    world: World
    plan: Mapping[str, Any]
    task: Task
    run: Run
    unseen: Shadows | None = None

    @classmethod
    def of(cls, world: World, policy: PolicyBody, beside: Sequence[str] = ()) -> "Audit":
        """Plan the audit as a policy asks; what is only printed is left out, since no verdict hangs on it, but for the metrics `beside`."""
        plan = plan_of(world, policy)
        plan["readings"] = [quiet(entry) for entry in plan["readings"] if entry["gate"]] + [printed(name) for name in beside]
        unseen = None
        if plan["reference"] == "shadow-band":
            found = shadows(world.splits, world.task, world.run("shadows"), models=MODELS)
            if isinstance(found, Unmeasured):
                sys.exit(f"no models on random halves can be trained: {found.reason}")
            unseen = found
        return cls(world, plan, *evaluation.shared(plan, world.task, world.run("evaluate")), unseen)

    def columns(self, model: nn.Module) -> dict[str, Any]:
        """Return what is found of a model that claims to be the work of an approximate method."""
        models = Models(self.world.original, model, self.world.retrained, self.world.twin)
        if self.unseen is not None:
            models = Models(self.world.original, model, unseen=self.unseen)
        readings = evaluation.evaluate(self.plan, models, self.world.splits, self.task, self.run)
        found = {**shown(judge(self.plan, readings, facts(self.world, model))), "differences": differences(readings)}
        informing = {entry["name"] for entry in self.plan["readings"] if not entry["gate"]}
        beside = {reading.name: values(reading) for reading in readings if reading.name in informing}
        return {**found, "beside": beside} if beside else found


def referred(policy: PolicyBody, reference: str, world: World) -> PolicyBody:
    """Return a policy with another mode of reference, where the request knows it: no random half is without a class."""
    if reference == "shadow-band" and (world.kind == "class" or world.splits.span is not None or world.task.name != "classification"):
        sys.exit("models on random halves say nothing of a class, of a range or of another task than classification")
    return policy.model_copy(update={"verification": policy.verification.model_copy(update={"reference": reference})})


def quiet(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reading of a plan without the attack that is fitted for information."""
    silent = {"mia_v2": {"learned": False}, "regression_mia": {"fitted": False}}.get(str(entry["name"]), {})
    return {**entry, "parameters": {**entry["parameters"], **silent}}


def judged(world: World, scene: Scene, data: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for every plan that is only foreseen, for every fake that makes sense for the request, and for the retrained models."""
    policy = referred(policy_of(world) if options.policy == "fitting" else SEEDS[options.policy], options.reference, world)
    audit = Audit.of(world, policy, options.beside)
    common = {"bench": "cheats", "task": world.task.name, "data": data, "kind": world.splits.kind, "seed": world.seed, "policy": options.policy}
    common |= {"reference": policy.verification.reference}
    yield from foreseen(world, scene, policy, common)
    common |= {"records": len(world.splits.forget), "plan": chances(audit.plan)}
    for name in [name for name in options.fakes if FAKES[name].fits(world)]:
        try:
            found = audit.columns(made(world, name))
        except LetheError as refusal:
            found = {"verdict": "refused", "codes": [refusal.code], "states": {}}
        yield {**common, "case": name, "honest": False, **found}
    for number in range(1, options.honest + 1):
        model = trained_on(world, world.splits.retain, f"honest-{number}")
        yield {**common, "case": f"retrained {number}", "honest": True, **audit.columns(model)}
    for name in approximate(options.methods, world):
        yield {**common, "case": f"method {name}", "honest": None, **worked(audit, name)}


def approximate(methods: str, world: World) -> list[str]:
    """Return the approximate methods that were asked for and serve the request. Exits with the reason for a name that does not."""
    if methods == "none":
        return []
    names = chosen(methods, world.kind)
    return names if methods != "all" else [name for name in names if METHODS[name].guarantee in {"approximate", "suppression"}]


def worked(audit: Audit, name: str) -> dict[str, Any]:
    """Return what is found of the work of a method at its own parameters; one that refuses or diverges is `refused`."""
    try:
        model = unlearned(audit.world, METHODS[name](METHODS[name].Parameters()), audit.world.run(f"unlearn-{name}"))
    except LetheError as refusal:
        return {"verdict": "refused", "codes": [refusal.code], "states": {}}
    return audit.columns(model)


def foreseen(world: World, scene: Scene, policy: PolicyBody, common: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the plans that requests for other numbers of records would get: nothing but the original is needed for them."""
    for count in scene.counts:
        asked = replace(world, splits=cut(world.bench, "subset", world.seed, count=count))
        yield {**common, "records": count, "case": "plan", "plan": chances(plan_of(asked, policy))}


def chances(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a plan foresees of itself."""
    power: Mapping[str, Any] = plan["power"]
    return {name: power[name] for name in ("cannot_pass", "retrained_passes", "original_fails")} | {
        "widths": {f"{entry['name']}/{entry['split']}": entry["epsilon"] for entry in plan["readings"] if entry["gate"]}
    }


def made(world: World, name: str) -> nn.Module:
    """Return a fake, made now or taken from the cache; what all fakes are written in is part of its key. What fakes raise goes through."""
    held = world.bench
    facts = [held.name, held.architecture.parameters.model_dump(mode="json"), held.recipe.model_dump(mode="json"), world.kind, world.seed]
    key = json.dumps([*facts, *world.splits.forget.ids, name, WRITTEN_IN, torch.__version__], sort_keys=True)
    path = world.cache / f"fake-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    if path.exists():
        model = copy.deepcopy(world.original)
        model.load_state_dict(load_file(path))
        return model.eval()
    model = FAKES[name].make(world).eval()
    if model.state_dict().keys() == world.original.state_dict().keys():  # a detector with tensors of its own is made anew each time
        save_file({part: tensor.contiguous() for part, tensor in model.state_dict().items()}, path)
    return model


def facts(world: World, model: nn.Module) -> IntegrityFacts:
    """Return what the verdict must know beside the readings."""
    weights = WeightFacts.of(world.original.state_dict(), model.state_dict(), head=world.bench.architecture.head)
    return IntegrityFacts(
        finite=weights.finite,
        differs_from_parent=weights.differs,
        head_only=weights.head_only,
        plan_precedes_run=True,
        fresh_start=False,
        forget_read=True,
        guarantee="approximate",
        records=len(world.splits.forget),
    )


def shown(verdict: Verdict) -> dict[str, Any]:
    """Return verdict, codes and the state of each gating reading."""
    states = {f"{state.name}/{state.split}": state.state for state in verdict.states if state.state not in {"info", "null"}}
    return {"verdict": verdict.verdict, "codes": list(verdict.codes), "states": states}


def printed(name: str) -> dict[str, Any]:
    """Return a reading of a plan that informs."""
    component = METRICS[name]
    return {"kind": "metric", "name": name, "split": component.splits[0], "direction": "info", "epsilon": None, "gate": False, "parameters": {}}


def values(reading: Measured) -> dict[str, list[float] | str]:
    """Return a reading of the original, of the model and of the retrained one, each with its interval, or the reason for none."""
    taken = {"before": reading.before, "after": reading.after, "reference": reading.reference}
    return {name: interval(one) if isinstance(one, Reading) else str(getattr(one, "reason", "-")) for name, one in taken.items()}


def interval(one: Reading) -> list[float]:
    """Return a value and both ends of its interval."""
    return [round(end, 4) for end in (one.value, one.low, one.high)]


def differences(readings: Sequence[Measured]) -> dict[str, list[float]]:
    """Return by how much each reading differs from the retrained model's on the same records, with its interval; without a pair, that of the reading."""
    found: dict[str, list[float]] = {}
    for reading in readings:
        name, pair, after, beside = f"{reading.name}/{reading.split}", reading.paired, reading.after, reading.reference
        if isinstance(pair, Reading):
            found[name] = interval(pair)
        elif isinstance(after, Reading) and isinstance(beside, Reading):
            found[name] = [round(end - beside.value, 4) for end in (after.value, after.low, after.high)]
    return found
