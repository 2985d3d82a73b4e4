"""`python -m bench gan`: unlearning a GAN on real images, beside the original and a GAN retrained without the records.

For each seed the original and the retrained reference are trained once and kept in the cache; every arm starts from the same original. Method
seconds are the method alone, inversion and its own classifier included; retrain seconds are the training of the reference by the same recipe.
"""

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.utils import make_grid

from bench import sets
from bench.methods import Took, Watch, given, spent, trained
from services.errors import LetheError
from services.learning.data import Split, Splits
from services.learning.gan import draw, images_of
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.tasks.image_generation import ImageGeneration
from services.unlearning.mechanisms.sample_quality import Look
from services.unlearning.method import METHODS, UnlearningMethod
from services.unlearning.methods.cascaded_gan import CascadedGAN
from services.verification import evaluation
from services.verification.attack import ATTACKS
from services.verification.metric import METRICS, Models
from services.verification.reading import Reading

KINDS = ("class", "item")
ITEMS = 64
QUICK_RECORDS = 1200
SHOWN, ACROSS = 64, 4
READINGS = {
    "class": ("class_rate", "feature_fid", "feature_kid", "gan_attack", "downstream_accuracy"),
    "item": ("item_nn_distance", "feature_fid", "feature_kid", "gan_attack", "downstream_accuracy"),
}
RATE_ABOVE, FID_RATIO, DROP, AREA, FID_CHANGE = 0.02, 1.3, 0.01, 0.1, 1.2


class WithoutTargets(CascadedGAN):
    """The cascade for its planned rounds, whatever it leads to: an ablation has no targets."""

    def met(self, look: Look, before: Look) -> bool:  # noqa: ARG002
        """Say that all is well."""
        return True


@dataclass(frozen=True, slots=True)
class Arm:
    """A method as it is measured; `variant` tells several of one method apart, `free` runs the cascade without its targets."""

    method: str
    variant: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    free: bool = False

    @property
    def label(self) -> str:
        """The name that is printed."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    def build(self) -> UnlearningMethod:
        """Return the method."""
        if self.free:
            return WithoutTargets(WithoutTargets.Parameters(looks_after=0, **self.parameters))
        family = METHODS[self.method]
        return family(family.Parameters(**self.parameters))


@dataclass(frozen=True, slots=True)
class Scene:
    """How a set is generated: its side in pixels, records, network, recipe; `items` is the same for the erasure of items, where D is to over-fit."""

    side: int
    channels: int
    net: str
    records: int
    epochs: int
    rate: float
    more: Mapping[str, Any]


SCENES = {
    ("digits", "class"): Scene(8, 1, "mlp_gan", 1200, 100, 5e-4, {}),
    ("digits", "item"): Scene(8, 1, "mlp_gan", 500, 180, 1e-3, {"dropout": 0.0, "width": 512}),
    ("mnist", "class"): Scene(16, 1, "dcgan", 6000, 20, 4e-4, {"width": 24, "latent": 32}),
    ("mnist", "item"): Scene(16, 1, "dcgan", 500, 150, 4e-4, {"width": 24, "latent": 32, "dropout": 0.0}),
    ("cifar10", "class"): Scene(32, 3, "dcgan", 20_000, 60, 2e-4, {"width": 64, "latent": 100}),
    ("cifar10", "item"): Scene(32, 3, "dcgan", 500, 150, 2e-4, {"width": 64, "latent": 100, "dropout": 0.0}),
}


@dataclass(frozen=True, slots=True)
class World:
    """One seed: records, the original, the retrained reference, what that took, and the run that all readings share."""

    bench: sets.Bench
    kind: str
    seed: int
    task: ImageGeneration
    splits: Splits
    original: nn.Module
    retrained: nn.Module
    original_took: Took
    retrain_took: Took
    readings: Run
    samples: int
    before: dict[str, Any]
    reference: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Run the bench; return 1 where the data is missing."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    evaluation.discover()
    console = Console(stderr=True, width=200)
    try:
        held = load(options)
    except sets.DataMissing as missing:
        console.print(f"[red]{missing}[/red]", highlight=False)
        return 1
    rows: list[dict[str, Any]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        world = prepare(held, options, seed)
        sheets = [("before", world.original)]
        for arm in arms(options):
            row, model = measured(world, arm)
            rows.append(row)
            sheets += [(labelled(row), model)] if model is not None else []
            console.print(f"seed {seed}  {labelled(row):30s} {row['verdict']}", highlight=False)
            if options.json is not None:
                with options.json.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
        if options.plots is not None:
            console.print(str(sheet([*sheets, ("retrained", world.retrained)], world, options)), highlight=False)
    console.print(table_of(rows, options.kind, title(rows, options)))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench gan", description="Measure unlearning of a GAN beside a retrained one.")
    parser.add_argument("--data", choices=("digits", "mnist", "cifar10"), default="digits")
    parser.add_argument("--kind", choices=KINDS, default="class")
    parser.add_argument("--conditional", action="store_true", help="a GAN that makes images of a given class")
    parser.add_argument("--records", type=int, help="train on this many records")
    parser.add_argument("--epochs", type=int, help="epochs of the original and of the retrained reference")
    parser.add_argument("--methods", default="all", help="all, or names of arms as printed, with commas between them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs and samples: at most three minutes on two cores")
    parser.add_argument("--json", type=Path, help="append one line a run to this file")
    parser.add_argument("--plots", type=Path, help="write a sheet of samples before, after and retrained into this folder")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.records = 1, min(options.records or QUICK_RECORDS, QUICK_RECORDS, SCENES[options.data, options.kind].records)
    return options


def arms(options: argparse.Namespace) -> list[Arm]:
    """Return what is measured: the cascade as it is, by numbers of rounds, its ablations at 150 rounds, and fine-tuning on the retained records."""
    shorter = [] if options.kind == "class" else [50]  # for a class that is the default
    lengths = [150] if options.quick else [*shorter, 150, 400]
    ablations: dict[str, dict[str, Any]] = {"no learning": {"learn_ratio": 0}, "no substitution": {"lambda_s": 0.0, "lambda_a": 0.0}}
    if options.kind == "item":
        ablations["no keeping"] = {"lambda_k": 0.0}
    whole = [
        Arm("cascaded_gan"),
        *(Arm("cascaded_gan", f"{rounds} rounds", {"rounds_planned": rounds}, free=True) for rounds in lengths),
        *(Arm("cascaded_gan", name, {"rounds_planned": 150, **changed}, free=True) for name, changed in ablations.items()),
        Arm("fine_tune"),
    ]
    if options.methods == "all":
        return whole
    wanted, names = options.methods.split(","), [arm.label for arm in whole]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        sys.exit(f"no such arm: {', '.join(unknown)}; there are {', '.join(names)}")
    return [arm for arm in whole if arm.label in wanted]


# --- the world -------------------------------------------------------------------------------------------------------------------------


def to_unit(x: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [-1, 1]."""
    return x.float().div_(127.5).sub_(1)


def resized(rows: Split, side: int) -> Split:
    """Return the images at `side` pixels, in [-1, 1] for the model."""
    x = rows.x
    if x.shape[2] != side:
        x = interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True).round().to(torch.uint8)
    return Split(x, rows.y, rows.ids, to_unit)


def load(options: argparse.Namespace) -> sets.Bench:
    """Return the set with its GAN and recipe; exits where more records are asked for than it has. Raises DataMissing."""
    scene = SCENES[options.data, options.kind]
    held = sets.load(options.data)
    count = options.records or scene.records
    if count > len(held.train):
        sys.exit(f"--records {count}: {options.data} has {len(held.train)} records to train on")
    epochs = options.epochs or (max(1, scene.epochs // 2) if options.quick else scene.epochs)
    more = dict(scene.more)
    net = scene.net
    if options.conditional:
        net, more = ("conditional_gan", more) if net == "dcgan" else (net, {**more, "conditional": True})
    architecture = sets.network(net, outputs=held.classes, channels=scene.channels, side=scene.side, **more)
    recipe = Recipe(learning_rate=scene.rate, epochs=epochs, batch_size=64)
    train, test = resized(sets.drawn(held.train, count), scene.side), resized(sets.drawn(held.test, 6000), scene.side)
    return replace(held, name=f"{held.name}-gan", train=train, test=test, architecture=architecture, recipe=recipe)


def prepare(held: sets.Bench, options: argparse.Namespace, seed: int) -> World:
    """Return the records of the request and both models, trained now or taken from the cache, with their readings."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task, splits = ImageGeneration(held.classes), cut(held, options.kind, seed)
    splits = replace(splits, **{name: getattr(splits, name).to(device) for name in ("forget", "retain", "analysis", "verification", "attack")})
    original, original_took = trained(held, held.train.to(device), task, seed, "original", options.cache, device)
    retrained, took = trained(held, splits.retain, task, seed, f"reference-{options.kind}", options.cache, device)
    readings = Run(seed=derived_seed(seed, "evaluate"), device=device, architecture=held.architecture, recipe=held.recipe)
    samples = 1000 if options.quick else 2000
    world = World(held, options.kind, seed, task, splits, original, retrained, original_took, took, readings, samples, {}, {})
    world.before.update(read(world, original))
    world.reference.update(read(world, retrained))
    return world


def cut(held: sets.Bench, kind: str, seed: int) -> Splits:
    """Return the five parts of a request: the held-out records are cut in three."""
    order = torch.randperm(len(held.test), generator=torch.Generator().manual_seed(seed))
    analysis, verification, attack = (held.test.take(part) for part in order.chunk(3))
    if kind == "class":
        label = (held.forgotten,)
        parts = (held.train.with_labels(label, keep=keep) for keep in (True, False))
        return Splits(*parts, analysis, verification, attack, "class", label)
    rows = torch.randperm(len(held.train), generator=torch.Generator().manual_seed(derived_seed(seed, kind)))
    return Splits(held.train.take(rows[:ITEMS]), held.train.take(rows[ITEMS:].sort().values), analysis, verification, attack, "records", ())


# --- one arm ---------------------------------------------------------------------------------------------------------------------------


def measured(world: World, arm: Arm) -> tuple[dict[str, Any], nn.Module | None]:
    """Return the row of one arm and its model; one that refuses or misses its own targets has its reason as verdict and no model."""
    method = arm.build()
    row: dict[str, Any] = {
        "bench": "gan", "data": world.bench.name.removesuffix("-gan"), "kind": world.kind, "method": arm.method, "variant": arm.variant, "seed": world.seed,
        "before": world.before, "after": None, "retrained": world.reference, "architecture": world.bench.architecture.name,
        "network": world.bench.architecture.parameters.model_dump(mode="json"), "recipe": world.bench.recipe.model_dump(mode="json"),
        "records": len(world.bench.train), "device": world.readings.device.type, "threads": torch.get_num_threads(),
        "retrain_seconds": world.retrain_took.seconds, "retrain_cpu_seconds": world.retrain_took.cpu_seconds,
        "parameters": method.parameters.model_dump(mode="json"),
    }  # fmt: skip
    run = Run(
        seed=derived_seed(world.seed, "unlearn"), device=world.readings.device, architecture=world.bench.architecture, recipe=world.bench.recipe
    )
    watch = Watch()
    try:
        model = method.unlearn(copy.deepcopy(world.original), given(world.splits, type(method)), world.task, run)
    except LetheError as refusal:
        return row | {"verdict": f"failed: {refusal}", **spent(watch.took())}, None
    took = watch.took()
    after = read(world, model)
    notes = {name: run.notes.get(name) for name in ("steps", "looks", "latents_to_forget", "effective")}
    reach = run.notes.get("reach")
    notes["not_reproducible"] = len(reach["not_reproducible_by_generator"]) if isinstance(reach, dict) else None
    return row | {"after": after, "notes": notes, "verdict": verdict_of(world, after), **spent(took)}, model


def read(world: World, model: nn.Module) -> dict[str, Any]:
    """Return the readings of a model; null with its reason where there is none."""
    found: dict[str, Any] = {}
    models = Models(world.original, model, world.retrained)
    for name in READINGS[world.kind]:
        family = ATTACKS[name] if name in ATTACKS else METRICS[name]
        chosen = {"samples": world.samples} if "samples" in family.Parameters.model_fields else {}
        reading = family(family.Parameters(**chosen)).measure(models, world.splits, world.task, world.readings, split=family.splits[0])
        found[name] = round(reading.value, 5) if isinstance(reading, Reading) else None
        if isinstance(reading, Reading):
            found[f"{name}_interval"] = [round(reading.low, 5), round(reading.high, 5)]
    return found


def verdict_of(world: World, after: Mapping[str, Any]) -> str:
    """Return whether the goals of this bench are reached, and which are not."""
    before, gold = world.before, world.reference
    if world.kind == "class":
        goals = {
            "class rate": after["class_rate"] <= gold["class_rate"] + RATE_ABOVE,
            "distance": after["feature_fid"] <= FID_RATIO * gold["feature_fid"],
            "downstream": after["downstream_accuracy"] >= before["downstream_accuracy"] - DROP,
        }
    else:
        goals = {
            "attack": abs(after["gan_attack"] - 0.5) <= AREA,
            "distance": after["feature_fid"] <= FID_CHANGE * before["feature_fid"],
            "downstream": after["downstream_accuracy"] >= before["downstream_accuracy"] - DROP,
        }
    missed = [name for name, reached in goals.items() if not reached]
    return "reached" if not missed else f"missed {', '.join(missed)}"


def labelled(row: Mapping[str, Any]) -> str:
    """Return the name of a row's arm."""
    return f"{row['method']} ({row['variant']})" if row["variant"] else str(row["method"])


# --- the table and the sheet ------------------------------------------------------------------------------------------------------------


def title(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> str:
    """Return the heading of the table, with the recipe that retraining repeats."""
    first = rows[0]
    steps = -(-first["records"] // first["recipe"]["batch_size"]) * first["recipe"]["epochs"]
    return (
        f"{options.data}, {options.kind}, {options.seeds} seeds, {first['architecture']}, {first['records']} records, "
        f"retraining: {first['recipe']['epochs']} epochs, about {steps} steps"
    )


def table_of(rows: Sequence[Mapping[str, Any]], kind: str, heading: str) -> Table:
    """Return means over seeds, with the original before and the retrained reference after the arms."""
    names = READINGS[kind]
    table = Table("arm", *names, "seconds", "times faster", "verdict", title=heading)
    first = {row["seed"]: row for row in rows}.values()
    table.add_row("before", *(shown([row["before"] for row in first], name) for name in names), "", "", "")
    for arm in dict.fromkeys(labelled(row) for row in rows):
        mine = [row for row in rows if labelled(row) == arm]
        seconds, retrain = mean(row["method_cpu_seconds"] for row in mine), mean(row["retrain_cpu_seconds"] for row in mine)
        told = ", ".join(sorted({row["verdict"][:70] for row in mine}))
        cells = [shown([row["after"] for row in mine], name) for name in names]
        table.add_row(arm, *cells, f"{seconds:.1f}", f"{retrain / max(seconds, 1e-9):.1f}", told)
    seconds = mean(row["retrain_cpu_seconds"] for row in first)
    table.add_row("retrained", *(shown([row["retrained"] for row in first], name) for name in names), f"{seconds:.1f}", "1", "")
    return table


def shown(found: Sequence[Mapping[str, Any] | None], name: str) -> str:
    """Return the mean of a reading and its spread over seeds."""
    values = [each[name] for each in found if each is not None and each.get(name) is not None]
    if not values:
        return "-"
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def sheet(models: Sequence[tuple[str, nn.Module]], world: World, options: argparse.Namespace) -> Path:
    """Write samples of each model from the same latents, a panel each, and return the path."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    options.plots.mkdir(parents=True, exist_ok=True)
    down = -(-len(models) // ACROSS)
    figure, axes = plt.subplots(down, ACROSS, figsize=(3 * ACROSS, 3.2 * down), layout="constrained", squeeze=False)
    panels = list(axes.flat)
    for panel in panels:
        panel.axis("off")
    for panel, (name, model) in zip(panels, models, strict=False):
        made = images_of(model, draw(model, SHOWN, torch.Generator().manual_seed(0), world.readings.device)).cpu() / 2 + 0.5
        panel.imshow(make_grid(made, nrow=8, padding=1, pad_value=0.5).permute(1, 2, 0))
        panel.set_title(name, fontsize=10)
    path = options.plots / f"gan-{options.data}-{options.kind}-seed-{world.seed}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
