"""What the lines of `python -m bench cheats` come to: verdicts, readings and plans, each share with its exact 95 % interval.

A plan is `cannot_pass` where it said so before the run, or where no gating reading told the original from a retrained model.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from services.verification.statistics.intervals import clopper_pearson

Row = Mapping[str, Any]
VERDICTS = ("passed", "failed", "inconclusive", "refused")
RULES = ("integrity", "representation")  # rules of the verdict that no reading stands behind


def line_of(row: Row) -> str:
    """Return a row as one line."""
    head = f"{row['data']} {row['seed']} {row['records']:5d} {row['case']:22s}"
    plan = row["plan"]
    if row["case"] == "plan":
        return f"{head} {'cannot pass' if plan['cannot_pass'] else 'can be passed'}: {plan['retrained_passes']}, {plan['original_fails']}"
    return f"{head} {row['verdict']} {' '.join(row['codes'])}"


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables: verdicts of each request, readings, plans."""
    return [verdicts(rows), readings(rows), plans(rows)]


def request_of(row: Row) -> tuple[Any, ...]:
    """Return what one plan is for."""
    return tuple(row[name] for name in ("task", "data", "kind", "records", "seed", "policy"))


def hopeless(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    """Return the requests whose plan nothing approximate can pass."""
    return {request_of(row) for row in rows if row["plan"]["cannot_pass"] or "cannot_pass" in row.get("codes", ())}


def cases(rows: Sequence[Row], *, honest: bool) -> list[Row]:
    """Return what was judged under plans that can be passed. A fake that could not be made was not judged."""
    lost = hopeless(rows)
    return [row for row in rows if row.get("honest") is honest and row["verdict"] != "refused" and request_of(row) not in lost]


def share(hits: int, of: int) -> str:
    """Return a share with its interval."""
    if of == 0:
        return "-"
    low, high = clopper_pearson(hits, of, level=0.95)
    return f"{hits} of {of} [{low:.2f}, {high:.2f}]"


def verdicts(rows: Sequence[Row]) -> Table:
    """Return the verdicts on fakes and honest models, for each request; seeds are counted together."""
    table = Table("request", "records", "plans", "cannot pass", "", *VERDICTS, "share passed [95 %]", title="verdicts")
    lost = hopeless(rows)
    shared = ("task", "data", "kind", "records", "policy")
    for key in dict.fromkeys(tuple(row[name] for name in shared) for row in rows if row["case"] != "plan"):
        mine = [row for row in rows if row["case"] != "plan" and tuple(row[name] for name in shared) == key]
        asked = {request_of(row) for row in mine}
        for honest, which in ((False, "fakes"), (True, "honest"), (None, "methods")):
            count = Counter(row["verdict"] for row in mine if row["honest"] is honest)
            judged = sum(count.values()) - count["refused"]
            if honest is None and not count:
                continue
            head = (f"{key[1]} ({key[0]}, {key[2]}), {key[4]}", str(key[3]), str(len(asked)), str(len(asked & lost)))
            told = share(count["passed"], judged)
            table.add_row(*(head if honest is False else ("",) * 4), which, *(str(count[name]) for name in VERDICTS), told)
    return table


def readings(rows: Sequence[Row]) -> Table:
    """Return how often each gate and each rule found fakes and honest models outside and inside, under plans that can be passed."""
    table = Table("gate", "fakes outside", "fakes inside", "honest outside", "honest inside", title="gates, plans that can be passed")
    sides = [cases(rows, honest=honest) for honest in (False, True)]
    for name in sorted({name for side in sides for row in side for name in row["states"]}):
        cells: list[str] = []
        for side in sides:
            states = [row["states"][name] for row in side if name in row["states"]]
            cells += [share(states.count("outside"), len(states)), share(sum(state in {"inside", "insensitive"} for state in states), len(states))]
        table.add_row(name, *cells)
    for code in RULES:
        cells = [share(sum(code in row["codes"] for row in side), len(side)) for side in sides]
        table.add_row(f"rule: {code}", cells[0], "", cells[1], "")
    return table


def plans(rows: Sequence[Row]) -> Table:
    """Return how many plans nothing approximate can pass, for each task and number of records."""
    table = Table("task", "request", "records", "policy", "cannot pass [95 %]", "foreseen: retrained passes", "original fails", title="plans")
    lost = hopeless(rows)
    shared = ("task", "kind", "records", "data", "policy")
    held = {request_of(row): row for row in rows}
    for key in sorted({tuple(row[name] for name in shared) for row in held.values()}):
        mine = {request: row["plan"] for request, row in held.items() if tuple(row[name] for name in shared) == key}
        spans = [spread([plan[name] for plan in mine.values()]) for name in ("retrained_passes", "original_fails")]
        table.add_row(key[0], f"{key[3]}, {key[1]}", str(key[2]), key[4], share(len(mine.keys() & lost), len(mine)), *spans)
    return table


def spread(chances: Sequence[float | None]) -> str:
    """Return the least and the greatest of some chances; a dash where none is foreseen."""
    known = [chance for chance in chances if chance is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"


def shares(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the shares that matter, and the fakes that got through."""
    counted: tuple[tuple[bool, str, Callable[[Row], bool]], ...] = (
        (False, "fakes caught", lambda row: row["verdict"] != "passed"),
        (True, "honest models passed", lambda row: row["verdict"] == "passed"),
    )
    for honest, what, hit in counted:
        mine = cases(rows, honest=honest)
        if mine:
            hits = sum(hit(row) for row in mine)
            low, high = clopper_pearson(hits, len(mine), level=0.95)
            yield f"{what}: {hits} of {len(mine)} ({hits / len(mine):.3f}, 95 % interval {low:.3f} to {high:.3f}), plans that cannot pass left out"
    names = [f"{row['case']} ({row['data']}, {row['kind']}, seed {row['seed']})" for row in got_through(rows)]
    if names:
        yield f"passed although they are fakes: {', '.join(names)}"


def got_through(rows: Sequence[Row]) -> list[Row]:
    """Return the fakes that passed."""
    return [row for row in rows if row.get("honest") is False and row["verdict"] == "passed"]
