"""`python -m bench speed`: methods against retraining, against the released recipes written eagerly, and against how much is forgotten at once.

Each line is a ratio of medians, its two sides measured in turn in one run on one thread. Seconds are seconds of the processor, so that other work on
the machine stretches them little; seconds by the clock stand in the detail. Reading and decoding data, metrics and training the original are outside.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from bench import eager, sets
from bench.methods import Took, Watch, cut, given
from bench.row import Row
from services.errors import LetheError
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.unlearning.mechanisms.accuracy import accuracy
from services.unlearning.mechanisms.descent import per_class
from services.unlearning.mechanisms.generator import Generator
from services.unlearning.mechanisms.importance import Granule, ImportanceCache, Measure, Whole
from services.unlearning.mechanisms.transfer import Settings, Transfer, fresh_student
from services.unlearning.method import METHODS, UnlearningMethod
from services.unlearning.methods.ssd import Ssd

FULL_EPOCHS, TIMED_EPOCHS = 20, 2
SEED = 1
PAPER_SSD = {"alpha": 10.0, "importance": "batch", "batch_size": 64, "backoff_max": 20}
"""The released settings of SSD: alpha 10, gradients of batches; a cost that is too high is still backed off from."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A set with a model trained on it for `epochs` epochs, and the parts of a class request."""

    bench: sets.Bench
    task: Classification
    splits: Splits
    original: nn.Module
    epochs: int

    @classmethod
    def of(cls, held: sets.Bench, epochs: int) -> "Scene":
        """Train the original; its quality is no matter of this bench, but a method must find something to forget."""
        task, run = Classification(held.classes), Run(seed=SEED, architecture=held.architecture, recipe=held.recipe)
        model = run.fresh_model("original")
        fit(model, held.train, task, held.recipe.model_copy(update={"epochs": epochs}), run)
        return cls(held, task, cut(held, "class", SEED), model.eval(), epochs)

    def run(self) -> Run:
        """Return a run of a method."""
        return Run(seed=SEED, architecture=self.bench.architecture, recipe=self.bench.recipe)

    def classes(self, count: int) -> Splits:
        """Return the request that forgets `count` classes at once, the set's own first."""
        first = self.bench.forgotten
        labels = tuple(sorted((first + step) % self.bench.classes for step in range(count)))
        train = self.bench.train
        forget, retain = (train.with_labels(labels, keep=keep) for keep in (True, False))
        return Splits(forget, retain, self.splits.analysis, self.splits.verification, self.splits.attack, "class", labels)

    def subjects(self, count: int, records: int) -> Splits:
        """Return the request that forgets `count` subjects of `records` records each at once."""
        order = torch.randperm(len(self.bench.train), generator=torch.Generator().manual_seed(SEED))
        forget, retain = (self.bench.train.take(rows) for rows in order.split([count * records, len(order) - count * records]))
        return Splits(forget, retain, self.splits.analysis, self.splits.verification, self.splits.attack, "records", ())

    def timed(self, method: UnlearningMethod, splits: Splits) -> tuple[Took, dict[str, Any]]:
        """Run a method once; return what it took, and the accuracies it left, or why it ended."""
        model, shown, run = copy.deepcopy(self.original), given(splits, type(method)), self.run()
        watch = Watch()
        try:
            model = method.unlearn(model, shown, self.task, run)
        except LetheError as refusal:
            return watch.took(), {"ended": str(refusal).split("\n")[0][:200]}
        took = watch.took()
        left = {"forget": accuracy(model, splits.forget), "retain": accuracy(model, splits.analysis.with_labels(splits.classes, keep=False))}
        notes = {name: run.notes[name] for name in ("steps", "rows") if name in run.notes}
        return took, {f"{name}_accuracy": None if value is None else round(value, 4) for name, value in left.items()} | notes


def medians(taken: Sequence[Took]) -> dict[str, float]:
    """Return the medians by processor and by clock."""
    return {"cpu_s": round(median(each.cpu_seconds for each in taken), 4), "s": round(median(each.seconds for each in taken), 4)}


def once(action: Callable[[], object]) -> Took:
    """Run an action and return what it took."""
    watch = Watch()
    action()
    return watch.took()


def method_of(name: str, parameters: Mapping[str, Any], cache: ImportanceCache | None = None) -> UnlearningMethod:
    """Return a method of the registry with its parameters."""
    family = METHODS[name]
    return family(family.Parameters(**parameters)) if cache is None else family(family.Parameters(**parameters), cache=cache)  # type: ignore[call-arg]


def filled(scene: Scene, parameters: Mapping[str, Any], rows: int) -> ImportanceCache:
    """Return a cache that holds the importance for the whole set, measured on at most `rows` of its records: it is made once, before any request.

    Where the parameters leave the form open, both are in it: importances of single records, and of batches, in which a run may look next.
    """
    cache, nothing, p = dict[str, Any](), torch.zeros(0, dtype=torch.int64), Ssd.Parameters(**parameters)
    part = scene.bench.train.sample(rows, torch.Generator().manual_seed(SEED))
    whole = Whole.of(part.take(nothing), part)
    granules: tuple[Granule, ...] = ("per_sample", "batch") if p.importance is None else (p.importance,)
    for granule in granules:
        whole.importance(scene.original, scene.task, scene.run(), Measure(Ssd.scalar, granule, p.batch_size), cache)
    return cache


# --- against retraining ----------------------------------------------------------------------------------------------------------------


def against_retraining(scene: Scene, repeats: int) -> Iterator[Row]:
    """Yield a row per method: seconds of 20 epochs of retraining over seconds of the method; none where a run made no model, and stderr says why."""
    retain, recipe, run = scene.splits.retain, scene.bench.recipe.model_copy(update={"epochs": 1}), scene.run()
    model = run.fresh_model("retrained")
    epochs = [once(lambda: fit(model, retain, scene.task, recipe, run)) for _ in range(TIMED_EPOCHS)]
    epoch = medians(epochs)
    subset = min(len(scene.bench.train), 6000)
    cases = (
        ("lra_npp", "", {}, None, 100.0),
        ("ssd", "alpha 10, batches", PAPER_SSD, filled(scene, PAPER_SSD, subset), 100.0),
        ("ssd", "defaults", {}, filled(scene, {}, subset), 100.0),
        ("unsir", "", {}, None, 10.0),
        ("bad_teacher", "", {}, None, 10.0),
    )
    for name, variant, parameters, cache, goal in cases:
        runs = [scene.timed(method_of(name, parameters, cache), scene.splits) for _ in range(repeats)]
        if ended := [str(told["ended"]) for _, told in runs if "ended" in told]:
            sys.stderr.write(f"no row for {name} {variant}: {ended[0]}\n")
            continue
        own = medians([took for took, _ in runs])
        detail = {
            **facts(scene), "method": name, "variant": variant, "parameters": dict(parameters), "method_took": own, "repeats": repeats, **runs[-1][1],
            "retrain_epoch_took": epoch, "retrain_epochs": FULL_EPOCHS, "retrain": f"median of {TIMED_EPOCHS} epochs of the retain set times {FULL_EPOCHS}",
        }  # fmt: skip
        if cache is not None:
            detail["importance_of_the_whole_set"] = f"cached before, from {subset} of its records"
        yield Row("speed: against retraining", FULL_EPOCHS * epoch["cpu_s"] / own["cpu_s"], goal, "higher", detail)


def facts(scene: Scene) -> dict[str, Any]:
    """Return what every row says of its scene."""
    held, weights = scene.bench, sum(each.numel() for each in scene.original.parameters())
    sizes = {"records": len(held.train), "forget": len(scene.splits.forget), "original_epochs": scene.epochs, "weights": weights}
    return {"data": held.name, "network": held.architecture.name, **sizes, "threads": torch.get_num_threads()}


# --- against the released recipes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """One method twice: as the product has it and as released. `savings` is the released arithmetic over ours, in forward passes."""

    method: str
    own: Callable[[], object]
    released: Callable[[], object]
    savings: float
    goal: float
    note: str


def against_released(scene: Scene, repeats: int) -> Iterator[Row]:
    """Yield a row per method: seconds of the released recipe, written eagerly, over ours; same settings, same number of steps."""
    for pair in (unsir_pair(scene), bad_teacher_pair(scene), ssd_pair(scene), gkt_pair(scene)):
        own, released = [], []
        for repeat in range(repeats + 1):
            first, second = once(pair.own), once(pair.released)
            if repeat > 0:  # the first warms caches and allocators
                own.append(first)
                released.append(second)
        ours, theirs = medians(own), medians(released)
        ratio = theirs["cpu_s"] / ours["cpu_s"]
        detail = {
            **facts(scene), "method": pair.method, "method_took": ours, "released_took": theirs, "repeats": repeats,
            "saved_arithmetic": round(pair.savings, 2), "removed_overhead": round(ratio / pair.savings, 4), "note": pair.note,
        }  # fmt: skip
        yield Row("speed: against the released recipe", ratio, pair.goal, "higher", detail)


def records_of(split: Split) -> eager.Records:
    """Return a split as the released code holds it."""
    batch = split.batch(torch.arange(len(split)))
    return eager.listed(batch.x, batch.y)


def unsir_pair(scene: Scene) -> Pair:
    """Two classes at once, 64 rows of noise each, 20 copies, batches of 256, one epoch of each stage."""
    splits = scene.classes(2)
    count, steps, copies = 64, 40, 20
    parameters = {
        "noise_batch": count, "noise_steps": steps, "noise_bn_mode": "eval", "copies": copies, "retain_per_class": 500, "lr_impair": 1e-3,
        "lr_repair": 1e-3, "min_steps": 0,
    }  # fmt: skip
    retain = records_of(per_class(splits.retain, 500, torch.Generator().manual_seed(SEED)))
    noise, training = steps * count * len(splits.classes), 3 * (copies * count * len(splits.classes) + 2 * len(retain))

    def released() -> None:
        model = copy.deepcopy(scene.original)
        eager.unsir(model, retain, splits.classes, rows=count, steps=steps, copies=copies, lr=(1e-3, 1e-3), batch=256)

    savings = (3 * noise + training) / (2 * noise + training)
    return Pair("unsir", lambda: scene.timed(method_of("unsir", parameters), splits), released, savings, 5.0, "two classes; ours with its guard")


def bad_teacher_pair(scene: Scene) -> Pair:
    """One class, a random teacher, 30 % of the retain set, one epoch of batches of 256."""
    splits = scene.splits
    parameters = {"incompetent": "random_init", "lr": 1e-4, "epochs": 1, "min_steps": 0, "batch_size": 256}
    forget = records_of(splits.forget)
    retain = records_of(splits.retain.sample(round(0.3 * len(splits.retain)), torch.Generator().manual_seed(SEED)))
    incompetent = scene.run().fresh_model("incompetent")

    def released() -> None:
        eager.bad_teacher(copy.deepcopy(scene.original), incompetent, forget, retain, lr=1e-4, epochs=1, batch=256)

    return Pair("bad_teacher", lambda: scene.timed(method_of("bad_teacher", parameters), splits), released, 5 / 4, 5.0, "ours with its guard")


def ssd_pair(scene: Scene) -> Pair:
    """One class at the released settings; ours finds the importance of the whole set in its cache."""
    splits, cache = scene.splits, filled(scene, PAPER_SSD, len(scene.bench.train))
    forget, whole = records_of(splits.forget), records_of(scene.bench.train)

    def released() -> None:
        eager.ssd(copy.deepcopy(scene.original), forget, whole, alpha=10.0, strength=1.0, batch=64)

    savings = (len(forget) + len(whole)) / len(forget)
    own = method_of("ssd", PAPER_SSD, cache)
    return Pair("ssd", lambda: scene.timed(own, splits), released, savings, 5.0, "ours with its guard, its judge and the way back from too much")


def gkt_pair(scene: Scene, *, pseudo_batches: int = 3, batch: int = 64, student_steps: int = 10) -> Pair:
    """Some pseudo-batches of 64 with 10 student steps each; the gate lets everything through, so that both sides see as many images."""
    run, record = scene.run(), scene.splits.retain.batch(torch.zeros(1, dtype=torch.int64)).x.shape[1:]
    forgotten = scene.bench.forgotten
    given_ = Settings(
        (forgotten,), batch, 1, student_steps, 1.0, 1.0, 0.0, 5.0, student_statistics=False, max_empty=1, max_reloads=0, pseudo_batches=1
    )

    def own() -> None:
        teacher, student = copy.deepcopy(scene.original).requires_grad_(requires_grad=False).eval(), fresh_student(scene.original, run)
        transfer = Transfer("gkt", teacher, student, Generator.fresh(record, SEED, z_dim=128, width=32).train(), (), given_, run)
        for _ in range(pseudo_batches):
            transfer.pseudo_batch()

    def released() -> None:
        teacher, student = copy.deepcopy(scene.original).eval(), fresh_student(scene.original, run)
        generator = Generator.fresh(record, SEED, z_dim=128, width=32).train()
        optimizers = (torch.optim.Adam(generator.parameters(), lr=1e-3), torch.optim.Adam(student.parameters(), lr=1e-3))
        for _ in range(pseudo_batches):
            z = torch.randn(batch, 128)
            eager.gkt_pseudo_batch(teacher, student, generator, optimizers, z, forgotten=forgotten, epsilon=1.0, student_steps=student_steps)

    return Pair("gkt", own, released, 1.8, 1.7, f"{pseudo_batches} pseudo-batches; 1.8 is the arithmetic of the cost model without the generator")


# --- how the cost grows ----------------------------------------------------------------------------------------------------------------

GROWING: dict[str, dict[str, Any]] = {"bad_teacher": {}, "ssd": PAPER_SSD, "unsir": {"min_steps": 0, "lr_impair": 1e-3, "lr_repair": 1e-3}}
NOISE_ROWS = 256
SUBJECT_RECORDS = 10


def growth(scene: Scene, classes: Sequence[int], subjects: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return a point per method and count: seconds to forget so many classes, or so many subjects, in one run of the method."""
    points: list[dict[str, Any]] = []
    for name, parameters in GROWING.items():
        cache = filled(scene, parameters, len(scene.bench.train)) if name == "ssd" else None
        for kind, counts in (("classes", classes), ("subjects", subjects)):
            granularity = "class" if kind == "classes" else "records"
            for count in counts if granularity in METHODS[name].granularities else ():
                splits = scene.classes(count) if kind == "classes" else scene.subjects(count, SUBJECT_RECORDS)
                capped = {"noise_batch": max(8, NOISE_ROWS // count), "noise_bn_mode": "eval"} if name == "unsir" else {}
                runs = [scene.timed(method_of(name, {**parameters, **capped}, cache), splits) for _ in range(repeats)]
                took = medians([each for each, _ in runs])
                points.append({"method": name, "kind": kind, "count": count, "forget": len(splits.forget), **took, **capped, **runs[-1][1]})
    return points


def finished(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the points of methods and kinds of which every run made a model; of the others the reason goes to stderr: a refusal's time is none."""
    ended = {(point["method"], point["kind"]): str(point["ended"]) for point in reversed(points) if "ended" in point}
    for (name, kind), reason in ended.items():
        sys.stderr.write(f"no row for {name}, {kind}: {reason}\n")
    return [point for point in points if (point["method"], point["kind"]) not in ended]


def growth_rows(scene: Scene, points: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row per method and kind: seconds for most at once over seconds for one, and what as many single requests would take."""
    rows: list[Row] = []
    for name, kind in dict.fromkeys((point["method"], point["kind"]) for point in points):
        mine = [point for point in points if (point["method"], point["kind"]) == (name, kind)]
        least, most = mine[0], mine[-1]
        detail = {
            **facts(scene), "method": name, "kind": kind, "parameters": GROWING[name], "points": mine,
            "one_by_one": round(most["count"] * least["cpu_s"] / most["cpu_s"], 2),
        }  # fmt: skip
        rows.append(Row(f"speed: growth to {most['count']} {kind}", most["cpu_s"] / least["cpu_s"], 2.0, "lower", detail))
    return rows


# --- the command -----------------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the bench; return 1 where the data is missing."""
    options = parse(arguments)
    torch.set_num_threads(1)
    METHODS.discover("services.unlearning.methods")
    torch.manual_seed(SEED)  # the released recipes draw from the global generator, as released code does
    try:
        held = sets.load(options.data, records=options.records)
    except sets.DataMissing as missing:
        sys.stderr.write(f"{missing}\n")
        return 1
    if options.net == "mlp":
        held = sets.with_mlp(held)
    scene = Scene.of(held, options.original_epochs)
    for row in measured(scene, options):
        print(row.line(), flush=True)
        if options.json is not None:
            with options.json.open("a") as lines:
                lines.write(row.line() + "\n")
    return 0


def measured(scene: Scene, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the part that is asked for."""
    if not options.growth:
        yield from {"retraining": against_retraining, "released": against_released}[options.against](scene, options.repeats)
        return
    most = min(64, scene.bench.classes - 1)
    classes = sorted({1, 2, 4, 8, 16, 32, 64, most} & set(range(1, most + 1)))
    points = finished(growth(scene, classes, (1, 4, 16, 64), options.repeats))
    if options.plots is not None:
        from bench.plots import draw_growth

        draw_growth(points, scene.bench.name, options.plots)
    yield from growth_rows(scene, points)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench speed", description="Measure how fast methods are, as ratios.")
    parser.add_argument("--against", choices=("retraining", "released"), default="retraining")
    parser.add_argument("--growth", action="store_true", help="measure instead how the cost grows with what is forgotten at once")
    parser.add_argument("--data", choices=sorted(sets.SETS), default="fashion_mnist")
    parser.add_argument("--net", choices=("own", "mlp"), default="own", help="the set's own network, or one of two linear layers")
    parser.add_argument("--records", type=int, help="train on this many records, and hold out half as many; by default all of both")
    parser.add_argument("--original-epochs", type=int, default=3, help="epochs that the original is trained for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    parser.add_argument("--plots", type=Path, help="write growth.svg into this folder")
    return parser.parse_args(arguments)
