"""`python -m bench methods`: every unlearning method on real data, beside the original and a model retrained without the records.

For each seed the original and two retrained references are trained once and kept in the cache; every method starts from the same original.
Method seconds are the method alone; retrain seconds are the training of the reference on the same machine in the same run or cache entry.
"""

import argparse
import copy
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from bench import sets
from services.errors import LetheError
from services.jobs import power
from services.jobs.steps.plan import gated
from services.learning.data import Split, Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.tenants.policies import DEMO, GDPR_DEFAULT, PolicyBody, readings_for
from services.unlearning.method import METHODS, UnlearningMethod
from services.verification import evaluation
from services.verification.integrity import WeightFacts
from services.verification.metric import METRICS, Metric, Models
from services.verification.reading import Measured, Number, Reading
from services.verification.verdict import IntegrityFacts, Verdict, judge

KINDS = ("class", "subset", "subject")
SUBSET, SUBJECT, SMALL_SUBSET, SMALL_SUBJECT, SMALL = 500, 100, 60, 20, 5000
MEASURED_ROWS = 2000  # of the original's accuracy, which a plan wants to know
PRINTED = ("ain", "linear_probe_auc")  # in the table beside the policy's readings; no verdict asks for them
ACCURACIES = {
    "forget_accuracy": ("accuracy", "forget_train"),
    "forget_test_accuracy": ("accuracy", "forget_test"),
    "retain_train_accuracy": ("accuracy", "retain_train"),
    "retain_accuracy": ("accuracy", "retain_test"),
}
COLUMNS = (
    "method", "forget", "forget test", "retain", "retain test", "ZRF", "AIN", "MIA v2", "JS", "probe", "seconds", "retrain s", "speed-up", "verdict",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds by the clock, and seconds of the processor: with one thread the second does not see what else the machine does."""

    seconds: float
    cpu_seconds: float


class Watch:
    """Takes the time from its making on."""

    def __init__(self) -> None:
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def took(self) -> Took:
        """Return what has passed."""
        return Took(round(time.perf_counter() - self.began, 4), round(time.process_time() - self.cpu_began, 4))


@dataclass(frozen=True, slots=True)
class World:
    """One seed of one request: the records, the original, two retrained models and what the first of them took."""

    bench: sets.Bench
    kind: str
    seed: int
    task: Task
    splits: Splits
    original: nn.Module
    retrained: nn.Module
    twin: nn.Module
    retrain_took: "Took"
    device: torch.device
    printing: Run  # one for all methods: what it has relearned of the reference, it does not relearn for the next method
    printed_of_reference: dict[str, Number]
    cache: Path

    def run(self, purpose: str) -> Run:
        """Return a run on a seed of its own."""
        return Run(seed=derived_seed(self.seed, purpose), device=self.device, architecture=self.bench.architecture, recipe=self.bench.recipe)


def main(arguments: Sequence[str]) -> int:
    """Run the bench; return 1 where the data is missing."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    evaluation.discover()
    console = Console(stderr=True, width=180)
    try:
        held = sets.load(options.data, records=options.records, net=options.net)
    except sets.DataMissing as missing:
        console.print(f"[red]{missing}[/red]", highlight=False)
        return 1
    names = chosen(options.methods, options.kind)
    rows: list[dict[str, Any]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        world = prepare(held, options.kind, seed, cache=options.cache)
        for name, setting in [(one, setting) for one in names for setting in sets.settings_of(options.data, options.kind, one)]:
            row = measured(world, name, setting)
            rows.append(row)
            console.print(f"seed {seed}  {labelled(row):18s} {row['verdict']}", highlight=False)
            if options.json is not None:
                with options.json.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
    seen = f"{len(held.train)} records to train on, {len(held.test)} held out"
    console.print(table_of(rows, f"{options.data}, {options.kind}, {options.seeds} seeds, {held.architecture.name}, {seen}"))
    if options.plots is not None:
        from bench.plots import draw

        for path in draw(rows, options.plots):
            console.print(str(path), highlight=False)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench methods", description="Measure unlearning methods beside a retrained model.")
    parser.add_argument("--data", choices=sorted(sets.SETS), default="digits")
    parser.add_argument("--kind", choices=KINDS, default="class")
    parser.add_argument("--records", type=int, help="train on this many records, and hold out half as many; by default all of both")
    parser.add_argument("--net", choices=("own", "tiny"), default="own", help="the set's own network, or the small convolutional one for images")
    parser.add_argument("--methods", default="all", help="all, or names with commas between them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1, help="the seeds are this one and those that follow it")
    parser.add_argument("--json", type=Path, help="append one line a run to this file")
    parser.add_argument("--plots", type=Path, help="write two SVG plots into this folder")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench", help="where trained originals and references are kept")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def chosen(methods: str, kind: str) -> list[str]:
    """Return the names of the methods that serve a kind of request. Exits with the reason for a name that does not exist or does not serve it."""
    granularity = "class" if kind == "class" else "records"
    serving = [name for name in METHODS if granularity in METHODS[name].granularities and "classification" in METHODS[name].tasks]
    if methods == "all":
        return serving
    names = methods.split(",")
    wrong = [name for name in names if name not in serving]
    if wrong:
        sys.exit(f"cannot forget by {kind} here: {', '.join(wrong)}; these can: {', '.join(serving)}")
    return names


# --- the world -------------------------------------------------------------------------------------------------------------------------


def prepare(held: sets.Bench, kind: str, seed: int, *, cache: Path, count: int | None = None) -> World:
    """Return the records of the request and the three models, trained now or taken from the cache; `count` as for `cut`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = Classification(held.classes)
    splits = cut(held, kind, seed, count=count)
    splits = replace(splits, **{name: getattr(splits, name).to(device) for name in ("forget", "retain", "analysis", "verification", "attack")})
    train = held.train.to(device)
    original, _ = trained(held, train, task, seed, "original", cache, device)
    retrained, took = trained(held, splits.retain, task, seed, f"reference-{kind}", cache, device)
    twin, _ = trained(held, splits.retain, task, seed, f"twin-{kind}", cache, device)
    return World(held, kind, seed, task, splits, original, retrained, twin, took, device, printing_run(held, seed, device), {}, cache)


def printing_run(held: sets.Bench, seed: int, device: torch.device) -> Run:
    """Return the run of the readings that are printed only; its seed is that of no method."""
    return Run(seed=derived_seed(seed, "printed"), device=device, architecture=held.architecture, recipe=held.recipe)


def cut(held: sets.Bench, kind: str, seed: int, *, count: int | None = None) -> Splits:
    """Return the five parts of a request: the held-out records are cut in three. `count` records are forgotten where it is not a class."""
    order = torch.randperm(len(held.test), generator=torch.Generator().manual_seed(seed))
    analysis, verification, attack = (held.test.take(part) for part in order.chunk(3))
    if kind == "class":
        label = (held.forgotten,)
        forget, retain = held.train.with_labels(label, keep=True), held.train.with_labels(label, keep=False)
        return Splits(forget, retain, analysis, verification, attack, "class", label)
    if count is None:
        small = len(held.train) < SMALL
        count = (SMALL_SUBSET if small else SUBSET) if kind == "subset" else (SMALL_SUBJECT if small else SUBJECT)
    rows = torch.randperm(len(held.train), generator=torch.Generator().manual_seed(derived_seed(seed, kind)))
    return Splits(held.train.take(rows[:count]), held.train.take(rows[count:].sort().values), analysis, verification, attack, "records", ())


def trained(held: sets.Bench, rows: Split, task: Task, seed: int, purpose: str, cache: Path, device: torch.device) -> tuple[nn.Module, Took]:
    """Return a model trained on `rows` and what that took; kept in the cache under everything it depends on."""
    facts = {
        "set": held.name,
        "architecture": [held.architecture.name, held.architecture.parameters.model_dump(mode="json")],
        "recipe": held.recipe.model_dump(mode="json"),
        "seed": seed,
        "purpose": purpose,
        "records": hashlib.sha256("\n".join(rows.ids).encode()).hexdigest(),
        "device": device.type,
        "torch": torch.__version__,
    }
    stem = cache / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    run = Run(seed=derived_seed(seed, purpose), device=device, architecture=held.architecture, recipe=held.recipe)
    model = run.fresh_model(purpose)
    weights, notes = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    if weights.exists() and notes.exists():
        model.load_state_dict(load_file(weights, device=str(device)))
        kept = json.loads(notes.read_text())
        return model.eval(), Took(kept["seconds"], kept["cpu_seconds"])
    watch = Watch()
    fit(model, rows, task, held.recipe, run)
    took = watch.took()
    cache.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    notes.write_text(json.dumps({**facts, "seconds": took.seconds, "cpu_seconds": took.cpu_seconds}))
    return model.eval(), took


# --- one method ------------------------------------------------------------------------------------------------------------------------


def measured(world: World, name: str, setting: sets.Setting) -> dict[str, Any]:
    """Return the row of one method; a method that refuses or diverges gets its reason as verdict, and null for every number after it."""
    family = METHODS[name]
    method = family(family.Parameters(**setting.parameters))
    row: dict[str, Any] = {
        "bench": "methods", "data": world.bench.name, "kind": world.kind, "method": name, "seed": world.seed,
        "variant": setting.variant, "architecture": world.bench.architecture.name, "device": world.device.type,
        "threads": torch.get_num_threads(), "records": len(world.bench.train), "held_out": len(world.bench.test),
        "retrain_seconds": world.retrain_took.seconds, "retrain_cpu_seconds": world.retrain_took.cpu_seconds,
        "parameters": method.parameters.model_dump(mode="json"), "reason": setting.reason,
    }  # fmt: skip
    run = world.run(f"unlearn-{name}")
    watch = Watch()
    try:
        model = unlearned(world, method, run)
    except LetheError as refusal:
        row["parameters"] |= {"effective": None}
        return row | numbers({}) | originals({}) | {"verdict": f"failed: {refusal}", **spent(watch.took())}
    took = watch.took()
    row["parameters"] |= {"effective": run.notes.get("effective")}
    readings, verdict = verified(world, method, model, policy_of(world))
    return (
        row
        | numbers({(one.name, one.split): (one.after, one.reference) for one in readings} | printed(world, model))
        | originals({(one.name, one.split): one.before for one in readings})
        | {"verdict": shown(verdict), **spent(took)}
    )


def unlearned(world: World, method: UnlearningMethod, run: Run) -> nn.Module:
    """Return what a method makes of a copy of the original. Raises LetheError where it refuses or diverges."""
    return method.unlearn(copy.deepcopy(world.original), given(world.splits, type(method)), world.task, run)


def verified(world: World, method: UnlearningMethod, model: nn.Module, policy: PolicyBody) -> tuple[list[Measured], Verdict]:
    """Return the readings of the policy's plan, and the verdict on them."""
    plan = plan_of(world, policy)
    models = Models(world.original, model, world.retrained, world.twin)
    readings = evaluation.evaluate(plan, models, world.splits, world.task, world.run(f"evaluate-{method.name}"))
    return readings, judge(plan, readings, facts(world, type(method), model))


def shown(verdict: Verdict) -> str:
    """Return a verdict with its codes."""
    return " ".join((verdict.verdict, *verdict.codes))


def spent(took: Took) -> dict[str, float]:
    """Return what a method took, as a row names it."""
    return {"method_seconds": took.seconds, "method_cpu_seconds": took.cpu_seconds}


def labelled(row: Mapping[str, Any]) -> str:
    """Return the name of a row's method, with its variant where it has several."""
    return f"{row['method']} ({row['variant']})" if row.get("variant") else str(row["method"])


def given(splits: Splits, family: type[UnlearningMethod]) -> Splits:
    """Return what a method may see: neither the judge's records nor a set that it does not need."""
    nothing = torch.zeros(0, dtype=torch.int64)
    seen = splits.for_method()
    if not family.needs.forget_set:
        seen = replace(seen, forget=seen.forget.take(nothing))
    return seen if family.needs.retain_set else replace(seen, retain=seen.retain.take(nothing))


def policy_of(world: World) -> PolicyBody:
    """Return the seeded policy that fits the size of the set: `demo` where it is small."""
    return DEMO if len(world.bench.train) < SMALL else GDPR_DEFAULT


def plan_of(world: World, policy: PolicyBody) -> dict[str, Any]:
    """Return the plan of a policy for the request."""
    document = policy.verification.model_dump(mode="json", by_alias=True)
    kind = world.splits.kind
    listed, utility = readings_for(document, world.task.name, kind)
    counts = {name: len(world.splits.named(name)) for name in ("forget_train", "forget_test", "retain_train", "retain_test", "test")}
    readings = [gated(entry, counts, halves=document["reference"] == "shadow-band") for entry in listed]
    seeds = {name: derived_seed(world.seed, name) % 2**31 for name in ("train", "unlearn", "evaluate")}
    judged = {"level": document["level"], "alpha": document["alpha"], "utility": utility}
    known = replace(known_of(world), halves=document["reference"] == "shadow-band")
    foreseen = power.simulated(readings, **judged, known=known)
    return power.with_rules({**judged, **foreseen, "reference": document["reference"], "seeds": seeds, "batch_size": 1024, "request_kind": kind})


def known_of(world: World) -> power.Known:
    """Return what the service would know of the request before a run."""
    splits, kind = world.splits, world.splits.kind
    roles = {name: len(getattr(splits, name)) for name in ("forget", "retain", "analysis", "verification", "attack")}
    if kind == "class":
        roles |= {
            f"forget_{name}": len(rows.with_labels(splits.classes, keep=True))
            for name, rows in (("test", splits.verification), ("attack", splits.attack))
        }
    if splits.span is not None:
        roles |= {
            f"forget_{name}": len(rows.within(splits.span, keep=True)) for name, rows in (("test", splits.verification), ("attack", splits.attack))
        }
    if world.task.name != "classification":
        return power.Known(roles, "range" if splits.ranged else kind)
    parts = [sets.drawn(rows, MEASURED_ROWS) for rows in (splits.retain, splits.verification)]
    shares = [float((world.task.predict(world.original, rows).argmax(dim=1) == rows.y.cpu()).double().mean()) for rows in parts]
    return power.Known(roles, kind, world.bench.classes, *shares)


def facts(world: World, family: type[UnlearningMethod], model: nn.Module) -> IntegrityFacts:
    """Return what the verdict must know of the run beside its readings."""
    weights = WeightFacts.of(world.original.state_dict(), model.state_dict(), head=world.bench.architecture.head)
    return IntegrityFacts(
        finite=weights.finite,
        differs_from_parent=weights.differs,
        head_only=weights.head_only,
        plan_precedes_run=True,
        fresh_start=family.fresh_start,
        forget_read=family.needs.forget_set,
        guarantee=family.guarantee,
        records=len(world.splits.forget),
    )


def printed(world: World, model: nn.Module) -> dict[tuple[str, str], tuple[Number, Number]]:
    """Return the readings that are printed only, of the model and of the retrained one, which is read once."""
    found: dict[tuple[str, str], tuple[Number, Number]] = {}
    for name in PRINTED:
        metric = METRICS[name](METRICS[name].Parameters(**world.bench.reading_parameters.get(name, {})))

        def read(subject: nn.Module, metric: Metric = metric) -> Number:
            models = Models(world.original, subject, world.retrained, world.twin)
            return metric.measure(models, world.splits, world.task, world.printing, split="forget_train")

        if name not in world.printed_of_reference:
            world.printed_of_reference[name] = read(world.retrained)
        found[name, "forget_train"] = read(model), world.printed_of_reference[name]
    return found


def numbers(held: Mapping[tuple[str, str], tuple[Number | None, Number | None]]) -> dict[str, Any]:
    """Return the columns of the row: after, and the retrained model's beside it; null where there is no number."""
    wanted = {
        **ACCURACIES,
        "zrf": ("zrf", "forget_train"),
        "ain": ("ain", "forget_train"),
        "mia_auc": ("mia_v2", "forget_train"),
        "js_divergence": ("js_divergence", "forget_train"),
        "probe_auc": ("linear_probe_auc", "forget_train"),
    }
    row: dict[str, Any] = {}
    for column, key in wanted.items():
        after, reference = held.get(key, (None, None))
        row[column], row[f"retrained_{column}"] = value(after), value(reference)
        if column == "mia_auc":
            row["mia_interval"] = [round(after.low, 4), round(after.high, 4)] if isinstance(after, Reading) else None
    return row


def originals(held: Mapping[tuple[str, str], Number | None]) -> dict[str, float | None]:
    """Return the accuracies of the original, which a method's losses are also counted from."""
    return {f"original_{column}": value(held.get(key)) for column, key in ACCURACIES.items()}


def value(number: object) -> float | None:
    """Return a reading's value, or None where it could not be taken."""
    return round(number.value, 4) if isinstance(number, Reading) else None


# --- the table -------------------------------------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return means over seeds, with the retrained model's in brackets, the bounds of the attack below its mean, and the verdicts counted."""
    table = Table(*COLUMNS, title=title)
    for name in dict.fromkeys(labelled(row) for row in rows):
        mine = [row for row in rows if labelled(row) == name]
        method, retrain = mean(row["method_seconds"] for row in mine), mean(row["retrain_seconds"] for row in mine)
        passed = sum(row["verdict"] == "passed" for row in mine)
        other = ", ".join(sorted({row["verdict"][:48] for row in mine if row["verdict"] != "passed"}))
        columns = ("forget_accuracy", "forget_test_accuracy", "retain_train_accuracy", "retain_accuracy", "zrf", "ain", "mia_auc", "js_divergence")
        cells = [
            f"{beside(mine, column)}\n{bounds(mine)}".strip() if column == "mia_auc" else beside(mine, column) for column in (*columns, "probe_auc")
        ]
        times = (f"{method:.2f}", f"{retrain:.2f}", f"{retrain / max(method, 1e-9):.1f}")
        table.add_row(name, *cells, *times, f"{passed}/{len(mine)} passed {other}".strip())
    return table


def beside(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return the mean of a column and, in brackets, the retrained model's."""
    own = [row[column] for row in rows if row.get(column) is not None]
    gold = [row[f"retrained_{column}"] for row in rows if row.get(f"retrained_{column}") is not None]
    if not own:
        return "-"
    return f"{mean(own):.3f}" + (f" ({mean(gold):.3f})" if gold else "")


def bounds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the least lower and the greatest upper bound of the attack's area over seeds, or nothing where no row has an interval."""
    held = [row["mia_interval"] for row in rows if row.get("mia_interval") is not None]
    return f"[{min(low for low, _ in held):.3f}, {max(high for _, high in held):.3f}]" if held else ""
