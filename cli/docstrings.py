"""Questions and answers on Python's own library, for the demo of a language model: the first sentences of docstrings of the Python that runs this.

Who wrote which is not part of them: the records of one module are given to one made-up contributor here, as digits are to writers elsewhere.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cli.questions import Pair, network_of, shared_words, write_questions

MODULES = ("math", "operator", "posixpath", "statistics", "shutil", "base64", "inspect", "locale")
MOST_OF_ONE = 24
HELD_OUT = 6
SHORTEST, LONGEST = 12, 90
MAX_LENGTH = 96


@cache
def pairs() -> tuple[Pair, ...]:
    """Return what functions of the modules do, as questions and answers; every sixth of a module is held out of training."""
    return tuple(pair for module in MODULES for pair in pairs_of(module))


def pairs_of(module: str) -> list[Pair]:
    """Return the records of one module, at most 24."""
    held = importlib.import_module(module)
    found = ((name, first_sentence(inspect.getdoc(getattr(held, name)))) for name in sorted(dir(held)) if is_own(held, name))
    told = [(name, text) for name, text in found if SHORTEST <= len(text) <= LONGEST and "->" not in text][:MOST_OF_ONE]
    return [
        Pair(
            record_id=f"doc-{MODULES.index(module):02}/{row:02}",
            question=f"What does {name} of {module} do?",
            answer=f"{module}: {text}",
            subject=contributor(module),
            split="test" if row % HELD_OUT == 0 else "train",
        )
        for row, (name, text) in enumerate(told)
    ]


def contributor(module: str) -> str:
    """Return the data subject that the records of a module are given to."""
    return f"contributor-{MODULES.index(module):02}"


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


def speaking_of(name: str) -> dict[str, Sequence[str]]:
    """Return the name for each record that holds it, by record id: what the subject index is told."""
    return {pair.record_id: (name,) for pair in pairs() if name.lower() in f"{pair.question} {pair.answer}".lower()}


def adapter_params() -> dict[str, Any]:
    """Return the parameters of the adapter that reads the records."""
    return {"vocabulary": shared_words(pairs(), most=1000), "max_length": MAX_LENGTH}


def network() -> Mapping[str, Any]:
    """Return the parameters of a small network that reads them."""
    return network_of(adapter_params())


def write(target: Path) -> None:
    """Write the records as Parquet."""
    write_questions(pairs(), target, words=1000, max_length=MAX_LENGTH)
