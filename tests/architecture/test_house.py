"""Rules of the house that no tool knows, read from the source itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("house")  # every file is parsed once
ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "worker", "control", "cli", "bench", "services", "models_store", "migrations", "tests")
LONGEST = 60
NAMES_OF_NOTHING = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc"}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "torch.hub.load", "numpy.load", "np.load", "pandas.read_pickle"}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if ".venv" not in path.parts]


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ".".join(["?", *reversed(parts)])


def calls(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def imported(module: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def unpickling(path: Path, module: ast.Module) -> list[str]:
    found = [where(path, node) for name, node in imported(module) if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS]
    for name, call in calls(module):
        if name in {"np.load", "numpy.load"}:
            refused = [word.value for word in call.keywords if word.arg == "allow_pickle"]
            safe = len(refused) == 1 and isinstance(refused[0], ast.Constant) and refused[0].value is False
            found += [] if safe else [where(path, call)]
        elif name in UNSAFE_CALLS:
            found.append(where(path, call))
    return found


def own_time(path: Path, module: ast.Module) -> list[str]:
    wrong = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time")
    return [where(path, call) for name, call in calls(module) if name in wrong or name.endswith((".datetime.now", ".datetime.utcnow"))]


def commits(path: Path, module: ast.Module) -> list[str]:
    return [where(path, call) for name, call in calls(module) if name.split(".")[-1] == "commit" and name.count(".")]


def long_functions(path: Path, module: ast.Module) -> list[str]:
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"{where(path, node)} {node.name}" for node in functions if (node.end_lineno or 0) - node.lineno + 1 > LONGEST]


def test_no_function_is_longer_than_sixty_lines():
    assert [found for path in sources(*PACKAGES) for found in long_functions(path, tree(path))] == []


def test_no_file_or_folder_is_named_after_nothing():
    parts = {(path, part) for path in sources(*PACKAGES) for part in path.relative_to(ROOT).with_suffix("").parts}
    assert sorted(str(path.relative_to(ROOT)) for path, part in parts if part.lower() in NAMES_OF_NOTHING) == []


def test_nothing_is_ever_unpickled():
    folders = [folder for folder in PACKAGES if folder != "tests"]
    assert [found for path in sources(*folders) for found in unpickling(path, tree(path))] == []


def test_only_the_unit_of_work_commits():
    allowed = ROOT / "services/db/session.py"
    folders = ("services", "api", "worker", "control", "models_store")
    assert [found for path in sources(*folders) if path != allowed for found in commits(path, tree(path))] == []


def test_no_method_file_is_longer_than_two_hundred_lines():
    long = {path.name: lines for path in (ROOT / "services/unlearning/methods").glob("*.py") if (lines := len(path.read_text().splitlines())) > 200}

    assert long == {}


def test_services_take_the_time_from_a_clock():
    allowed = ROOT / "services/clock.py"
    assert [found for path in sources("services") if path != allowed for found in own_time(path, tree(path))] == []


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (unpickling, "import pickle"),
        (unpickling, "from joblib import load"),
        (unpickling, "from torch import load"),
        (unpickling, "import torch\ntorch.load('x')"),
        (unpickling, "np.load('x')"),
        (unpickling, "np.load('x', allow_pickle=True)"),
        (own_time, "datetime.now(UTC)"),
        (own_time, "datetime.datetime.utcnow()"),
        (commits, "session.commit()"),
        (commits, "await self.session.commit()"),
        (long_functions, "def f():\n" + "    x = 1\n" * 60),
    ],
)
def test_each_rule_catches_what_it_forbids(rule, line):
    assert rule(ROOT / "services/planted.py", ast.parse(line)) != []


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (unpickling, "np.load('x', allow_pickle=False)"),
        (own_time, "clock.now()"),
        (long_functions, "def f():\n" + "    x = 1\n" * 59),
    ],
)
def test_each_rule_lets_pass_what_it_allows(rule, line):
    assert rule(ROOT / "services/planted.py", ast.parse(line)) == []
