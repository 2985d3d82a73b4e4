"""Figures: what a report draws of an evaluation, as numbers over many records and never of one.

A figure returns data; drawing is the ledger's. The document of a figure has one of five forms (`kind`), and every number that is no count is a
decimal string, so that its digest is the same in every language:

```
histogram  x, y, edges [k + 1], panels [{title, n, series [{name, role, counts [k]}]}]
curve      x, y, series [{name, role, x [], y [], low [], high []}], diagonal, marks [{axis, at, label}]
bars       y, categories [k], series [{name, role, values [k]}]
scatter    x, y, points [{name, role, x, y}], bands [{axis, low, high, label}]
images     sheets [{title, role, png}]
```
An axis is {label, scale, low, high}; a role says whose the numbers are and with it the colour.
"""

import base64
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from services.errors import Interrupted
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.registry import Registry
from services.verification.metric import Models
from services.verification.reading import Measured, Unmeasured
from services.verification.statistics.bins import counts_in
from services.verification.statistics.scores import Floats

Role = Literal["original", "unlearned", "retrained", "other"]
Scale = Literal["linear", "log"]

LEAST_FORGOTTEN = 16
TOO_FEW = Unmeasured("fewer_than_16_forgotten_records")
NAMES: dict[Role, str] = {"original": "original", "unlearned": "unlearned", "retrained": "retrained", "other": "other"}


def number(value: float) -> str:
    """Return a number with six significant digits. Raises ValueError for one that is not finite: a figure has no place for it."""
    if not math.isfinite(value):
        raise ValueError("a figure holds finite numbers only")
    return f"{value + 0.0:.6g}"


def numbers(values: Iterable[float]) -> list[str]:
    """Return each as `number` does."""
    return [number(float(value)) for value in values]


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, its scale, and where it begins and ends; None leaves that to the drawing."""

    label: str
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the axis as JSON."""
        ends = {name: None if end is None else number(end) for name, end in (("low", self.low), ("high", self.high))}
        return {"label": self.label, "scale": self.scale, **ends}


@dataclass(frozen=True, slots=True)
class FigureData:
    """What a figure draws: its form and the JSON of that form, and a note on what was left out of it, if anything was."""

    kind: Literal["histogram", "curve", "bars", "scatter", "images"]
    body: Mapping[str, Any]
    note: str = ""


def panel(title: str, counts: Mapping[Role, Sequence[int]]) -> dict[str, Any]:
    """Return one panel of a histogram: the counts (k,) of each model over the same records."""
    sizes = {sum(column) for column in counts.values()}
    if len(sizes) != 1:
        raise ValueError("the columns of a panel count the same records")
    series = [{"name": NAMES[role], "role": role, "counts": [int(count) for count in column]} for role, column in counts.items()]
    return {"title": title, "n": int(sizes.pop()), "series": series}


def counts_of(columns: Mapping[Role, Floats], edges: Floats) -> dict[Role, list[int]]:
    """Return how many values of each column (n,) fall into each bin of `edges` (k + 1,)."""
    return {role: counts_in(column, edges).tolist() for role, column in columns.items()}


def histogram(x: Axis, edges: Sequence[float], panels: Sequence[Mapping[str, Any]], *, note: str = "") -> FigureData:
    """Return counts over shared bins, `edges` (k + 1,), in one panel for each set of records."""
    body = {"x": x.as_dict(), "y": Axis("share of the records").as_dict(), "edges": numbers(edges), "panels": [dict(one) for one in panels]}
    return FigureData("histogram", body, note)


def line(
    role: Role, x: Sequence[float], y: Sequence[float], *, low: Sequence[float] = (), high: Sequence[float] = (), name: str = ""
) -> dict[str, Any]:
    """Return one curve, with the spread around it where `low` and `high` are given."""
    return {"name": name or NAMES[role], "role": role, "x": numbers(x), "y": numbers(y), "low": numbers(low), "high": numbers(high)}


def curve(
    x: Axis, y: Axis, series: Sequence[Mapping[str, Any]], *, diagonal: bool = False, marks: Sequence[Mapping[str, Any]] = (), note: str = ""
) -> FigureData:
    """Return curves; `marks` are {axis, at, label} of straight lines at one value of an axis."""
    lines = [{"axis": mark["axis"], "at": number(mark["at"]), "label": mark["label"]} for mark in marks]
    body = {"x": x.as_dict(), "y": y.as_dict(), "series": [dict(one) for one in series], "diagonal": diagonal, "marks": lines}
    return FigureData("curve", body, note)


def bars(y: Axis, categories: Sequence[str], values: Mapping[Role, Sequence[float]], *, note: str = "") -> FigureData:
    """Return one group of bars for each category, a bar for each model."""
    series = [{"name": NAMES[role], "role": role, "values": numbers(column)} for role, column in values.items()]
    return FigureData("bars", {"y": y.as_dict(), "categories": list(categories), "series": series}, note)


def images(sheets: Sequence[tuple[str, Role, bytes]], *, note: str = "") -> FigureData:
    """Return contact sheets, each (title, whose, PNG): a sheet is one image of many, at most 300 kB and 1024 pixels a side."""
    body = [{"title": title, "role": role, "png": base64.b64encode(png).decode()} for title, role, png in sheets]
    return FigureData("images", {"sheets": body}, note)


class Figure(ABC):
    """One figure: one file, one class. `title` and `caption` are read by people who are no engineers: no claim beyond what is drawn.

    It is drawn for requests of `kinds` on models of `tasks`, and only over 16 forgotten records or more.
    """

    name: ClassVar[str]
    tasks: ClassVar[frozenset[str]]
    kinds: ClassVar[frozenset[str]] = frozenset({"class", "records"})
    title: ClassVar[str]
    caption: ClassVar[str]

    @abstractmethod
    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:
        """Return what is drawn, or why nothing is. `readings` are those of the plan, for figures of what was measured already."""


FIGURES: Registry[Figure] = Registry("figure")


def discover() -> None:
    """Import every figure of this distribution."""
    FIGURES.discover("services.verification.figures")


def compared(models: Models, *, original: bool = True) -> dict[Role, nn.Module]:
    """Return the models that a figure sets side by side, by role; the retrained one where there is one."""
    named: dict[Role, nn.Module | None] = {
        "original": models.original if original else None,
        "unlearned": models.unlearned,
        "retrained": models.retrained,
    }
    return {role: model for role, model in named.items() if model is not None}


def enough(sets: Mapping[str, Split | Unmeasured]) -> dict[str, Split]:
    """Return the sets of records that are large enough to be drawn, by their titles."""
    return {title: rows for title, rows in sets.items() if isinstance(rows, Split) and len(rows) >= LEAST_FORGOTTEN}


def forgotten_split(data: Splits) -> str:
    """Return the split that stands for what is forgotten: held-out records of the class where no training record is held."""
    return "forget_train" if len(data.forget) else "forget_test"


def drawn(models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return {name, document} or {name, reason} for every figure of the task and the kind of request, by name.

    A figure that raises is left out with its reason; the evaluation goes on.

    Raises:
        Cancelled, DeadlineExceeded: through `run.report`.
    """
    discover()
    chosen = [name for name in FIGURES if task.name in FIGURES[name].tasks and data.kind in FIGURES[name].kinds]
    broken = [{"name": label.rsplit(".", 1)[-1], "reason": "could_not_be_loaded"} for label in sorted(FIGURES.broken)]
    return [*({"name": name, **_one(FIGURES[name], models, data, task, run, readings)} for name in chosen), *broken]


def _one(family: type[Figure], models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> dict[str, Any]:
    if len(data.named(forgotten_split(data))) < LEAST_FORGOTTEN:
        return {"reason": TOO_FEW.reason}
    try:
        found = family().measure(models, data, task, run, readings)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001  a plug-in may fail in any way; a report without one figure is still a report
        return {"reason": f"could_not_be_drawn: {type(error).__name__}"}
    if isinstance(found, Unmeasured):
        return {"reason": found.reason}
    return {"document": {"kind": found.kind, "title": family.title, "caption": family.caption, "note": found.note, **found.body}}
