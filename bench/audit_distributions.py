"""`klom` and `neurips_f`: many models that forgot one set of records against many that were trained without it, beside what those give of each other.

Each number stands beside its null, of twice as many retrained models split in two, and a p-value by permutation; without these neither says anything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.random import default_rng
from rich.table import Table
from torch import nn

from bench.audit_scene import BEFORE, Case, Scene, described
from bench.methods import Watch
from services.errors import LetheError
from services.learning.data import Split
from services.verification.outputs import by_id, outputs_on
from services.verification.shadows import margins_on
from services.verification.statistics import klom, neurips
from services.verification.statistics.many_models import Beside
from services.verification.statistics.scores import Floats

ATTACKS = ("klom", "neurips_f")
LEAST = {"klom": klom.LEAST_MODELS, "neurips_f": neurips.LEAST_MODELS}
MOST_OF_RETRAINING = 0.2  # the competition's rule: unlearning takes a fifth of the time of a retraining at most


@dataclass(frozen=True, slots=True)
class Asked:
    """What many models say of the same records: margins (models, n) of each part, and the mean accuracy there; processor seconds that making one took, 0 unknown."""

    margins: Mapping[str, Floats]
    right: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Court:
    """The retrained models that all others are held against, and the parts of the records that all are asked about."""

    scene: Scene
    parts: Mapping[str, Split]
    retrained: Asked

    def asked(self, models: Iterator[nn.Module]) -> Asked:
        """Ask models, each made when its turn comes, about every part."""
        return asked(self.scene, self.parts, models)

    def klom(self, found: Asked) -> dict[str, Any]:
        """Return the 95th percentiles of KLoM over forgotten, retained and held-out records."""
        rng = default_rng([self.scene.options.seed, 4])
        return {"p95": {part: shown(klom.klom_beside(found.margins[part], self.retrained.margins[part], rng=rng)) for part in self.parts}}

    def neurips_f(self, found: Asked) -> dict[str, Any]:
        """Return F of the forgotten records, the final score, and whether unlearning was quick enough to be scored."""
        rng, mine, theirs = default_rng([self.scene.options.seed, 5]), found, self.retrained
        quality = neurips.quality_beside(mine.margins["forget"], theirs.margins["forget"], rng=rng)
        rights = {part: (mine.right[part], theirs.right[part]) for part in ("retain", "test")}
        share = round(mine.seconds / theirs.seconds, 3) if mine.seconds > 0 and theirs.seconds > 0 else None
        facts = {"of_retraining": share, "quick_enough": share is None or share <= MOST_OF_RETRAINING}
        return {"f": shown(quality), "final": neurips.final_score(quality.value, **rights), **facts}


def shown(found: Beside) -> dict[str, float]:
    """Return a number beside its null, as a row has it."""
    return {"value": found.value, "null": found.null, "p": found.p}


def asked(scene: Scene, parts: Mapping[str, Split], models: Iterator[nn.Module]) -> Asked:
    """Return what models say of every part; making them is what takes the time that is told."""
    margins: dict[str, list[Floats]] = {part: [] for part in parts}
    right: dict[str, list[float]] = {part: [] for part in parts}
    seconds: list[float] = []
    watch = Watch()
    for model in models:
        seconds.append(watch.took().cpu_seconds)
        for part, rows in parts.items():
            margins[part].append(margins_on(model, rows, scene.task))
            right[part].append(float(outputs_on(model, rows, scene.task).right.mean()))
        watch = Watch()
    shares = {part: float(np.mean(each)) for part, each in right.items()}
    return Asked({part: np.stack(each) for part, each in margins.items()}, shares, float(np.mean(seconds)))


def by_many_models(scene: Scene, names: Sequence[str], attacks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `klom` and `neurips_f`, whichever of them is among `attacks`; too few models are a reason and no number."""
    options, train = scene.options, scene.held.train
    count = options.targets // 2
    facts = {"models": options.models, "retrained": 2 * options.models, "forgotten": count, "epochs": scene.held.recipe.epochs}
    wanted = [attack for attack in attacks if options.models >= LEAST[attack]]
    for attack in attacks:
        if attack not in wanted:
            yield from (described(scene, attack, name, facts) | refused("too_few_models") for name in (BEFORE, *names))
    if not wanted:
        return
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(options.seed))
    forget, retain = by_id(train.take(order[:count])), train.take(order[count:])
    watch = Watch()
    cases = [scene.case(forget, retain, f"many_models/{number}") for number in range(options.models)]
    parts = {"forget": forget, "retain": by_id(retain.take(torch.arange(count))), "test": by_id(cases[0].splits.named("test"))}
    retrained = (scene.trained(retain, f"many_models/retrained/{number}") for number in range(2 * options.models))
    court = Court(scene, parts, asked(scene, parts, retrained))
    for name in (BEFORE, *names):
        yield from rows_of(court, cases, name, wanted, facts, watch)
        watch = Watch()


def rows_of(
    court: Court, cases: Sequence[Case], name: str, wanted: Sequence[str], facts: Mapping[str, Any], watch: Watch
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one method, or of the models as they were before it; a method that refuses has its reason in each."""
    try:
        if name == BEFORE:
            found = replace(court.asked(case.original for case in cases), seconds=0.0)
        else:
            found = court.asked(court.scene.forgot(name, case, f"many_models/{number}") for number, case in enumerate(cases))
    except LetheError as refusal:
        found = str(refusal).split("\n")[0]
    tests: dict[str, Callable[[Asked], dict[str, Any]]] = {"klom": court.klom, "neurips_f": court.neurips_f}
    for number, attack in enumerate(wanted):
        numbers = refused(found) if isinstance(found, str) else tests[attack](found)
        yield described(court.scene, attack, name, facts) | numbers | {"cpu_seconds": watch.took().cpu_seconds if number == 0 else 0.0}


def refused(reason: str) -> dict[str, Any]:
    """Return what a row has in the place of numbers."""
    return {"value": None, "reason": reason, "cpu_seconds": 0.0}


def told(row: Mapping[str, Any]) -> str:
    """Return the numbers of a row in one line."""
    if row["attack"] == "klom":
        return "; ".join(f"{part} {beside(found)}" for part, found in row["p95"].items())
    quick = "" if row["quick_enough"] else f", too slow: {row['of_retraining']:.2f} of a retraining's time"
    return f"F {beside(row['f'])}, final {number(row['final'])}{quick}"


def beside(found: Mapping[str, float] | None) -> str:
    """Return a number with its null and p-value; a dash where there is none."""
    return "-" if found is None else f"{found['value']:.3f} (null {found['null']:.3f}, p {found['p']:.3f})"


def number(value: float | None) -> str:
    """Return a number, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return one table of both, each number beside that of retrained models against each other; a dash is a number that was refused."""
    heads = ("method", "KLoM forgotten", "KLoM retained", "KLoM held out", "F", "final", "of a retraining's time", "CPU s")
    table = Table(*heads, title=title)
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = {row["attack"]: row for row in rows if row["method"] == name}
        divergences, quality = mine.get("klom", {}).get("p95", {}), mine.get("neurips_f", {})
        table.add_row(
            name,
            *(beside(divergences.get(part)) for part in ("forget", "retain", "test")),
            beside(quality.get("f")),
            number(quality.get("final")),
            number(quality.get("of_retraining")),
            f"{sum(row['cpu_seconds'] for row in mine.values()):.1f}",
        )
    return table
