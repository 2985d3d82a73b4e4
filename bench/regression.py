"""`python -m bench regression` and `forecasting`: methods for real-valued targets, beside the original and a model retrained without the records.

One line of JSON a run; `before`, `after` and `retrained` hold the same numbers of the three models, errors in the units of the targets. The
verdict is that of the readings which a policy has for the task.
"""

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench import real_sets, sets
from bench.methods import Took, Watch, given, spent, trained, value
from bench.real_sets import RANGE, SUBSET, RealBench
from services.errors import LetheError
from services.learning.data import Split, Splits
from services.learning.run import Run, derived_seed
from services.tenants.policies import GDPR_DEFAULT, readings_for
from services.unlearning.method import METHODS, UnlearningMethod
from services.verification import evaluation
from services.verification.integrity import WeightFacts
from services.verification.metric import Models
from services.verification.reading import Measured, Number
from services.verification.verdict import IntegrityFacts, judge

QUICK_SEEDS, SUBSET_SHARE = 1, 0.05
AIN = {"seeds": 3, "steps": 60, "judged_rows": 500}
PRINTED = {
    "forget_error": ("metric", "mean_absolute_error", "forget_train"),
    "forget_test_error": ("metric", "mean_absolute_error", "forget_test"),
    "retain_error": ("metric", "mean_absolute_error", "retain_train"),
    "retain_test_error": ("metric", "mean_absolute_error", "retain_test"),
    "forget_squared_error": ("metric", "mean_squared_error", "forget_train"),
    "quantile_loss": ("metric", "quantile_loss", "forget_train"),
    "wasserstein": ("metric", "wasserstein", "forget_train"),
    "mia_auc": ("attack", "regression_mia", "forget_train"),
    "ain": ("metric", "ain", "forget_train"),
}
SHOWN = ("forget_error", "retain_test_error", "wasserstein", "mia_auc", "ain")


@dataclass(frozen=True, slots=True)
class World:
    """One seed of one request: the records, the original, two retrained models and what the first of them took."""

    real: RealBench
    kind: str
    seed: int
    splits: Splits
    original: nn.Module
    retrained: nn.Module
    twin: nn.Module
    retrain_took: Took

    def run(self, purpose: str) -> Run:
        """Return a run on a seed of its own."""
        return Run(seed=derived_seed(self.seed, purpose), architecture=self.real.bench.architecture, recipe=self.real.bench.recipe)


def main(bench: str, arguments: Sequence[str]) -> int:
    """Run the bench `regression` or `forecasting`; return 1 where the data is missing."""
    options = parse(bench, arguments)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    evaluation.discover()
    console = Console(stderr=True, width=160)
    try:
        real = real_sets.load(options.data, quick=options.quick)
    except sets.DataMissing as missing:
        console.print(f"[red]{missing}[/red]", highlight=False)
        return 1
    kind = options.kind or real.kinds[0]
    rows: list[dict[str, Any]] = []
    for seed in range(1, 1 + (QUICK_SEEDS if options.quick else options.seeds)):
        world = prepare(real, kind, seed, cache=options.cache)
        for name in chosen(options.methods, real):
            rows.append(measured(bench, world, name))
            console.print(f"seed {seed}  {name:18s} {rows[-1]['verdict']}", highlight=False)
            print(json.dumps(rows[-1]), flush=True)
            if options.json is not None:
                with options.json.open("a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
    console.print(table_of(rows, f"{real.bench.name}, {kind}, {len(real.bench.train)} records to train on, {len(real.bench.test)} held out"))
    if options.plots is not None:
        console.print(str(draw(rows, options.plots)), highlight=False)
    return 0


def parse(bench: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    names = real_sets.BY_BENCH[bench]
    parser = argparse.ArgumentParser(prog=f"python -m bench {bench}", description="Measure unlearning of real-valued targets.")
    parser.add_argument("--data", choices=names, default=names[0])
    parser.add_argument("--kind", choices=("range", "subset", "month", "season"), help="what is forgotten; by default the set's first")
    parser.add_argument("--methods", default="all", help="all, or names with commas between them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer records, shorter recipes, one seed: at most 3 minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="append one line a run to this file")
    parser.add_argument("--plots", type=Path, help="write a plot of forget error against retain error into this folder")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench", help="where trained originals and references are kept")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def chosen(methods: str, real: RealBench) -> list[str]:
    """Return the names of the methods that serve the set's task, of those that are asked for."""
    serving = [name for name in METHODS if real.task.name in METHODS[name].tasks and "records" in METHODS[name].granularities]
    return serving if methods == "all" else [name for name in methods.split(",") if name in serving]


def prepare(real: RealBench, kind: str, seed: int, *, cache: Path) -> World:
    """Return the records of the request and the three models, trained now or taken from the cache."""
    held, splits = real.bench, cut(real, kind, seed)
    original, _ = trained(held, held.train, real.task, seed, "original", cache, torch.device("cpu"))
    retrained, took = trained(held, splits.retain, real.task, seed, f"reference-{kind}", cache, torch.device("cpu"))
    twin, _ = trained(held, splits.retain, real.task, seed, f"twin-{kind}", cache, torch.device("cpu"))
    return World(real, kind, seed, splits, original, retrained, twin, took)


def cut(real: RealBench, kind: str, seed: int) -> Splits:
    """Return the five parts of a request: the held-out records are cut in three. Raises ValueError for a kind that the set does not have."""
    if kind not in real.kinds:
        raise ValueError(f"{real.bench.name} has the kinds {', '.join(real.kinds)}, not {kind}")
    train, test = real.bench.train, real.bench.test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    analysis, verification, attack = (test.take(part) for part in order.chunk(3))
    forget, retain = forgotten(real, kind, seed, train)
    return Splits(forget, retain, analysis, verification, attack, span=real.span if kind == RANGE else None)


def forgotten(real: RealBench, kind: str, seed: int, train: Split) -> tuple[Split, Split]:
    """Return the records to be forgotten, and the others."""
    if kind == RANGE and real.span is not None:
        return train.within(real.span, keep=True), train.within(real.span, keep=False)
    if kind == SUBSET or real.erased is None:
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(derived_seed(seed, kind)))
        count = round(SUBSET_SHARE * len(train))
        return train.take(rows[:count]), train.take(rows[count:].sort().values)
    chosen_rows = real.erased(kind)
    return train.take(torch.nonzero(chosen_rows).flatten()), train.take(torch.nonzero(~chosen_rows).flatten())


def measured(bench: str, world: World, name: str) -> dict[str, Any]:
    """Return the row of one method at its defaults; a method that refuses or diverges gets its reason as verdict and no numbers after."""
    family = METHODS[name]
    method = family(family.Parameters())
    row: dict[str, Any] = {
        "bench": bench, "data": world.real.bench.name, "kind": world.kind, "method": name, "seed": world.seed,
        "architecture": world.real.bench.architecture.name, "threads": torch.get_num_threads(), "forgotten": len(world.splits.forget),
        "records": len(world.real.bench.train), "retrain_seconds": world.retrain_took.seconds,
        "retrain_cpu_seconds": world.retrain_took.cpu_seconds, "parameters": method.parameters.model_dump(mode="json"),
    }  # fmt: skip
    run = world.run(f"unlearn-{name}")
    watch = Watch()
    try:
        model = method.unlearn(copy.deepcopy(world.original), given(world.splits, family), world.real.task, run)
    except LetheError as refusal:
        return row | {"before": None, "after": None, "retrained": None, "verdict": f"failed: {refusal}", **spent(watch.took())}
    took = watch.took()
    row["parameters"] |= {"effective": run.notes.get("effective"), "steps": run.notes.get("steps")}
    models = Models(world.original, model, world.retrained, world.twin)
    judged = plan_of(world, readings_for(GDPR_DEFAULT.verification.model_dump(mode="json", by_alias=True), world.real.task.name, "records")[0])
    readings = evaluation.evaluate(judged, models, world.splits, world.real.task, world.run("evaluate"))
    found = judge(judged, readings, facts(world, family, model))
    verdict = " ".join((found.verdict, *found.codes))
    return row | numbers(world, models) | {"verdict": verdict, **spent(took)}


def plan_of(world: World, readings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a plan of these readings."""
    seeds = {"evaluate": derived_seed(world.seed, "evaluate") % 2**31}
    return {"reference": "retrained", "level": 0.9, "alpha": 0.05, "readings": list(readings), "seeds": seeds, "utility": None}


def numbers(world: World, models: Models) -> dict[str, Any]:
    """Return what is printed of the three models."""
    entries = [
        {"kind": kind, "name": name, "split": split, "gate": False, "parameters": AIN if name == "ain" else {}}
        for kind, name, split in PRINTED.values()
    ]
    readings = evaluation.evaluate(plan_of(world, entries), models, world.splits, world.real.task, world.run("printed"))
    columns = {"before": "before", "after": "after", "retrained": "reference"}
    return {column: {key: number_of(one, part) for key, one in zip(PRINTED, readings, strict=True)} for column, part in columns.items()}


def number_of(reading: Measured, part: str) -> float | None:
    """Return one column of a reading, or None where it could not be taken."""
    held: Number | None = getattr(reading, part)
    return value(held)


def facts(world: World, family: type[UnlearningMethod], model: nn.Module) -> IntegrityFacts:
    """Return what the verdict must know of the run beside its readings."""
    weights = WeightFacts.of(world.original.state_dict(), model.state_dict(), head=world.real.bench.architecture.head)
    whole = IntegrityFacts(
        finite=weights.finite,
        differs_from_parent=weights.differs,
        head_only=weights.head_only,
        plan_precedes_run=True,
        fresh_start=family.fresh_start,
        forget_read=family.needs.forget_set,
        guarantee=family.guarantee,
    )
    return replace(whole, records=len(world.splits.forget))


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return means over seeds, of the original, the retrained model and each method."""
    table = Table("method", *SHOWN, "seconds", "speed-up", "verdict", title=title)
    counted = [row for row in rows if row["after"] is not None]
    for column in ("before", "retrained") if counted else ():
        one_a_seed = list({row["seed"]: row for row in counted}.values())
        table.add_row(f"[{column}]".replace("[", "(").replace("]", ")"), *(averaged(one_a_seed, column, key) for key in SHOWN), "", "", "")
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        took, retrain = mean(row["method_cpu_seconds"] for row in mine), mean(row["retrain_cpu_seconds"] for row in mine)
        verdicts = ", ".join(sorted({row["verdict"][:60] for row in mine}))
        table.add_row(name, *(averaged(mine, "after", key) for key in SHOWN), f"{took:.2f}", f"{retrain / max(took, 1e-9):.1f}", verdicts)
    return table


def averaged(rows: Sequence[Mapping[str, Any]], column: str, key: str) -> str:
    """Return the mean over rows of one number, with least and greatest where there are several."""
    held = [row[column][key] for row in rows if row[column] is not None and row[column][key] is not None]
    if not held:
        return "-"
    return f"{mean(held):.3f}" + (f" [{min(held):.3f}, {max(held):.3f}]" if len(held) > 1 else "")


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `<data>-<kind>-errors.svg`, forget error against retain error of every method and of the retrained model; return its path."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    held = [row for row in rows if row["after"] is not None]
    for column, mark in (("before", "ks"), ("retrained", "k*")):
        axes.plot([row[column]["forget_error"] for row in held], [row[column]["retain_test_error"] for row in held], mark, label=column)
    for name in dict.fromkeys(row["method"] for row in held):
        mine = [row["after"] for row in held if row["method"] == name]
        axes.plot([one["forget_error"] for one in mine], [one["retain_test_error"] for one in mine], "o", label=name)
    axes.set_xlabel("error on forgotten records")
    axes.set_ylabel("error on held-out records that stay")
    axes.legend()
    path = folder / f"{rows[0]['data']}-{rows[0]['kind']}-errors.svg"
    figure.savefig(path)
    plt.close(figure)
    return path
