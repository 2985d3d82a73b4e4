"""`python -m bench cheats`: does the audit catch fakes, and does it pass honest work?

Every fake of `bench.fakes` is judged as an approximate method under the plan that a policy makes of the request; beside them models that were
retrained from scratch with fresh seeds, judged alike. A plan that cannot tell even the original from a retrained model is `cannot_pass`: it passes
nothing and the request goes to an exact method. The share of such plans is printed.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench import sets
from bench.fakes import FAKES, trained_on
from bench.methods import World, plan_of, policy_of, prepare
from services.errors import LetheError
from services.tenants.policies import SEEDS, PolicyBody
from services.unlearning.method import METHODS
from services.verification import evaluation
from services.verification.integrity import WeightFacts
from services.verification.metric import Models
from services.verification.statistics.intervals import clopper_pearson
from services.verification.verdict import IntegrityFacts, Verdict, judge

WORLDS = (("digits", "class"), ("noisy_digits", "subset"))
NOISE = 0.2


def main(arguments: Sequence[str]) -> int:
    """Run the suite; return 1 where a fake passed. Its data ship with scikit-learn."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    evaluation.discover()
    console = Console(stderr=True, width=150)
    rows: list[dict[str, Any]] = []
    for data, kind in [each for each in WORLDS if options.data in {"all", each[0]}]:
        for seed in range(1, options.seeds + 1):
            world = prepare(load(data), kind, seed, cache=options.cache, count=options.count if kind == "subset" else None)
            policy = policy_of(world) if options.policy == "fitting" else SEEDS[options.policy]
            for row in judged(world, data, policy, honest=options.honest):
                rows.append(row)
                console.print(f"{data} {kind} {seed}  {row['case']:20s} {row['verdict']} {' '.join(row['codes'])}", highlight=False)
                if options.json is not None:
                    with options.json.open("a") as lines:
                        lines.write(json.dumps({**row, "policy": options.policy}) + "\n")
    console.print(confusion(rows))
    for line in told(rows):
        console.print(line, highlight=False)
    return 1 if any(not row["honest"] and row["verdict"] == "passed" for row in rows) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench cheats", description="Judge fakes and honest models by the same plans.")
    parser.add_argument("--data", choices=("all", *(data for data, _ in WORLDS)), default="all")
    parser.add_argument("--policy", choices=("fitting", *sorted(SEEDS)), default="gdpr-default", help="`fitting` is `demo` for small sets")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--honest", type=int, default=10, help="retrained models with fresh seeds for each request")
    parser.add_argument("--count", type=int, default=500, help="records that a request for single records names")
    parser.add_argument("--quick", action="store_true", help="one seed and three honest models")
    parser.add_argument("--json", type=Path, help="append one line a case to this file")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.honest = 1, 3
    return options


def load(name: str) -> sets.Bench:
    """Return a set: the digits, or the digits of which a fifth is labelled wrong in training, so that whoever trains on them learns them by heart."""
    held = sets.load("digits")
    if name == "digits":
        return held
    generator = torch.Generator().manual_seed(17)
    wrong = torch.rand(len(held.train), generator=generator) < NOISE
    shift = torch.randint(1, held.classes, (len(held.train),), generator=generator)
    labels = torch.where(wrong, (held.train.y + shift) % held.classes, held.train.y)
    return replace(held, name=name, train=replace(held.train, y=labels), recipe=held.recipe.model_copy(update={"epochs": 60}))


def judged(world: World, data: str, policy: PolicyBody, *, honest: int) -> Iterator[dict[str, Any]]:
    """Yield a row for every fake that makes sense for the request, and for `honest` retrained models."""
    common = {"bench": "cheats", "task": "classification", "data": data, "kind": world.kind, "seed": world.seed, "records": len(world.splits.forget)}
    for name, fake in FAKES.items():
        if world.kind not in fake.kinds:
            continue
        try:
            verdict = judged_as_approximate(world, policy, fake.make(world))
        except LetheError as refusal:
            yield {**common, "case": name, "honest": False, "verdict": "refused", "codes": [refusal.code]}
            continue
        yield {**common, "case": name, "honest": False, **shown(verdict)}
    for number in range(honest):
        model = trained_on(world, world.splits.retain, f"honest-{number}")
        yield {**common, "case": f"retrained {number + 1}", "honest": True, **shown(judged_as_approximate(world, policy, model))}


def judged_as_approximate(world: World, policy: PolicyBody, model: nn.Module) -> Verdict:
    """Return the verdict on a model that claims to be the work of an approximate method."""
    plan = plan_of(world, policy)
    models = Models(world.original, model, world.retrained, world.twin)
    readings = evaluation.evaluate(plan, models, world.splits, world.task, world.run("evaluate"))
    return judge(plan, readings, facts(world, model))


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


def confusion(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table: verdicts of fakes and of honest models, for each request."""
    table = Table("request", "", "passed", "failed", "inconclusive", "cannot_pass", "refused")
    for data, kind in dict.fromkeys((row["data"], row["kind"]) for row in rows):
        for honest in (False, True):
            mine = [row for row in rows if (row["data"], row["kind"], row["honest"]) == (data, kind, honest)]
            count = Counter("cannot_pass" if "cannot_pass" in row["codes"] else row["verdict"] for row in mine)
            cells = [str(count[name]) for name in ("passed", "failed", "inconclusive", "cannot_pass", "refused")]
            table.add_row(f"{data}, {kind}", "honest" if honest else "fake", *cells)
    return table


def told(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the shares that matter, with their intervals. A fake that could not be made was not judged, so it counts as neither caught nor passed."""
    for honest, what, counted in ((False, "fakes caught", lambda row: row["verdict"] != "passed"), (True, "honest models passed", passed)):
        mine = [row for row in rows if row["honest"] is honest and "cannot_pass" not in row["codes"] and row["verdict"] != "refused"]
        if mine:
            hits = sum(counted(row) for row in mine)
            low, high = clopper_pearson(hits, len(mine), level=0.95)
            yield f"{what}: {hits} of {len(mine)} ({hits / len(mine):.3f}, 95 % interval {low:.3f} to {high:.3f}), plans that cannot pass left out"
    got_through = [f"{row['case']} ({row['data']}, {row['kind']}, seed {row['seed']})" for row in rows if not row["honest"] and passed(row)]
    if got_through:
        yield f"passed although they are fakes: {', '.join(got_through)}"


def passed(row: Mapping[str, Any]) -> bool:
    """Say whether the verdict of a row is `passed`."""
    return row["verdict"] == "passed"
