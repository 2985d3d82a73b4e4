"""`python -m bench applicability`: which method serves which kind of data, as a page of the documentation, found by running each.

Every method gets a small part of each set, a network of that set's own architecture trained for some epochs, and parameters that cut it to a few
steps. It serves the set if it ends with a model, or its guard stops it after such short work; otherwise its own words of refusal are printed.
"""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench import sets
from bench.methods import cut, given
from services.errors import Diverged, LetheError
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.unlearning.method import METHODS, UnlearningMethod

SHOWN = ("adult", "breast_cancer", "banking77", "fashion_mnist")
WHAT = {
    "adult": "table: Adult, `mlp`",
    "breast_cancer": "table: breast cancer, `mlp` with batch norm",
    "banking77": "text: Banking77, `text_transformer`",
    "fashion_mnist": "images: Fashion-MNIST, `tiny_cnn`",
}
RECORDS, EPOCHS, FEW_CLASSES = 400, 4, 8
SHORT: dict[str, Any] = {
    "epochs": 1, "max_epochs": 1, "epochs_impair": 1, "epochs_repair": 1, "impair_epochs": 1, "min_steps": 0, "noise_steps": 10, "copies": 1,
    "n_pseudo_batches": 10, "n_stu": 2,
}  # fmt: skip
HEAD = """# What kinds of data the methods serve

Written by `python -m bench applicability > docs/reference/applicability.md`: each method was run for a few steps on a small part of each set, for
class and for record requests. `class` and `records` say which requests it served; a number leads to the words it refuses with. What a method does
well is another matter: see docs/benchmarks. A kind of request that a method does not serve at all is no matter of the data and left out.

"""


def main() -> int:
    """Print the page; return 1 where the data is missing."""
    torch.set_num_threads(1)
    METHODS.discover("services.unlearning.methods")
    try:
        scenes = {name: scenes_of(small(sets.load(name))) for name in SHOWN}
    except sets.DataMissing as missing:
        sys.stderr.write(f"{missing}\n")
        return 1
    classifying = sorted(name for name in METHODS if "classification" in METHODS[name].tasks)
    sys.stdout.write(page({name: {data: answers(METHODS[name], found) for data, found in scenes.items()} for name in classifying}))
    return 0


def small(held: sets.Bench) -> sets.Bench:
    """Return a small part of a set; of many classes only the first few, so that each has records."""
    if held.classes > FEW_CLASSES + 2:
        labels = tuple(range(FEW_CLASSES))
        held = sets.replace(held, train=held.train.with_labels(labels, keep=True), test=held.test.with_labels(labels, keep=True))
    return sets.replace(held, train=sets.drawn(held.train, RECORDS), test=sets.drawn(held.test, RECORDS))


Scene = tuple[sets.Bench, nn.Module, dict[str, Splits]]


def scenes_of(held: sets.Bench) -> Scene:
    """Return a set with a network trained on it and a request of each kind."""
    run = Run(seed=1, architecture=held.architecture, recipe=held.recipe)
    model = run.fresh_model("original")
    fit(model, held.train, Classification(held.classes), held.recipe.model_copy(update={"epochs": EPOCHS, "batch_size": 32}), run)
    return held, model.eval(), {"class": cut(held, "class", 1), "records": cut(held, "subject", 1)}


def answers(family: type[UnlearningMethod], scene: Scene) -> dict[str, str]:
    """Return for each kind of request that the method serves at all: the words of its refusal, or none."""
    held, model, requests = scene
    return {kind: refusal(family, held, model, splits) for kind, splits in requests.items() if kind in family.granularities}


def refusal(family: type[UnlearningMethod], held: sets.Bench, model: nn.Module, splits: Splits) -> str:
    """Return why a method refuses a request, or nothing."""
    recipe = held.recipe.model_copy(update={"epochs": 1})
    run = Run(seed=2, architecture=held.architecture, recipe=recipe)
    method = family(family.Parameters(**{name: value for name, value in SHORT.items() if name in family.Parameters.model_fields}))
    try:
        method.inspect(splits)
        method.unlearn(copy.deepcopy(model), given(splits, family), Classification(held.classes), run)
    except Diverged:
        return ""  # it took the data, and its guard judged the work
    except LetheError as refused:
        return str(refused.facts.get("detail", refused)).split("\n")[0]
    return ""


def page(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """Return the page of what was found, method by set by kind of request."""
    words: dict[str, int] = {}
    lines = ["| method | " + " | ".join(WHAT[name] for name in SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for method, by_set in found.items():
        cells = []
        for answer in by_set.values():
            served = [kind for kind, refused in answer.items() if not refused]
            noted = [f"({words.setdefault(refused, len(words) + 1)})" for refused in dict.fromkeys(answer.values()) if refused]
            cells.append(" ".join(([", ".join(served)] if served else ["no"]) + noted))
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    notes = [f"{number}. {text}" for text, number in words.items()]
    return HEAD + "\n".join([*lines, "", "The words of the refusals:", "", *notes, ""])
