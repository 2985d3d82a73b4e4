"""What all parts of the audit share: the data, the trainings on it, and what a row says beside its numbers."""

import argparse
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench import sets
from bench.methods import given
from services.learning.data import Split, Splits
from services.learning.run import Run, derived_seed
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.unlearning.method import METHODS
from services.verification.outputs import joined

BEFORE = "(before erasure)"


@dataclass(frozen=True, slots=True)
class Case:
    """One training with records that are then to be forgotten."""

    splits: Splits
    original: nn.Module


@dataclass(frozen=True, slots=True)
class Scene:
    """A data set with what all trainings on it share."""

    held: sets.Bench
    task: Classification
    options: argparse.Namespace

    def run(self, purpose: str) -> Run:
        """Return a run on a seed of its own."""
        return Run(seed=derived_seed(self.options.seed, purpose), architecture=self.held.architecture, recipe=self.held.recipe)

    def trained(self, rows: Split, purpose: str) -> nn.Module:
        """Return a model trained on `rows` by the recipe."""
        run = self.run(purpose)
        model = run.fresh_model("original")
        fit(model, rows, self.task, self.held.recipe, run)
        return model.eval()

    def case(self, forget: Split, retain: Split, purpose: str) -> Case:
        """Train on both and return what is to be forgotten of it."""
        original = self.trained(joined(retain, forget), purpose)
        order = torch.randperm(len(self.held.test), generator=torch.Generator().manual_seed(self.options.seed))
        thirds = [self.held.test.take(part) for part in order.chunk(3)]
        return Case(Splits(forget, retain, *thirds, "records", ()), original)

    def forgot(self, name: str, case: Case, purpose: str) -> nn.Module:
        """Return what a method makes of a case. Raises LetheError where it refuses or diverges."""
        family = METHODS[name]
        setting = sets.settings_of(self.options.data, "subset", name)[0]
        method = family(family.Parameters(**setting.parameters))
        return method.unlearn(copy.deepcopy(case.original), given(case.splits, family), self.task, self.run(f"{name}/{purpose}")).eval()


def described(scene: Scene, attack: str, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row says beside its numbers."""
    held = scene.held
    row: dict[str, Any] = {
        "bench": "audit", "attack": attack, "method": name, "data": scene.options.data, "architecture": held.architecture.name,
        "records": len(held.train), "seed": scene.options.seed, "device": "cpu", "threads": torch.get_num_threads(), **facts,
    }  # fmt: skip
    if name in METHODS:
        setting = sets.settings_of(scene.options.data, "subset", name)[0]
        row |= {"version": METHODS[name].version, "parameters": dict(setting.parameters)}
    return row
