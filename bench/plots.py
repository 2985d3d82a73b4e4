"""Two plots of a methods bench as SVG: retained against forgotten accuracy, and time against distance from the retrained model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

MARKERS = "osDv^<>Ph*X"
"""As many as are coprime to ten colours: methods that lie on one point are told apart by the legend."""


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write `retain-forget.svg` and `time-quality.svg` and return their paths. Methods without numbers are left out of both."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    held = [row for row in rows if row.get("forget_accuracy") is not None and row.get("retain_accuracy") is not None]
    names = list(dict.fromkeys(row["method"] for row in held))
    means = {name: {key: mean(row[key] for row in held if row["method"] == name) for key in KEYS} for name in names}
    paths: list[Path] = []
    for stem, across, up, labels in PLOTS:
        figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
        for place, (name, found) in enumerate(means.items()):
            axes.plot(across(found), up(found), MARKERS[place % len(MARKERS)], color=f"C{place % 10}", label=name)
        if stem == "retain-forget" and means:
            gold = next(iter(means.values()))
            axes.plot(gold["retrained_forget_accuracy"], gold["retrained_retain_accuracy"], "k*", markersize=12, label="retrained reference")
        if stem == "time-quality":
            axes.set_xscale("log")
        if means:
            figure.legend(loc="outside right upper", fontsize=8)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(f"{held[0]['data']}, {held[0]['kind']}" if held else "no method has numbers")
        paths.append(folder / f"{stem}.svg")
        figure.savefig(paths[-1])
        plt.close(figure)
    return paths


def draw_growth(points: Sequence[Mapping[str, Any]], data: str, folder: Path) -> Path:
    """Write `growth-<data>.svg`: seconds of a method against how many classes, or subjects, one run forgets; return its path."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, kind in dict.fromkeys((point["method"], point["kind"]) for point in points):
        mine = [point for point in points if (point["method"], point["kind"]) == (name, kind)]
        style = "o-" if kind == "classes" else "s--"
        axes.plot([point["count"] for point in mine], [point["cpu_s"] for point in mine], style, label=f"{name}, {kind}")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("forgotten in one run")
    axes.set_ylabel("seconds of the processor")
    axes.set_title(f"{data}: cost of forgetting more at once")
    axes.legend()
    path = folder / f"growth-{data}.svg"
    figure.savefig(path)
    plt.close(figure)
    return path


KEYS = ("forget_accuracy", "retain_accuracy", "retrained_forget_accuracy", "retrained_retain_accuracy", "method_seconds", "retrain_seconds")


def distance(found: Mapping[str, float]) -> float:
    """Return how far a method lies from the retrained model: the larger of the two differences in accuracy."""
    pairs = (("forget_accuracy", "retrained_forget_accuracy"), ("retain_accuracy", "retrained_retain_accuracy"))
    return max(abs(found[own] - found[gold]) for own, gold in pairs)


PLOTS = (
    ("retain-forget", lambda f: f["forget_accuracy"], lambda f: f["retain_accuracy"], ("accuracy on forgotten records", "accuracy on retained classes, held out")),
    ("time-quality", lambda f: f["method_seconds"] / f["retrain_seconds"], distance, ("method seconds / retrain seconds", "largest accuracy difference from retrained")),
)  # fmt: skip
