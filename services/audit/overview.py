"""The one figure that every report has: what each method tried kept, against what it still shows of the forgotten, with the limits shaded.

It is made of the report's own readings alone, so that it can be drawn again from the statement.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from services.audit import figure_forms
from services.audit.words import TESTS

NAME = "retain_forget"
TITLE = "What was kept, and what is still shown of the forgotten records"
CAPTION = "Each mark is one model. The aim is the retrained model's mark: a model that never saw the forgotten records."
SHADED = " The shaded area is what the plan, fixed before the run, allows."
UNSHADED = " The plan sets no limit for these two numbers, so nothing is shaded."
NOTHING = "no_reading_on_both_sides"
PREFERRED = ("accuracy", "mean_absolute_error", "quantile_loss", "mean_squared_error", "rouge_l", "answer_probability")
KEPT_SPLITS = ("retain_test", "test", "retain_train")
FORGOTTEN_SPLITS = ("forget_train", "forget_test")
COLUMNS = (("before", "original"), ("reference", "retrained"), ("after", "unlearned"))

Reading = Mapping[str, Any]


def of_model(processing: Sequence[Mapping[str, Any]], verification: Sequence[Mapping[str, Any]], model: str | None) -> dict[str, Any] | None:
    """Return the figure's data of one model, from the two blocks of a statement that hold it."""
    methods = {run["job"]: run["method"] or "" for run in processing if run["model"] == model}
    return retain_forget([block for block in verification if block["job"] in methods], methods)


def retain_forget(blocks: Sequence[Mapping[str, Any]], methods: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the figure's data from the verification blocks of one model's runs, in their order; None where no reading has both sides.

    `methods` names the method of each block's job. Original and retrained model are those of the last block.
    """
    pairs = [(block, pair) for block in blocks if (pair := _pair(block["metrics"])) is not None]
    if not pairs:
        return None
    forgotten, kept = pairs[-1][1]
    points = [_point(name, name, forgotten[column], kept[column]) for column, name in COLUMNS[:2]]
    for number, (block, (mine, rest)) in enumerate(pairs, start=1):
        method = words(methods.get(block["job"], "unlearned"))
        points.append(_point(f"{number}. {method}" if len(pairs) > 1 else method, "unlearned", mine["after"], rest["after"]))
    shown = [point for point in points if point is not None]
    if not shown:
        return None
    bands = [*_band("x", forgotten), *_band("y", kept)]
    form = figure_forms.form_of(
        {
            "kind": "scatter",
            "title": TITLE,
            "caption": CAPTION + (SHADED if bands else UNSHADED),
            "x": {"label": f"{called(forgotten['name'])}, forgotten records", **_ends(forgotten["name"], [point["x"] for point in shown])},
            "y": {"label": f"{called(kept['name'])}, {SPLIT_WORDS[kept['split']]}", **_ends(kept["name"], [point["y"] for point in shown])},
            "points": shown,
            "bands": bands,
        }
    )
    return figure_forms.plain(form)


SPLIT_WORDS = {"retain_test": "kept, held out", "test": "held-out records", "retain_train": "kept for training"}
SHARES = frozenset({"accuracy", "exact_match", "rouge_l", "answer_probability"})


def _ends(name: str, values: Sequence[str]) -> dict[str, str]:
    """Return where the axis of a share begins and ends: at least a tenth wide, so that a small difference looks small."""
    if name not in SHARES:
        return {}
    numbers = [float(value) for value in values]
    return {"low": f"{max(min(numbers) - 0.1, -0.03):.2f}", "high": f"{min(max(numbers) + 0.1, 1.03):.2f}"}


def words(name: str) -> str:
    """Return a component's name for a reader."""
    return name.replace("_", " ")


def called(name: str) -> str:
    """Return what a test is called in a report, or its own name as words."""
    return TESTS[name][0] if name in TESTS else words(name)


def _pair(readings: Sequence[Reading]) -> tuple[Reading, Reading] | None:
    """Return one metric on forgotten and on kept records: a preferred one, else the first that has both."""
    measured = {(reading["name"], reading["split"]): reading for reading in readings if reading["after"] is not None}
    names = sorted({name for name, _ in measured}, key=lambda name: (PREFERRED.index(name) if name in PREFERRED else len(PREFERRED), name))
    for name in names:
        mine = next((measured[name, split] for split in FORGOTTEN_SPLITS if (name, split) in measured), None)
        rest = next((measured[name, split] for split in KEPT_SPLITS if (name, split) in measured), None)
        if mine is not None and rest is not None:
            return mine, rest
    return None


def _point(name: str, role: str, x: str | None, y: str | None) -> dict[str, Any] | None:
    return None if x is None or y is None else {"name": name, "role": role, "x": x, "y": y}


def _band(axis: str, reading: Reading) -> list[dict[str, Any]]:
    """Return the range that the plan allows, open where its direction is."""
    band = reading["band"] or {}
    if band.get("reference") is None or band.get("epsilon") is None:
        return []
    middle, half = float(band["reference"]), float(band["epsilon"])
    low = None if reading["direction"] == "max" else f"{middle - half:.4f}"
    high = None if reading["direction"] == "min" else f"{middle + half:.4f}"
    return [{"axis": axis, "low": low, "high": high, "label": "allowed by the plan"}]
