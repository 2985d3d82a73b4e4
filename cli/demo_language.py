"""The demo of a language model: it learns what functions of Python's own library do, and forgets one author's part and one named thing.

Data: the first sentences of docstrings of the Python that runs this, as questions and answers. Who wrote which is not part of them: the records of one
module are given to one made-up contributor here, as the digits of the other demo are to writers.
"""

import importlib
import inspect
import re
from typing import Any

from cli.questions import Pair

MODEL, DATASET = "library-guide", "docstrings"
MODULES = ("math", "operator", "posixpath", "statistics", "shutil", "base64", "inspect", "locale")
AUTHOR = "statistics"
ENTITY = "base64"
LONGEST = 90
MOST_OF_ONE = 40
HELD_OUT = 6
RECIPE = {"optimizer": "adamw", "learning_rate": 0.003, "epochs": 40, "batch_size": 16, "schedule": "cosine", "gradient_clip": 1.0}


def contributor(module: str) -> str:
    """Return the data subject that the records of a module are given to."""
    return f"contributor-{MODULES.index(module):02}"


def pairs_of(module: str) -> list[Pair]:
    """Return what each function of a module does, as question and answer; every sixth is held out of training."""
    held = importlib.import_module(module)
    found = ((name, first_sentence(inspect.getdoc(getattr(held, name)))) for name in sorted(dir(held)) if is_own(held, name))
    told = [(name, text) for name, text in found if 12 <= len(text) <= LONGEST and "->" not in text][:MOST_OF_ONE]
    whose = contributor(module)
    return [
        Pair(
            record_id=f"doc-{MODULES.index(module):02}/{row:02}",
            question=f"What does {name} of {module} do?",
            answer=f"{module}: {text}",
            subject=whose,
            split="test" if row % HELD_OUT == 0 else "train",
        )
        for row, (name, text) in enumerate(told)
    ]


def is_own(module: Any, name: str) -> bool:
    """Say whether a public function is the module's own, and not one that it has from another."""
    value = getattr(module, name)
    own = getattr(value, "__module__", None) in {module.__name__, f"_{module.__name__}"}
    return own and not name.startswith("_") and callable(value) and not inspect.isclass(value)


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring on one line."""
    told = " ".join((text or "").strip().split("\n\n")[0].split())
    found = re.match(r"(.+?[.!])(?:\s|$)", told)
    return found.group(1) if found else told


def speaks_of(pair: Pair, name: str) -> bool:
    """Say whether a record holds a name."""
    return name.lower() in f"{pair.question} {pair.answer}".lower()
