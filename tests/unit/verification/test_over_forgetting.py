"""A model that forgets too much, its loss on the forgotten records far above that of a retrained one, fails by the gates of the seeded policies."""

import numpy as np
import pytest
import torch

from services.jobs.steps.plan import gated, split_counts
from services.learning.run import Run
from services.tenants.policies import DEMO, GDPR_DEFAULT
from services.verification.evaluation import evaluate
from services.verification.metric import Models
from services.verification.verdict import IntegrityFacts, judge
from tests.unit.verification.worlds import TASK, FixedLogits, logits_for, split_of, splits_of

torch.set_num_threads(1)

SOUND = IntegrityFacts(finite=True, differs_from_parent=True, plan_precedes_run=True, fresh_start=False, forget_read=True, guarantee="approximate")
FORGET, HELD_OUT = np.arange(600) % 10, np.arange(600) % 10
DATA = splits_of(
    forget=split_of("f", FORGET),
    retain=split_of("r", HELD_OUT, 600),
    verification=split_of("v", HELD_OUT, 1200),
    attack=split_of("a", HELD_OUT, 1800),
)
EVERYWHERE = np.concatenate([FORGET, HELD_OUT, HELD_OUT, HELD_OUT])


def table():
    """Logits of a model that never saw the forgotten records: right on nine of ten, wherever it is asked."""
    return logits_for(EVERYWHERE, right=0.9, rng=np.random.default_rng(0))


def another_training():
    """What the same training gives under another seed: the same answers, about as sure."""
    return table() + np.random.default_rng(5).normal(size=table().shape) * 0.1


def with_forgotten(rows):
    """The retrained model's logits, but for the forgotten records, which get `rows`."""
    return np.concatenate([rows, table()[600:]])


def confidently_wrong():
    return logits_for(FORGET, right=0.0, rng=np.random.default_rng(1), confidence=8.0)


def barely_right():
    """The answers of the retrained model, each held by a hair: accuracy sees nothing, the loss is that of knowing nothing."""
    right = table()[:600]
    rows = np.zeros_like(right)
    rows[np.arange(600), right.argmax(axis=1)] = 0.05
    return rows


def a_little_stranger():
    """The retrained model's answers, every one a little less sure: the attack's band of .05 holds it."""
    rows = table()[:600]
    rows[np.arange(600), FORGET] -= 0.12
    return rows


def still_known():
    return logits_for(FORGET, right=1.0, rng=np.random.default_rng(2), confidence=6.0)


def judged(policy, forgotten, *, records=600):
    """The verdict and the readings on the forgotten records of a model that answers the retained ones as the original does."""
    document = policy.verification.model_dump(mode="json", by_alias=True)
    counts = split_counts({"forget": records, "retain": 600, "verification": 600, "attack": 600})
    readings = [gated(entry, counts) for entry in document["records"] if entry["gate"] or entry["name"] == "streisand"]
    plan = {"readings": readings, "seeds": {"evaluate": 3}, "reference": "retrained"} | {key: document[key] for key in ("level", "alpha", "utility")}
    original, model, retrained, twin = (
        FixedLogits(each) for each in (with_forgotten(still_known()), with_forgotten(forgotten), table(), another_training())
    )
    measured = evaluate(plan, Models(original, model, retrained, twin), DATA, TASK, Run(seed=1))
    return judge(plan, measured, SOUND), {reading.name: reading for reading in measured if reading.split == "forget_train"}


def mean_loss(rows):
    return float(torch.nn.functional.cross_entropy(torch.as_tensor(rows), torch.as_tensor(FORGET)))


@pytest.mark.parametrize("policy", [GDPR_DEFAULT, DEMO], ids=["gdpr-default", "demo"])
@pytest.mark.parametrize(("forgotten", "by"), [(confidently_wrong, {"accuracy", "mia_v2", "streisand"}), (barely_right, {"mia_v2", "streisand"})])
def test_a_model_that_over_forgets_fails(policy, forgotten, by):
    assert mean_loss(forgotten()) > mean_loss(table()[:600]) + 1.0

    found, readings = judged(policy, forgotten())

    assert (found.verdict, found.codes) == ("failed", ("over_unlearned",))
    assert {state.name for state in found.states if state.state == "outside"} == by
    assert readings["streisand"].after.detail["side"] == "over_unlearned"


def test_forgetting_a_little_too_much_is_seen_by_the_narrower_band_that_500_records_allow():
    many, _ = judged(GDPR_DEFAULT, a_little_stranger())
    few, readings = judged(GDPR_DEFAULT, a_little_stranger(), records=499)

    assert (many.verdict, many.codes) == ("failed", ("over_unlearned",))
    assert {state.name for state in many.states if state.state == "outside"} == {"streisand"}
    assert {state.state for state in few.states if state.name == "streisand"} == {"info"}
    assert "outside" not in {state.state for state in few.states}
    assert not readings["streisand"].gate


@pytest.mark.parametrize("policy", [GDPR_DEFAULT, DEMO], ids=["gdpr-default", "demo"])
def test_a_model_that_answers_as_a_retrained_one_passes_and_the_original_does_not(policy):
    calm, readings = judged(policy, another_training()[:600])
    leaking, _ = judged(policy, still_known())

    assert calm.verdict == "passed"
    assert readings["streisand"].after.detail["side"] in {"inside", "undecided"}
    assert (leaking.verdict, leaking.codes) == ("failed", ("leak",))
