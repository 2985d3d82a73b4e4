"""`python -m bench catalogue`: the unlearning methods as a page of the documentation, read from their registry."""

import sys

from services.jobs.compute.plugins import paper_of
from services.unlearning.method import METHODS, UnlearningMethod

HEAD = """# Unlearning methods

Written by `python -m bench catalogue > docs/reference/methods.md`; `GET /v1/methods` lists the same with the schema of every parameter.
Guarantees: `exact` (computed without the records), `certified` (bounded, under stated assumptions), `approximate`, `suppression` (outputs stop,
features may stay). A method is withheld what it does not need.

| method | what it does | forgets | needs | guarantee | source |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Return the page."""
    METHODS.discover("services.unlearning.methods")
    return HEAD + "".join(line(METHODS[name]) for name in sorted(METHODS))


def line(method: type[UnlearningMethod]) -> str:
    """Return the row of one method."""
    wanted = method.needs
    needs = [name for name, needed in (("forget set", wanted.forget_set), ("retain set", wanted.retain_set), ("recipe", wanted.recipe)) if needed]
    what = " ".join((method.__doc__ or "").split("\n\n")[0].split())
    cells = (f"`{method.name}`", what, ", ".join(sorted(method.granularities)), ", ".join(needs) or "nothing", method.guarantee, source(method))
    return "| " + " | ".join(cells) + " |\n"


def source(method: type[UnlearningMethod]) -> str:
    """Return the source that the method's docstrings name."""
    return (paper_of(method) or "-").replace("|", "\\|")


def main() -> int:
    """Print the page."""
    sys.stdout.write(page())
    return 0
