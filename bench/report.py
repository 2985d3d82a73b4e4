"""`python -m bench table FILE…`: the lines of a methods bench as a table of the documentation, one per set and kind of request."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.methods import bounds, labelled

COLUMNS = {
    "forget": "forget_accuracy",
    "forget, held out": "forget_test_accuracy",
    "retain": "retain_train_accuracy",
    "retain, held out": "retain_accuracy",
    "ZRF": "zrf",
    "AIN": "ain",
    "MIA v2": "mia_auc",
    "JS": "js_divergence",
    "probe": "probe_auc",
}
SPREAD = ("forget_accuracy", "retain_accuracy")
TIMES = ("CPU s", "retrain CPU s", "speed-up")
BRACKETS = (
    "In brackets the least and the greatest of the seeds; of the attack the least lower and the greatest upper bound, at the level of the policy."
)


def main(files: Sequence[str]) -> int:
    """Print the tables of the files' lines; return 2 without a file."""
    if not files:
        sys.stderr.write("usage: python -m bench table FILE…\n")
        return 2
    rows = [json.loads(line) for name in files for line in Path(name).read_text().splitlines()]
    for data, kind in dict.fromkeys((row["data"], row["kind"]) for row in rows):
        print(page([row for row in rows if (row["data"], row["kind"]) == (data, kind)]))
    return 0


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one table with what it was measured on above it."""
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    head = f"{first['data']}, {first['kind']} request, {first['architecture']}, {first['records']} records to train on, {first['held_out']} held out"
    lines = [f"**{head}, seeds {', '.join(map(str, seeds))}, {first['threads']} thread{'' if first['threads'] == 1 else 's'}** {BRACKETS}", ""]
    columns = ("method", *COLUMNS, *TIMES, "verdict")
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *original(rows), retrained(rows)]
    for name in dict.fromkeys(labelled(row) for row in rows):
        lines.append(line(name, [row for row in rows if labelled(row) == name]))
    refused = {labelled(row): row["verdict"].split("\n")[0] for row in rows if row["verdict"].startswith("failed: ")}
    if refused:
        lines += [
            "",
            "No numbers (the first reason of each):",
            "",
            *(f"- `{name}`: {reason.removeprefix('failed: ')}" for name, reason in refused.items()),
        ]
    return "\n".join([*lines, ""])


def original(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the line of the original, a mean over seeds; none where the lines do not say what it was."""
    by_seed = {row["seed"]: row for row in rows if row.get("original_retain_accuracy") is not None}
    if not by_seed:
        return []
    cells = [number([row.get(f"original_{column}") for row in by_seed.values()], spread=column in SPREAD) for column in COLUMNS.values()]
    return ["| *original* | " + " | ".join([*cells, "", "", "", ""]) + " |"]


def retrained(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the line of the retrained reference, a mean over seeds."""
    by_seed = {row["seed"]: row for row in rows if row.get("retrained_retain_accuracy") is not None}
    cells = [number([row[f"retrained_{column}"] for row in by_seed.values()], spread=column in SPREAD) for column in COLUMNS.values()]
    took = mean(row["retrain_cpu_seconds"] for row in rows)
    return "| *retrained reference* | " + " | ".join(cells) + f" | {took:.2f} | {took:.2f} | 1 | |"


def line(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the line of a method: means over seeds, with the least and the most of the two accuracies that goals are about, and the attack's bounds."""
    cells = [number([row.get(column) for row in rows], spread=column in SPREAD) for column in COLUMNS.values()]
    attack = list(COLUMNS.values()).index("mia_auc")
    cells[attack] = f"{cells[attack]} {bounds(rows)}".strip()
    own, reference = mean(row["method_cpu_seconds"] for row in rows), mean(row["retrain_cpu_seconds"] for row in rows)
    measured = any(row.get("forget_accuracy") is not None for row in rows)
    told = [row["verdict"] if not row["verdict"].startswith("failed: ") else "ended without a model" for row in rows]
    verdict = ", ".join(f"{told.count(one)} of {len(told)} {one}" for one in dict.fromkeys(told))
    times = [f"{own:.2f}", f"{reference:.2f}", f"{reference / max(own, 1e-4):.1f}"] if measured else ["-", f"{reference:.2f}", "-"]
    return f"| `{name}` | " + " | ".join([*cells, *times, verdict]) + " |"


def number(values: Sequence[float | None], *, spread: bool) -> str:
    """Return the mean of what is there, and its range where there are several and it is wanted."""
    held = [value for value in values if value is not None]
    if not held:
        return "-"
    text = f"{mean(held):.3f}"
    return f"{text} [{min(held):.3f}, {max(held):.3f}]" if spread and len(held) > 1 else text
