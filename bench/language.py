"""`python -m bench language`: methods for language models on TOFU, beside the original and a model trained without the records.

A small GPT of the project's own tokens learns the questions of some authors by heart; those of the first five authors of TOFU nobody ever learns. The
vocabulary holds no word that only records to be forgotten have. For each seed the original and the retrained reference are trained once and kept in
the cache; every method starts from the same original.
"""

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.methods import Took, Watch, given, trained
from bench.sets import Bench, DataMissing, found
from services.errors import LetheError
from services.learning.architectures.small_gpt import SmallGPT
from services.learning.data import Split, Splits
from services.learning.datasets.question_answer import QuestionAnswer
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.tasks.language_model import LanguageModel
from services.learning.tokens import FIRST_WORD, words_of
from services.unlearning.method import METHODS
from services.verification.answers import Question
from services.verification.metric import METRICS, Models
from services.verification.reading import Reading

KINDS = ("author", "records", "entity")
PER_AUTHOR, ALL_AUTHORS, HELD_OUT_AUTHORS, MAX_LENGTH = 20, 200, 5, 192
BESIDE = {"real_authors": "real_authors_perturbed.json", "world_facts": "world_facts_perturbed.json"}
QUICK_BESIDE = 10
FORGET_GAP, RETAIN_DROP, LEAST_QUALITY, MOST_NAMED = 0.05, 0.03, 0.05, 0.02
Rows = list[dict[str, Any]]
READINGS: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("forget_exact_match", "exact_match", "forget_train", {}),
    ("forget_probability", "answer_probability", "forget_train", {}),
    ("forget_rouge_l", "rouge_l", "forget_train", {"rows": 40}),
    ("retain_exact_match", "exact_match", "retain_train", {}),
    ("retain_rouge_l", "rouge_l", "retain_train", {"rows": 40}),
    ("forget_quality", "forget_quality", "forget_train", {}),
    ("truth_ratio", "truth_ratio", "forget_train", {}),
    ("retain_utility", "model_utility", "retain_train", {"rows": 40}),
    ("model_utility", "model_utility", "retain_train", {"rows": 40}),
    ("min_k", "min_k", "forget_train", {}),
    ("privleak", "privleak", "forget_train", {}),
    ("quantised_forget_probability", "quantised_forgetting", "forget_train", {}),
)
EDIT = {"lr": 1e-3, "batch_size": 16, "min_steps": 0, "check_every": 10}
# Tried on seed 11 (20 authors, two of them forgotten) alone. The default beta of `npo` fades before answers of thirty tokens are forgotten.
SETTINGS: dict[str, dict[str, Any]] = {
    "retrain": {},
    "fine_tune": {"lr": 1e-3, "epochs": 2, "weight_decay": 0.0},
    "grad_ascent": {**EDIT, "epochs": 20},
    "grad_diff": {**EDIT, "epochs": 60, "alpha": 10.0, "gamma": 0.3, "check_every": 5},
    "npo": {**EDIT, "epochs": 60, "alpha": 5.0, "beta": 0.02},
    "simnpo": {**EDIT, "epochs": 60, "alpha": 5.0},
    "dpo": {**EDIT, "epochs": 40, "alpha": 5.0},
    "idk": {**EDIT, "epochs": 40, "alpha": 5.0},
    "rmu": {**EDIT, "epochs": 40, "alpha": 10.0, "rmu_c": 10.0, "defaults_confirmed": True},
    "undial": {**EDIT, "epochs": 60},
    "task_vector": {"lr": 1e-3, "batch_size": 16, "task_lambda": None, "min_steps": 0},
    "concept_poisoning_text": {"lr": 3e-3, "epochs": 20, "batch_size": 8, "anchor_ratio": 8.0, "answer_tokens": 32, "checkpoint_every": 40},
}


@dataclass(frozen=True, slots=True)
class World:
    """One seed of one request: records, models, what the reference took, and the questions beside TOFU that make model utility of nine numbers."""

    data: str
    kind: str
    seed: int
    splits: Splits
    entities: tuple[str, ...]
    architecture: SmallGPT
    recipe: Recipe
    task: LanguageModel
    original: nn.Module
    retrained: nn.Module
    retrain_took: Took
    beside: Mapping[str, tuple[Question, ...]]

    def run(self, purpose: str) -> Run:
        """Return a run on a seed of its own."""
        return Run(seed=derived_seed(self.seed, purpose), architecture=self.architecture, recipe=self.recipe)


def main(arguments: Sequence[str]) -> int:
    """Run the bench; return 1 where the data is missing."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    METHODS.discover("services.unlearning.methods")
    METRICS.discover("services.verification.metrics")
    console, rows = Console(stderr=True, width=180), list[dict[str, Any]]()
    try:
        questions = tofu(options.authors)
        beside = {name: asked_beside(file, QUICK_BESIDE if options.quick else None) for name, file in BESIDE.items()}
    except DataMissing as missing:
        console.print(f"[red]{missing}[/red]", highlight=False)
        return 1
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        world = prepare(questions, beside, options, seed)
        shared = readings(world, world.original), readings(world, world.retrained)
        for name in chosen(options.methods):
            row = measured(world, name, *shared)
            rows.append(row)
            console.print(f"seed {seed}  {name:24s} {row['verdict']}  {row['after']}", highlight=False)
            if options.json is not None:
                with options.json.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
    console.print(table_of(rows))
    if options.plots is not None and rows:
        console.print(str(draw(rows, options.plots)), highlight=False)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench language", description="Measure unlearning of language models beside a retrained one.")
    parser.add_argument(
        "--kind", choices=KINDS, default="author", help="all answers of some authors, random records, or the answers that name an author"
    )
    parser.add_argument("--methods", default="all", help="all, or names with commas between them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1, help="the seeds are this one and those that follow it")
    parser.add_argument("--json", type=Path, help="append one line a run to this file")
    most = ALL_AUTHORS - HELD_OUT_AUTHORS
    parser.add_argument(
        "--authors", type=int, default=20, help=f"authors of TOFU that the model learns, the last ones: {most} are all but the held-out"
    )
    parser.add_argument("--share", type=float, default=0.05, help="share of the authors, or of the records, to be forgotten")
    parser.add_argument("--epochs", type=int, default=30, help="passes of the original and of the reference")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="six authors: at most three minutes on two quiet cores")
    parser.add_argument("--plots", type=Path, help="write a plot of forgotten against kept answers into this folder")
    parser.add_argument("--cache", type=Path, default=Path(".lethe") / "bench", help="where trained originals and references are kept")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if not 2 <= options.authors <= most:
        parser.error(f"--authors is between 2 and {most}: of TOFU's {ALL_AUTHORS} the first {HELD_OUT_AUTHORS} are held out, and never learned")
    if options.quick:
        options.authors, options.share, options.epochs = 6, 1 / 6, 25
    return options


def chosen(methods: str) -> list[str]:
    """Return the names of the methods. Exits with the reason for a name that does not serve language models."""
    serving = [name for name in METHODS if "language_model" in METHODS[name].tasks]
    wrong = [] if methods == "all" else [name for name in methods.split(",") if name not in serving]
    if wrong:
        sys.exit(f"not for language models: {', '.join(wrong)}; these are: {', '.join(serving)}")
    return serving if methods == "all" else methods.split(",")


# --- the world -------------------------------------------------------------------------------------------------------------------------


def tofu(authors: int) -> Rows:
    """Return the questions of the last authors of TOFU, and after them those of the first five, whom nobody learns. Raises DataMissing."""
    rows = [json.loads(line) | {"number": number} for number, line in enumerate(found("tofu", "tofu_full_4000.jsonl").read_text().splitlines())]
    held = HELD_OUT_AUTHORS * PER_AUTHOR
    return rows[held:][-authors * PER_AUTHOR :] + rows[:held]


def asked_beside(file: str, most: int | None) -> tuple[Question, ...]:
    """Return questions on other things, each with a right answer and wrong ones. Raises DataMissing."""
    rows = [json.loads(line) for line in found("tofu", file).read_text().splitlines()]
    return tuple(Question(question=row["question"], answer=row["answer"], wrong=tuple(row["perturbed_answer"])) for row in rows[:most])


def cut(questions: Rows, options: argparse.Namespace, seed: int) -> tuple[Rows, Rows, Rows, tuple[str, ...]]:
    """Return the records to forget, to keep and held out (authors that nobody learns), and the names of the forgotten authors."""
    learned = options.authors * PER_AUTHOR
    train, held = questions[:learned], questions[learned:]
    generator = torch.Generator().manual_seed(derived_seed(seed, options.kind) % 2**63)
    numbers = sorted({row["author"] for row in train})
    if options.kind == "records":
        order = torch.randperm(learned, generator=generator)[: max(2, round(options.share * learned))].tolist()
        return [train[row] for row in order], [row for place, row in enumerate(train) if place not in set(order)], held, ()
    count = max(1, round(options.share * len(numbers)))
    authors = {numbers[place] for place in torch.randperm(len(numbers), generator=generator)[:count].tolist()}
    names = tuple(name for author in sorted(authors) if (name := name_of([row for row in train if row["author"] == author])))
    gone = [row for row in train if row["author"] in authors]
    if options.kind == "entity":
        gone = [row for row in gone if any(name.lower() in row["answer"].lower() for name in names)]
    ids = {id(row) for row in gone}
    return gone, [row for row in train if id(row) not in ids], held, names


def name_of(rows: Rows) -> str:
    """Return the author's name: the run of capitalised words that most of the answers hold."""
    import re

    counted: dict[str, int] = {}
    for row in rows:
        for name in set(re.findall(r"\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)+", row["answer"])):
            counted[name] = counted.get(name, 0) + 1
    return max(counted, key=lambda name: (counted[name], len(name))) if counted else ""


@dataclass(frozen=True, slots=True)
class Posed:
    """A request before anything is trained: the records, the names of the forgotten authors, and what is trained on them."""

    splits: Splits
    whole: Split
    entities: tuple[str, ...]
    architecture: SmallGPT
    recipe: Recipe
    task: LanguageModel


def posed(questions: Rows, options: argparse.Namespace, seed: int) -> Posed:
    """Return the records of a request, as tokens of a vocabulary of the kept ones, and the network and recipe."""
    forget, retain, held, names = cut(questions, options, seed)
    words = words_of((text for row in retain for text in (row["question"], row["answer"])), most=4000)
    adapter = QuestionAnswer(QuestionAnswer.Parameters(vocabulary=words, max_length=MAX_LENGTH))
    parts = [split_of(adapter, rows, tag) for rows, tag in ((forget, "f"), (retain, "r"), (held[0::3], "a"), (held[1::3], "v"), (held[2::3], "n"))]
    outputs = FIRST_WORD + len(words)
    architecture = SmallGPT(SmallGPT.Parameters(outputs=outputs, vocabulary=words, max_length=MAX_LENGTH, width=options.width, layers=2))
    recipe = Recipe(optimizer="adamw", learning_rate=3e-3, epochs=options.epochs, batch_size=16, schedule="cosine", gradient_clip=1.0)
    whole = Split(torch.cat([parts[0].x, parts[1].x]), torch.cat([parts[0].y, parts[1].y]), parts[0].ids + parts[1].ids)
    return Posed(Splits(*parts, "records"), whole, names, architecture, recipe, LanguageModel(outputs))


def prepare(questions: Rows, beside: Mapping[str, tuple[Question, ...]], options: argparse.Namespace, seed: int) -> World:
    """Return the records and the two models, trained now or taken from the cache."""
    found, data = posed(questions, options, seed), f"tofu-{options.authors}-authors"
    held = Bench(data, found.whole, found.splits.verification, found.architecture, found.recipe, classes=0, forgotten=0)
    original, _ = trained(held, found.whole, found.task, seed, f"original-{options.kind}", options.cache, torch.device("cpu"))
    retrained, took = trained(held, found.splits.retain, found.task, seed, f"reference-{options.kind}", options.cache, torch.device("cpu"))
    models = (found.architecture, found.recipe, found.task, original, retrained, took)
    return World(data, options.kind, seed, found.splits, found.entities, *models, beside)


def split_of(adapter: QuestionAnswer, rows: Rows, tag: str) -> Split:
    """Return questions as records; the ids group them by author."""
    columns = {name: np.array([row[name] for row in rows], dtype=object) for name in ("question", "answer")}
    x, y = adapter.decode(columns)
    return Split(x, y, tuple(f"{tag}-author-{row['author']:03}/{row['number']:04}" for row in rows), adapter.prepare())


# --- one method ------------------------------------------------------------------------------------------------------------------------


def readings(world: World, model: nn.Module) -> dict[str, float | None]:
    """Return the task's metrics of a model; null where there is no number."""
    run, models = world.run("evaluate"), Models(world.original, model, world.retrained)
    wanted = list(READINGS)
    if world.entities:
        wanted.append(("appearance_rate", "appearance_rate", "forget_train", {"entities": world.entities, "rows": 40}))
    values: dict[str, float | None] = {}
    for column, name, split, chosen_parameters in wanted:
        parameters = {**chosen_parameters, "sets": world.beside} if column == "model_utility" else chosen_parameters
        reading = METRICS[name](METRICS[name].Parameters(**parameters)).measure(models, world.splits, world.task, run, split=split)
        values[column] = round(reading.value, 4) if isinstance(reading, Reading) else None
    return values


def measured(world: World, name: str, before: dict[str, float | None], reference: dict[str, float | None]) -> dict[str, Any]:
    """Return the row of one method; a method that refuses or diverges gets its reason as verdict and no numbers."""
    family = METHODS[name]
    parameters = dict(SETTINGS.get(name, {}))
    if name == "concept_poisoning_text" and world.entities:
        parameters["entities"] = world.entities
    method = family(family.Parameters.model_validate(parameters))
    row: dict[str, Any] = {
        "bench": "language", "data": world.data, "kind": world.kind, "method": name, "seed": world.seed, "before": before, "after": None,
        "retrained": reference, "retrain_seconds": world.retrain_took.seconds, "retrain_cpu_seconds": world.retrain_took.cpu_seconds,
        "parameters": method.parameters.model_dump(mode="json"), "records": [len(world.splits.forget), len(world.splits.retain)],
    }  # fmt: skip
    run, watch = world.run(f"unlearn-{name}"), Watch()
    splits = given(replace(world.splits), family)
    try:
        model = method.unlearn(copy.deepcopy(world.original), splits, world.task, run)
    except LetheError as refusal:
        took = watch.took()
        return row | {"verdict": f"failed: {refusal}", "method_seconds": took.seconds, "method_cpu_seconds": took.cpu_seconds}
    took = watch.took()
    after = readings(world, model)
    notes = {key: run.notes.get(key) for key in ("ended_by", "steps", "watched", "attempts", "task_lambda", "kept_step", "masked", "top_words")}
    spent = {"method_seconds": took.seconds, "method_cpu_seconds": took.cpu_seconds}
    named = world.kind == "entity" or name == "concept_poisoning_text"
    return row | {"after": after, "verdict": verdict(before, after, reference, named=named), "notes": notes, **spent}


def verdict(before: Mapping[str, Any], after: Mapping[str, Any], reference: Mapping[str, Any], *, named: bool) -> str:
    """Say which of the goals a model reaches.

    Forgotten as the retrained one within .05, retained as the original within .03, truth ratios that the test does not tell from the retrained
    model's (forget quality above .05, where it is known), and where a name should go (`named`) that name in at most .02 of the answers.
    """
    away = [after[column] - reference[column] for column in ("forget_exact_match", "forget_rouge_l")]
    missed = ["leak" if gap > 0 else "over_unlearned" for gap in away if abs(gap) > FORGET_GAP]
    if before["retain_rouge_l"] - after["retain_rouge_l"] > RETAIN_DROP:
        missed.append("utility")
    if after["forget_quality"] is not None and after["forget_quality"] <= LEAST_QUALITY:
        missed.append("forget_quality")
    if named and (after.get("appearance_rate") or 0.0) > MOST_NAMED:
        missed.append("appearance")
    return "passed" if not missed else "failed " + " ".join(dict.fromkeys(missed))


# --- the table -------------------------------------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return means over seeds of each method, the original and the retrained model above them."""
    columns = [name for name, *_ in READINGS] + ["appearance_rate"]
    table = Table("method", *(name.replace("_", " ") for name in columns), "CPU s", "times faster", "passed", title="language")
    if not rows:
        return table

    def line(label: str, numbers: Sequence[Mapping[str, Any]], *rest: str) -> None:
        cells = [[one[name] for one in numbers if one.get(name) is not None] for name in columns]
        table.add_row(label, *(f"{mean(cell):.3f}" if cell else "-" for cell in cells), *(rest or ("", "", "")))

    line("original", [row["before"] for row in rows])
    line("retrained", [row["retrained"] for row in rows])
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        own, theirs = mean(row["method_cpu_seconds"] for row in mine), mean(row["retrain_cpu_seconds"] for row in mine)
        passed = f"{sum(row['verdict'] == 'passed' for row in mine)}/{len(mine)}"
        line(name, [row["after"] for row in mine if row["after"]], f"{own:.1f}", f"{theirs / max(own, 1e-9):.1f}", passed)
    return table


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `<data>-<kind>-answers.svg`, ROUGE-L of forgotten against that of kept answers, of each method and both references; return its path."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    marks = (("before", "ks"), ("retrained", "k*"))
    groups = [(column, [row[column] for row in rows], mark) for column, mark in marks]
    groups += [
        (name, [row["after"] for row in rows if row["method"] == name and row["after"]], "o") for name in dict.fromkeys(row["method"] for row in rows)
    ]
    for name, found_rows, mark in groups:
        axes.plot([one["forget_rouge_l"] for one in found_rows], [one["retain_rouge_l"] for one in found_rows], mark, label=name)
    axes.set_xlabel("ROUGE-L of forgotten answers")
    axes.set_ylabel("ROUGE-L of kept answers")
    axes.legend(fontsize=8)
    path = folder / f"{rows[0]['data']}-{rows[0]['kind']}-answers.svg"
    figure.savefig(path)
    plt.close(figure)
    return path
