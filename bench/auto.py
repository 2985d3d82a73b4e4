"""`python -m bench auto`: what becomes of mixed requests that leave the method to the service.

Each request is drawn from a seed: a class, some records, or one subject, of one of the sets. The router of the service chooses the first method from the
policy's ladder; the method runs, the policy's plan judges it, and what is not passed goes to the next rung, as in a job. References are those of
`python -m bench methods` and lie in the same cache.
"""

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import sets
from bench.methods import KINDS, SMALL, Watch, World, plan_of, policy_of, prepare, shown, unlearned, verified
from bench.methods import facts as facts_of
from services.catalogue import router
from services.catalogue.applicability import Offer, offer_of
from services.errors import LetheError
from services.jobs.compute import plugins
from services.jobs.outcomes import GIVES_WAY
from services.learning.data import Split
from services.tenants.policies import SEEDS, PolicyBody
from services.unlearning.method import METHODS
from services.verification.verdict import judge

FIRST_GOAL, LAST_GOAL = 0.8, 1.0
SIZES: Mapping[str, int | None] = {
    "digits": None,
    "breast_cancer": None,
    "adult": 8000,
    "fashion_mnist": 1000,
    "mnist": 6000,
    "cifar10": 2000,
    "banking77": 1000,
}
HELD = frozenset({"forget", "retain", "retain_part", "unseen", "recipe"})


@dataclass(frozen=True, slots=True)
class Drawn:
    """One request: its number, the set, what is named (a label of a class request, or how many records), and the seed of its world."""

    number: int
    data: str
    kind: str
    label: int | None
    count: int | None
    seed: int


def main(arguments: Sequence[str]) -> int:
    """Run the bench; return 1 where the data is missing."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    plugins.load(())
    console = Console(stderr=True, width=180)
    try:
        held = {name: small(name) for name in options.data}
    except sets.DataMissing as missing:
        console.print(f"[red]{missing}[/red]", highlight=False)
        return 1
    rows: list[dict[str, Any]] = []
    for request in draw(held, options.requests, options.seed):
        row = served(request, world_of(request, held, options.cache), SEEDS.get(options.policy))
        rows.append(row)
        console.print(f"{request.number:3d}  {request.data:14s} {request.kind:8s} {row['forgotten']:5d}  {told(row)}", highlight=False)
        if options.json is not None:
            with options.json.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
    console.print(table_of(rows, options.seed))
    print(json.dumps(summary(rows, options.seed)))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench auto", description="Leave the method of mixed requests to the service.")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="draws the requests, and all that is drawn for each")
    parser.add_argument("--data", type=named, default=list(SIZES), help="sets to draw from, with commas between them; by default all")
    parser.add_argument("--policy", choices=("by-size", *SEEDS), default="by-size", help=f"by-size: demo below {SMALL} records, else gdpr-default")
    parser.add_argument("--json", type=Path, help="append one line a request to this file")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench", help="where trained originals and references are kept")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def named(text: str) -> list[str]:
    """Return the names of sets. Raises argparse's error for one that is not measured here."""
    names = text.split(",")
    wrong = [name for name in names if name not in SIZES]
    if wrong:
        raise argparse.ArgumentTypeError(f"not measured here: {', '.join(wrong)}; these are: {', '.join(SIZES)}")
    return names


def small(name: str) -> sets.Bench:
    """Return a set with a network that two cores train in seconds. Raises DataMissing."""
    held = sets.load(name, records=SIZES[name])
    if name == "fashion_mnist":
        return replace(held, architecture=sets.network("tiny_cnn", outputs=held.classes, channels=1, width=8), recipe=sets.TINY_RECIPE)
    if name in {"mnist", "cifar10"}:
        return replace(sets.with_mlp(held), recipe=sets.TINY_RECIPE)
    if name == "banking77":
        short = sets.network("text_transformer", outputs=held.classes, vocab_size=8192, max_length=32, width=32, layers=1)
        return replace(held, architecture=short, recipe=held.recipe.model_copy(update={"epochs": 10}))
    return held


# --- the requests ----------------------------------------------------------------------------------------------------------------------


def draw(held: Mapping[str, sets.Bench], requests: int, seed: int) -> list[Drawn]:
    """Return requests: every pair of set and kind once in random order, then again; counts are log-uniform.

    A subset is of 16 records to a tenth of the set, a subject has 1 to 100, at most a twentieth.
    """
    chance, found = random.Random(seed), list[Drawn]()
    while len(found) < requests:
        deck = [(data, kind) for data in held for kind in KINDS]
        chance.shuffle(deck)
        place = seed * 100 + len(found) // len(deck)
        for data, kind in deck[: requests - len(found)]:
            records = len(held[data].train)
            low, high = (16, records / 10) if kind == "subset" else (1, min(100, records / 20))
            label, count = chance.randrange(held[data].classes), round(math.exp(chance.uniform(math.log(low), math.log(high))))
            named = (label, None) if kind == "class" else (None, count)
            found.append(Drawn(len(found) + 1, data, kind, *named, seed=place))
    return found


def world_of(request: Drawn, held: Mapping[str, sets.Bench], cache: Path) -> World:
    """Return the request's records and models."""
    bench = held[request.data]
    if request.label is not None:
        bench = replace(bench, forgotten=request.label)
    return prepare(bench, request.kind, request.seed, cache=cache, count=request.count)


# --- one request -----------------------------------------------------------------------------------------------------------------------


def offers() -> dict[str, Offer]:
    """Return what a worker would publish of its methods, as the gateway hands it to the router."""
    return {item.name: offer_of(item.name, item.facts, item.needs) for item in plugins.catalogue() if item.kind == "method" and item.error is None}


def choice_of(world: World, policy: PolicyBody) -> router.Choice:
    """Return the router's choice, asked as the gateway asks it."""
    forget: Split = world.splits.forget
    granularity = "class" if world.kind == "class" else "records"
    choice = router.choose(
        task=world.task.name,
        granularity=granularity,
        ladder=router.rungs_for(policy.ladder, task=world.task.name, granularity=granularity, held=HELD),
        records=len(forget),
        class_records=len(forget) if granularity == "class" else None,
        held=HELD,
        available=offers(),
        yardstick=router.yardstick_of(policy.verification.model_dump(mode="json", by_alias=True), granularity),
    )
    if choice is None:
        raise LookupError("no rung of the policy serves the request")
    return choice


def served(request: Drawn, world: World, policy: PolicyBody | None) -> dict[str, Any]:
    """Return the row of a request that has gone up the ladder as far as it must."""
    policy = policy or policy_of(world)
    choice = choice_of(world, policy)
    tries: list[dict[str, Any]] = []
    name: str | None = choice.method
    while name is not None:
        again = any(one["method"] == name for one in tries)
        tries.append(tried(world, name, policy, purpose=f"unlearn-{name}-again" if again else f"unlearn-{name}"))
        codes = tries[-1]["verdict"].split()[1:]
        name = router.following(choice.rungs, name, retrainable=True, codes=codes, again=again) if goes_on(tries[-1]) else None
    return {
        "bench": "auto", "request": request.number, "seed": request.seed, "data": request.data, "kind": request.kind,
        "label": request.label, "forgotten": len(world.splits.forget), "records": len(world.bench.train),
        "held_out": len(world.bench.test), "architecture": world.bench.architecture.name, "device": world.device.type,
        "threads": torch.get_num_threads(), "policy": next(key for key, body in SEEDS.items() if body == policy), "reason": choice.reason,
        "rungs": list(choice.rungs), "tries": tries, "verdict": tries[-1]["verdict"],
        "retrain_seconds": world.retrain_took.seconds, "retrain_cpu_seconds": world.retrain_took.cpu_seconds,
    }  # fmt: skip


def deciding(policy: PolicyBody) -> PolicyBody:
    """Return the policy without the readings that are only printed: no verdict hangs on them, and here nobody reads them."""
    held = policy.verification
    only = {name: tuple(one for one in getattr(held, name) if one.gate) for name in ("for_class", "for_records")}
    return policy.model_copy(update={"verification": held.model_copy(update=only)})


def tried(world: World, name: str, policy: PolicyBody, *, purpose: str) -> dict[str, Any]:
    """Return the verdict on one rung with what each gate said of it, or why the method ended without a model.

    `unaided` is what the verdict would have been without a guarantee, by the readings alone.
    """
    family = METHODS[name]
    parameters = {rung.method: rung.parameters for rung in policy.ladder}.get(name, {})
    method = family(family.Parameters(**parameters))
    facts: dict[str, Any] = {"method": name, "guarantee": family.guarantee, "parameters": method.parameters.model_dump(mode="json")}
    watch = Watch()
    try:
        model = unlearned(world, method, world.run(purpose))
    except LetheError as refusal:
        took = watch.took()
        return {**facts, "verdict": "stopped", "code": refusal.code, "detail": str(refusal), "seconds": took.seconds, "cpu_seconds": took.cpu_seconds}
    took = watch.took()
    policy = deciding(policy)
    readings, verdict = verified(world, method, model, policy)
    gates = {(one.name, one.split): one for one in readings}
    states = [
        {"name": state.name, "split": state.split, "state": state.state, "epsilon": state.epsilon, "code": state.code, "reason": state.reason}
        | spread(gates.get((state.name, state.split)))
        for state in verdict.states
        if state.state != "info"
    ]
    facts["unaided"] = shown(judge(plan_of(world, policy), readings, replace(facts_of(world, family, model), guarantee="approximate")))
    return {**facts, "verdict": shown(verdict), "gates": states, "seconds": took.seconds, "cpu_seconds": took.cpu_seconds}


def spread(reading: Any) -> dict[str, Any]:
    """Return before, after and reference of a reading, and its paired difference with the interval."""
    if reading is None:
        return {}
    found = {name: getattr(getattr(reading, name), "value", None) for name in ("before", "after", "reference")}
    paired = reading.paired
    if hasattr(paired, "value"):
        found["paired"] = [paired.value, paired.low, paired.high]
    change = reading.change
    if hasattr(change, "value"):
        found["change"] = [change.value, change.low, change.high]
    return found


def goes_on(row: Mapping[str, Any]) -> bool:
    """Say whether the service would go to the next rung."""
    if row["verdict"] == "stopped":
        return row["code"] in GIVES_WAY
    return row["verdict"] != "passed" and "integrity" not in row["verdict"].split()


# --- the table -------------------------------------------------------------------------------------------------------------------------


def told(row: Mapping[str, Any]) -> str:
    """Return the rungs of a request, each with its verdict."""
    return ", ".join(f"{one['method']} {one['verdict'] if one['verdict'] != 'stopped' else 'stopped ' + one['code']}" for one in row["tries"])


def exact_first(row: Mapping[str, Any]) -> bool:
    """Say whether the first rung computes the weights without the records, so that there was nothing to show."""
    return row["tries"][0]["guarantee"] == "exact"


def table_of(rows: Sequence[Mapping[str, Any]], seed: int) -> Table:
    """Return the requests with every rung they took."""
    names = ("request", "data", "kind", "records", "policy", "rungs with their verdicts", "CPU s", "retraining")
    table = Table(*names, title=f"{len(rows)} requests of seed {seed}")
    for row in rows:
        took = sum(one["cpu_seconds"] for one in row["tries"])
        cells = (
            row["request"],
            row["data"],
            row["kind"],
            row["forgotten"],
            row["policy"],
            told(row),
            f"{took:.2f}",
            f"{row['retrain_cpu_seconds']:.2f}",
        )
        table.add_row(*map(str, cells))
    return table


def summary(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Return the shares that passed, beside the goals, and what the methods took beside always retraining, in seconds of the processor."""
    first = [row for row in rows if row["tries"][0]["verdict"] == "passed"]
    exact, tested = [row for row in rows if exact_first(row)], [row for row in rows if not exact_first(row)]
    passed = {"first": len(first) / len(rows), "end": sum(row["verdict"] == "passed" for row in rows) / len(rows)}
    return {
        "bench": "auto",
        "seed": seed,
        "requests": len(rows),
        "passed_first": {"share": round(passed["first"], 3), "goal": FIRST_GOAL, "reached": passed["first"] >= FIRST_GOAL},
        "passed_end": {"share": round(passed["end"], 3), "goal": LAST_GOAL, "reached": passed["end"] >= LAST_GOAL},
        "first_exact": {"requests": len(exact), "shown_by_readings_alone": sum(row["tries"][0]["unaided"] == "passed" for row in exact)},
        "first_not_exact": {"requests": len(tested), "passed": sum(row in first for row in tested)},
        "cpu_seconds": round(sum(one["cpu_seconds"] for row in rows for one in row["tries"]), 2),
        "retrain_cpu_seconds": round(sum(row["retrain_cpu_seconds"] for row in rows), 2),
    }
