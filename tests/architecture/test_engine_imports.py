"""The engine is a library: it imports and trains where only its nine packages exist."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NINE = ["torch", "torchvision", "numpy", "scipy", "scikit-learn", "pydantic", "safetensors", "captum", "torchmetrics"]

SCRIPT = """
import importlib, pkgutil, sys
from importlib.metadata import distributions, packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def closure(names):
    found, waiting = set(), [canonicalize_name(name) for name in names]
    known = {canonicalize_name(d.metadata["Name"]) for d in distributions()}
    while waiting:
        name = waiting.pop()
        if name in found or name not in known:
            continue
        found.add(name)
        for line in requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(need.name))
    return found

allowed = closure(sys.argv[1].split(","))
owners = {module: {canonicalize_name(d) for d in ds} for module, ds in packages_distributions().items()}
foreign = {module for module, ds in owners.items() if not ds & allowed and module not in sys.stdlib_module_names}
foreign -= {"services", "lethe"}
foreign |= {"api", "worker", "control", "cli", "bench", "models_store"}

class Without:
    # a finder that does not see what is foreign: such a package is missing, as it would be where it is not installed

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in foreign else self.finder.find_spec(name, path, target)

for name in list(sys.modules):
    if name.split(".")[0] in foreign:
        del sys.modules[name]
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

def walk(package):
    home = importlib.import_module(package)
    for module in pkgutil.walk_packages(home.__path__, package + "."):
        importlib.import_module(module.name)

for package in ("services.learning", "services.unlearning", "services.verification"):
    walk(package)

import torch
torch.set_num_threads(1)
from services.learning.architecture import ARCHITECTURES
from services.learning.data import Split
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import TASKS
from services.learning.training import fit

family = ARCHITECTURES["mlp"]
model = family(family.Parameters(inputs=3, outputs=2)).fresh(0)
split = Split(torch.randn(8, 3), torch.arange(8) % 2, tuple("abcdefgh"))
print(fit(model, split, TASKS["classification"](2), Recipe(epochs=1), Run(seed=0)).steps)
print(sorted(name for name in sys.modules if name.split(".")[0] in foreign))
"""


def test_the_engine_imports_and_trains_with_its_nine_packages_alone():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(NINE)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:2] == ["1", "[]"]
