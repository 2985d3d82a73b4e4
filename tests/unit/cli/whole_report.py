"""Whole reports: models trained on digits, judged by a seeded policy's plan with the service's own arithmetic, and reported as the service does."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from services.db.tables import ReadingRow
from services.jobs import power
from services.jobs.compute.verify import row
from services.jobs.steps.plan import gated, split_counts
from services.jobs.workshop import within_53_bits
from services.learning.architectures.mlp import MLP
from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.tenants.policies import DEMO, readings_for
from services.verification import evaluation
from services.verification.metric import Models
from services.verification.outputs import joined
from services.verification.verdict import IntegrityFacts, Verdict, judge

FORGOTTEN = 3
TASK = Classification(10)
ARCHITECTURE = MLP(MLP.Parameters(outputs=10, inputs=64, hidden=(32,)))
RECIPE = Recipe(epochs=15, learning_rate=3e-3, batch_size=64)
FACTS = IntegrityFacts(
    finite=True, differs_from_parent=True, plan_precedes_run=True, fresh_start=False, forget_read=True, guarantee="approximate", version="faces@2"
)


@dataclass(frozen=True)
class Judged:
    """A plan, what was read for it, and the verdict; `rows` are made anew at each asking, since a session would own them."""

    plan: dict[str, Any]
    columns: list[dict[str, Any]]
    verdict: Verdict

    @property
    def rows(self) -> list[ReadingRow]:
        """The readings as the database holds them."""
        return [ReadingRow(**one) for one in self.columns]


@cache
def digits() -> Splits:
    """Return the digits; those of class 3 are to be forgotten."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    whole = Split(
        torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order], dtype=torch.int64), tuple(f"r{i:04d}" for i in range(len(y)))
    )
    train, thirds = whole.take(torch.arange(1000)), [whole.take(torch.arange(1000 + k, len(y), 3)) for k in range(3)]
    return Splits(*(train.with_labels((FORGOTTEN,), keep=keep) for keep in (True, False)), *thirds, "class", (FORGOTTEN,))


@cache
def trained(seed: int, *, whole: bool) -> torch.nn.Module:
    """Return a network trained on the retained records, or on the whole."""
    torch.set_num_threads(1)
    data, run = digits(), Run(seed=seed, architecture=ARCHITECTURE, recipe=RECIPE)
    model = run.fresh_model("weights")
    fit(model, joined(data.forget, data.retain) if whole else data.retain, TASK, RECIPE, run)
    return model.eval()


def plan() -> dict[str, Any]:
    """Return the plan of a class request under the policy `demo`, with its power and its rules, as it is frozen."""
    data = digits()
    roles = {"forget": len(data.forget), "retain": len(data.retain), "analysis": len(data.analysis), "attack": len(data.named("attack"))}
    roles |= {"verification": len(data.named("test")), "forget_test": len(data.named("forget_test"))}
    document = DEMO.verification.model_dump(mode="json", by_alias=True)
    readings, utility = readings_for(document, "classification", "class")
    planned = [gated(entry, split_counts(roles)) for entry in readings]
    known = power.Known(roles, "class", 10, 0.99, 0.95)
    body = {
        "policy": {"key": "demo", "version": 1}, "request_kind": "class", "method": "unsir", "parameters": {}, "guarantee": "approximate",
        "reference": "retrained", "utility": utility, "level": 0.9, "alpha": 0.05, "looks": 1, "batch_size": 256, "seeds": {"evaluate": 5}, "rung": 1,
        "round": 1, "roles": roles, "ladder": {"next": "retrain"},
        **power.simulated(planned, utility=utility, level=0.9, alpha=0.05, known=known),
    }  # fmt: skip
    return within_53_bits(power.with_rules(body))


@cache
def judged(*, forgot: bool) -> Judged:
    """Return the judgement of a model that never saw the class, or of the original itself."""
    evaluation.discover()
    body = plan()
    subject = trained(3, whole=False) if forgot else trained(1, whole=True)
    models = Models(trained(1, whole=True), subject, trained(2, whole=False), trained(4, whole=False))
    measured = evaluation.evaluate(body, models, digits(), TASK, Run(seed=5, architecture=ARCHITECTURE, recipe=RECIPE))
    verdict = judge(body, measured, FACTS)
    states = {(state.kind, state.name, state.split): state for state in verdict.states}
    planned = {(entry["kind"], entry["name"], entry.get("split")): entry for entry in body["readings"]}
    return Judged(body, [row(reading, states, planned, body) for reading in measured], verdict)
