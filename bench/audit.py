"""`python -m bench audit`: what a method leaves behind of what it forgot, on one task; asked once for each version of a method.

`u_lira`: a model is trained many times, each time with half of the target records, which the method then forgets; what the unlearned models say of a
record that was forgotten is held against what they say of it where it was never there (arXiv 2403.01218). `one_run`: mislabelled records are planted
as canaries, each by a coin, the method forgets those that were, and half of them are guessed from what is left (arXiv 2305.08846). `klom` and
`neurips_f`: many models that forgot the same records are held against many that were trained without them (arXiv 2410.23232, 2406.09073). All are
also asked of the models before the method ran: where those show nothing either, the audit could not have seen anything.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench import audit_distributions, cheat_worlds, sets
from bench.audit_scene import BEFORE, Scene, described
from bench.methods import Watch, chosen
from services.errors import LetheError
from services.learning.data import Split
from services.learning.run import derived_seed
from services.learning.tasks.classification import Classification
from services.unlearning.method import METHODS
from services.verification.outputs import by_id
from services.verification.shadows import margins_on
from services.verification.statistics.likelihood_ratio import halves
from services.verification.statistics.method_audit import Separation, guessed, left_out_ratios, separation

LEVEL = 0.95
ATTACKS = ("u_lira", "one_run", *audit_distributions.ATTACKS)
LEAST_SHADOWS, LEAST_CANARIES = 8, 12


def main(arguments: Sequence[str]) -> int:
    """Run the audits; return 1 where the data is missing, 2 where there is too little of it to audit by."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    console = Console(stderr=True, width=150)
    try:
        held = cheat_worlds.mislabelled("noisy_digits") if options.data == "noisy_digits" else sets.load(options.data)
    except sets.DataMissing as missing:
        console.print(f"[red]{missing}[/red]", highlight=False)
        return 1
    wanted = options.canaries if options.attacks == ("one_run",) else options.targets
    if options.shadows < LEAST_SHADOWS or options.canaries < LEAST_CANARIES or wanted > len(held.train) // 2:
        sys.stderr.write(
            f"at least {LEAST_SHADOWS} shadows and {LEAST_CANARIES} canaries, and at most half of {len(held.train)} records as targets\n"
        )
        return 2
    rows: list[dict[str, Any]] = []
    for row in audited(held, chosen(options.method, "subset"), options):
        rows.append(row)
        console.print(f"{row['attack']:9s} {row['method']:18s} {told(row)}", highlight=False)
        if options.json is not None:
            with options.json.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
    title = f"{options.data}, {held.architecture.name}, seed {options.seed}"
    for of_attacks, attacks in ((table_of, ATTACKS[:2]), (audit_distributions.table_of, audit_distributions.ATTACKS)):
        if mine := [row for row in rows if row["attack"] in attacks]:
            console.print(of_attacks(mine, title))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench audit", description="Ask what methods leave behind of what they forgot.")
    parser.add_argument("--method", default="fine_tune", help="names with commas between them, or all that forget records")
    parser.add_argument("--data", choices=sorted({*sets.SETS, "noisy_digits"}), default="digits")
    parser.add_argument("--attack", dest="attacks", default="all", help=f"names with commas between them, or all: {', '.join(ATTACKS)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shadows", type=int, default=32, help="trainings of u_lira; each record is in half of them")
    parser.add_argument("--targets", type=int, default=300, help="records that u_lira asks about; klom and neurips_f have half of them forgotten")
    parser.add_argument("--models", type=int, default=32, help="unlearned models of klom and neurips_f; twice as many are retrained")
    parser.add_argument("--canaries", type=int, default=200, help="canaries of one_run; half of them are guessed")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of the training with canaries: enough to learn them by heart")
    parser.add_argument("--delta", type=float, default=0.0, help="delta of the bound of one_run")
    parser.add_argument("--json", type=Path, help="append one line a method and attack to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.attacks = ATTACKS if options.attacks == "all" else tuple(options.attacks.split(","))
    if unknown := set(options.attacks).difference(ATTACKS):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    return options


def audited(held: sets.Bench, names: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each attack and method, and before them one of the models as they were before erasure."""
    scene = Scene(held, Classification(held.classes), options)
    if "u_lira" in options.attacks:
        yield from by_many_runs(scene, names)
    if "one_run" in options.attacks:
        recipe = held.recipe.model_copy(update={"epochs": options.epochs})
        yield from by_one_run(replace(scene, held=replace(held, recipe=recipe)), names)
    yield from audit_distributions.by_many_models(scene, names, [attack for attack in audit_distributions.ATTACKS if attack in options.attacks])


def by_many_runs(scene: Scene, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `u_lira`."""
    options, train = scene.options, scene.held.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(options.seed))
    targets, rest = by_id(train.take(order[: options.targets])), train.take(order[options.targets :])
    forgotten = halves(options.shadows, options.targets, rng=np.random.default_rng([options.seed, 1]))
    watch = Watch()
    cases = [scene.case(targets.take(torch.from_numpy(np.flatnonzero(row))), rest, f"u_lira/{number}") for number, row in enumerate(forgotten)]
    facts = {"shadows": options.shadows, "targets": options.targets, "epochs": scene.held.recipe.epochs}

    def found(models: Iterator[nn.Module]) -> dict[str, Any]:
        phi = np.stack([margins_on(model, targets, scene.task) for model in models])
        return shown(separation(left_out_ratios(phi, forgotten), forgotten, level=LEVEL, rng=np.random.default_rng([options.seed, 2])))

    yield described(scene, "u_lira", BEFORE, facts) | found(case.original for case in cases) | {"cpu_seconds": watch.took().cpu_seconds}
    for name in names:
        watch, row = Watch(), described(scene, "u_lira", name, facts)
        try:
            row |= found(scene.forgot(name, case, f"u_lira/{number}") for number, case in enumerate(cases))
        except LetheError as refusal:
            row |= {"auc": None, "reason": str(refusal).split("\n")[0]}
        yield row | {"cpu_seconds": watch.took().cpu_seconds}


def shown(found: Separation) -> dict[str, Any]:
    """Return what the scores tell apart, as a row has it."""
    rates = {
        f"{fpr:g}": None if rate is None else {"value": rate.value, "low": rate.interval.low, "high": rate.interval.high}
        for fpr, rate in found.rates.items()
    }
    area = {"auc": found.area, "low": found.interval.low, "high": found.interval.high, "level": LEVEL}
    return {**area, "tpr_at_fpr": rates, "largest_of_a_record": found.largest, "largest_by_chance": found.by_chance}


def by_one_run(scene: Scene, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `one_run`."""
    options, train = scene.options, scene.held.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(derived_seed(options.seed, "one_run")))
    canaries, rest = planted(scene, by_id(train.take(order[: options.canaries]))), train.take(order[options.canaries :])
    included = np.random.default_rng([options.seed, 3]).random(options.canaries) < 0.5
    watch = Watch()
    case = scene.case(canaries.take(torch.from_numpy(np.flatnonzero(included))), rest, "one_run")
    facts = {"canaries": options.canaries, "included": int(included.sum()), "delta": options.delta, "epochs": scene.held.recipe.epochs}

    def found(model: nn.Module) -> dict[str, Any]:
        result = guessed(margins_on(model, canaries, scene.task), included, delta=options.delta)
        reason = {} if result.epsilon is not None else {"reason": "too_few_canaries"}
        return {"guesses": result.guesses, "right": result.right, "eps_lo": result.epsilon, **reason}

    yield described(scene, "one_run", BEFORE, facts) | found(case.original) | {"cpu_seconds": watch.took().cpu_seconds}
    for name in names:
        watch, row = Watch(), described(scene, "one_run", name, facts)
        try:
            row |= found(scene.forgot(name, case, "one_run"))
        except LetheError as refusal:
            row |= {"eps_lo": None, "reason": str(refusal).split("\n")[0]}
        yield row | {"cpu_seconds": watch.took().cpu_seconds}


def planted(scene: Scene, rows: Split) -> Split:
    """Return records as canaries: each under a label that is not its own."""
    shift = torch.randint(1, scene.held.classes, (len(rows),), generator=scene.run("canaries").stream("labels"))
    return replace(rows, y=(rows.y + shift) % scene.held.classes)


def told(row: Mapping[str, Any]) -> str:
    """Return the numbers of a row in one line."""
    if row.get("reason"):
        return str(row["reason"])
    if row["attack"] in audit_distributions.ATTACKS:
        return audit_distributions.told(row)
    if row["attack"] == "one_run":
        return f"{row['right']} of {row['guesses']} right, " + (f"epsilon at least {row['eps_lo']:.2f}" if row["eps_lo"] else "nothing shown")
    largest = f"largest of a record {row['largest_of_a_record']:.3f} (by chance {row['largest_by_chance']:.3f})"
    return f"AUC {row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}], {largest}"


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return one table of `u_lira` and `one_run`; a dash is a number that was refused."""
    heads = ("method", "AUC (95 %)", "TPR at 1 %", "TPR at .1 %", "largest of a record (by chance)", "guesses right", "epsilon at least", "CPU s")
    table = Table(*heads, title=title)
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = {row["attack"]: row for row in rows if row["method"] == name}
        many, one = mine.get("u_lira", {}), mine.get("one_run", {})
        rates = many.get("tpr_at_fpr") or {}
        table.add_row(
            name,
            f"{many['auc']:.3f} [{many['low']:.3f}, {many['high']:.3f}]" if many.get("auc") is not None else "-",
            *(f"{rates[fpr]['value']:.3f}" if rates.get(fpr) else "-" for fpr in ("0.01", "0.001")),
            f"{many['largest_of_a_record']:.3f} ({many['largest_by_chance']:.3f})" if many.get("auc") is not None else "-",
            f"{one['right']} of {one['guesses']}" if "right" in one else "-",
            "-" if one.get("eps_lo") is None else f"{one['eps_lo']:.2f}",
            f"{sum(row['cpu_seconds'] for row in mine.values()):.1f}",
        )
    return table
