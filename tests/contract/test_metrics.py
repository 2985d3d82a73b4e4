"""One oracle for every registered metric and attack, on models trained on digits."""

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from services.learning.architectures.mlp import MLP
from services.learning.cache import NoCache, Remembering
from services.learning.data import Span, Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.tasks.regression import Regression
from services.learning.training import fit
from services.verification import evaluation
from services.verification.attack import ATTACKS, Attack
from services.verification.metric import METRICS, Models
from services.verification.outputs import joined
from services.verification.reading import Measured, Reading, Unmeasured
from services.verification.verdict import IntegrityFacts, judge

torch.set_num_threads(1)
evaluation.discover()

EVERYTHING = [*(("metric", name) for name in METRICS), *(("attack", name) for name in ATTACKS)]
TASK = Classification(10)
ARCHITECTURE = MLP(MLP.Parameters(outputs=10, inputs=64, hidden=(32,)))
RECIPE = Recipe(epochs=15, learning_rate=3e-3, batch_size=64)
FORGOTTEN = 3
CACHE = Remembering(NoCache())  # reference models are trained once for all tests of one seed


def component_class(kind, name):
    return METRICS[name] if kind == "metric" else ATTACKS[name]


HERE = {"classification", "regression", "forecasting"}  # generators and language models have contracts of their own
COMPONENTS = [(kind, name) for kind, name in EVERYTHING if component_class(kind, name).tasks & HERE]


@cache
def digits() -> Splits:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order], dtype=torch.int64)
    whole = Split(x, y, tuple(f"r{i:04d}" for i in range(len(y))))
    train = whole.take(torch.arange(1000))
    thirds = [whole.take(torch.arange(1000 + k, len(y), 3)) for k in range(3)]
    parts = [train.with_labels((FORGOTTEN,), keep=keep) for keep in (True, False)]
    return Splits(*parts, *thirds, "class", (FORGOTTEN,))


@cache
def models() -> Models:
    data = digits()
    everything = Split(torch.cat([data.forget.x, data.retain.x]), torch.cat([data.forget.y, data.retain.y]), data.forget.ids + data.retain.ids)

    def trained(split, seed):
        run = Run(seed=seed, architecture=ARCHITECTURE, recipe=RECIPE)
        model = run.fresh_model("weights")
        fit(model, split, TASK, RECIPE, run)
        return model

    return Models(trained(everything, 1), trained(data.retain, 2), trained(data.retain, 3), trained(data.retain, 4))


REAL_TASK, REAL_ARCHITECTURE = Regression(1), MLP(MLP.Parameters(outputs=1, inputs=64, hidden=(32,)))


@cache
def worths() -> Splits:
    """The digits with a real number each: the digit and how much ink it has; those below 2 are forgotten."""
    data, span = digits(), Span(below=2)

    def real(split):
        return dataclasses.replace(split, y=split.y + split.x.mean(dim=1))

    train = real(joined(data.forget, data.retain))
    parts = [train.within(span, keep=keep) for keep in (True, False)]
    return Splits(*parts, *(real(getattr(data, name)) for name in ("analysis", "verification", "attack")), span=span)


@cache
def real_models() -> Models:
    data = worths()

    def trained(split, seed):
        run = Run(seed=seed, architecture=REAL_ARCHITECTURE, recipe=RECIPE)
        model = run.fresh_model("weights")
        fit(model, split, REAL_TASK, RECIPE, run)
        return model

    return Models(trained(joined(data.forget, data.retain), 1), *(trained(data.retain, seed) for seed in (2, 3, 4)))


def labelled(kind, name):
    """Whether it is taken on the digits; else on their worths."""
    return "classification" in component_class(kind, name).tasks


def home(kind, name):
    """The task, models, data and architecture that a metric or attack is tried on."""
    return (TASK, models(), digits(), ARCHITECTURE) if labelled(kind, name) else (REAL_TASK, real_models(), worths(), REAL_ARCHITECTURE)


def run_of(architecture, seed=5):
    return Run(seed=seed, architecture=architecture, recipe=RECIPE, cache=CACHE)


def plan_of(*entries, **more):
    return {"reference": "retrained", "level": 0.9, "alpha": 0.05, "readings": list(entries), "seeds": {"evaluate": 5}, **more}


def entry(kind, name, split=None, **more):
    return {"kind": kind, "name": name, "split": split or component_class(kind, name).splits[0], "gate": False, **more}


def taken(kind, name, split=None, *, data=None, subject=None, run=None, **parameters):
    component = component_class(kind, name)
    task, held, own, architecture = home(kind, name)
    chosen = held if subject is None else held.judged_as(subject)
    metric = component(component.Parameters(**parameters))
    return metric.measure(chosen, data or own, task, run or run_of(architecture), split=split or component.splits[0])


def test_nothing_failed_to_register():
    assert not METRICS.broken
    assert not ATTACKS.broken
    spine = {"accuracy", "near_duplicate_accuracy", "zrf", "zrf_legacy", "activation_distance", "js_divergence", "prediction_distribution"}
    relearned = {"relearn_time", "ain", "ain_fresh"}
    seen_from_inside = {"linear_probe_auc", "streisand", "forgetting_rate", "forgetting_score", "weight_distance", "tow", "indiscernibility", "nomus"}
    of_real_targets = {"mean_absolute_error", "mean_squared_error", "quantile_loss", "wasserstein", "relative_prediction_difference"}
    assert {name for kind, name in COMPONENTS if kind == "metric"} == spine | relearned | seen_from_inside | of_real_targets
    assert {name for kind, name in COMPONENTS if kind == "attack"} == {"mia_legacy", "mia_v2", "regression_mia", "lira", "rmia"}


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_it_states_its_facts(kind, name):
    component = component_class(kind, name)

    assert component.splits
    assert component.tasks
    assert component.unit
    assert component.bounds[0] < component.bounds[1]
    assert component.__doc__
    assert component.Parameters()
    assert all(facts.get("description") for facts in component.Parameters.model_json_schema()["properties"].values())
    if issubclass(component, Attack):
        assert component.paper.startswith("arXiv")


@pytest.mark.parametrize(("kind", "name", "split"), [(k, n, s) for k, n in COMPONENTS for s in component_class(k, n).splits])
def test_it_is_taken_on_each_of_its_splits_within_its_bounds(kind, name, split):
    found = taken(kind, name, split)

    assert isinstance(found, Reading)
    low, high = component_class(kind, name).bounds
    assert low <= found.value <= high
    assert found.low <= found.value <= found.high
    assert found.n > 0
    json.dumps(dict(found.detail), allow_nan=False)


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_it_repeats_from_its_seed_and_leaves_the_models_as_they_were(kind, name):
    held = home(kind, name)[1].unlearned.train()
    before = {key: value.clone() for key, value in held.state_dict().items()}

    first, second = (taken(kind, name) for _ in range(2))

    assert first == second
    assert held.training
    assert all(torch.equal(before[key], value) for key, value in held.state_dict().items())
    held.eval()


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_the_order_of_the_rows_does_not_matter(kind, name):
    data = home(kind, name)[2]
    generator = torch.Generator().manual_seed(1)
    names = ("forget", "retain", "analysis", "verification", "attack")
    parts = {part: getattr(data, part).sample(len(getattr(data, part)), generator) for part in names}

    shuffled = taken(kind, name, data=dataclasses.replace(data, **parts))

    plain = taken(kind, name)
    assert shuffled.value == pytest.approx(plain.value, abs=1e-6)
    assert (shuffled.low, shuffled.high) == pytest.approx((plain.low, plain.high), abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_streaming_in_small_batches_gives_the_value_of_one_shot(kind, name):
    task, held, data, architecture = home(kind, name)
    found = [evaluation.evaluate(plan_of(entry(kind, name), batch_size=size), held, data, task, run_of(architecture))[0] for size in (7, 4096)]

    assert found[0].after.value == pytest.approx(found[1].after.value, abs=1e-6)


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_without_records_it_is_unmeasured_with_a_reason(kind, name):
    data = home(kind, name)[2]
    nobody = data.forget.take(torch.zeros(0, dtype=torch.int64))

    found = taken(kind, name, "forget_train", data=dataclasses.replace(data, forget=nobody))

    assert found == Unmeasured("no_records")


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_paired_difference_of_a_model_and_itself_is_zero_and_agrees_with_the_values_otherwise(kind, name):
    component = component_class(kind, name)
    task, chosen, data, architecture = home(kind, name)
    metric, run = component(component.Parameters()), run_of(architecture)
    split = component.splits[0]

    same = metric.difference(chosen, data, task, run, split=split, versus=chosen.unlearned)
    other = metric.difference(chosen, data, task, run, split=split, versus=chosen.retrained)

    if same is None:
        assert other is None
        return
    reference = metric.measure(chosen.judged_as(chosen.retrained), data, task, run, split=split)
    assert same.value == 0
    assert same.low <= 0 <= same.high
    assert other.value == pytest.approx(metric.measure(chosen, data, task, run, split=split).value - reference.value, abs=1e-9)


@pytest.mark.parametrize("name", ["activation_distance", "js_divergence"])
def test_a_distance_without_a_reference_is_null_with_the_reason(name):
    lone = dataclasses.replace(models(), retrained=None, retrained_twin=None)

    found = evaluation.evaluate(plan_of(entry("metric", name)), lone, digits(), TASK, Run(seed=0))[0]

    assert found.after == found.reference == Unmeasured("no_retrained_reference")
    assert found.as_dict()["after"] == {"value": None, "reason": "no_retrained_reference"}


def test_accuracy_is_scikit_learns_in_total_and_per_class():
    from sklearn.metrics import accuracy_score, recall_score

    rows = digits().named("test")
    predicted = TASK.predict(models().unlearned, rows).argmax(1)

    found = taken("metric", "accuracy", "test")

    assert found.value == pytest.approx(accuracy_score(rows.y, predicted))
    expected = recall_score(rows.y, predicted, average=None, labels=range(10), zero_division=0)
    assert [found.detail["per_class"][str(c)]["value"] for c in range(10)] == pytest.approx(expected)


def test_accuracy_of_a_sample_asks_every_model_about_the_same_records():
    component = evaluation.component_of(entry("metric", "accuracy", "retain_train", parameters={"rows": 50}), 0.9)
    data, run = digits(), Run(seed=3)

    drawn = [component.rows(data, run, "retain_train").ids for _ in range(2)]

    assert drawn[0] == drawn[1] == tuple(sorted(drawn[0]))
    assert set(drawn[0]) <= set(data.retain.ids)
    assert len(drawn[0]) == 50 < len(data.retain)
    assert component.rows(data, Run(seed=4), "retain_train").ids != drawn[0]
    assert component.measure(models(), data, TASK, run, split="retain_train").n == 50


def test_the_whole_plan_computes_the_outputs_of_each_model_on_each_part_once():
    asked = []

    class Spy(Classification):
        def predict(self, model, split, *, batch_size=1024):
            asked.append((id(model), split.ids))
            return super().predict(model, split, batch_size=batch_size)

    entries = [entry(kind, name, split) for kind, name in COMPONENTS if labelled(kind, name) for split in component_class(kind, name).splits]

    found = evaluation.evaluate(plan_of(*entries, utility={"total": 0.01, "worst_class": 0.03}), models(), digits(), Spy(10), run_of(ARCHITECTURE))

    assert len(asked) == len(set(asked))
    assert len(found) == len(entries)
    assert all(isinstance(reading.after, Reading) for reading in found)


def test_a_reading_does_not_depend_on_which_others_are_taken_nor_on_the_jobs_seed():
    entries = [entry("attack", "mia_v2"), entry("metric", "zrf"), entry("metric", "js_divergence")]
    run = run_of(ARCHITECTURE, seed=99)

    together = evaluation.evaluate(plan_of(*entries), models(), digits(), TASK, run)
    turned = evaluation.evaluate(plan_of(*reversed(entries)), models(), digits(), TASK, run_of(ARCHITECTURE, seed=1))

    assert together == turned[::-1]
    assert [Measured.from_dict(json.loads(json.dumps(reading.as_dict()))) for reading in together] == together


def test_zrf_depends_on_the_evaluation_seed_alone():
    first, second = (
        evaluation.evaluate(
            {**plan_of(entry("metric", "zrf")), "seeds": {"evaluate": seed}}, models(), digits(), TASK, Run(seed=0, architecture=ARCHITECTURE)
        )[0]
        for seed in (5, 6)
    )

    assert first.after.value != second.after.value
    assert len(first.after.detail["per_seed"]) == 5


def test_metrics_never_read_the_analysis_split_nor_attacks_rows_they_do_not_need():
    for kind, name in COMPONENTS:
        data = home(kind, name)[2]
        poisoned = data.analysis.take(torch.zeros(0, dtype=torch.int64))
        assert taken(kind, name, data=dataclasses.replace(data, analysis=poisoned)) == taken(kind, name)
    for name in (name for kind, name in COMPONENTS if kind == "metric"):
        without_attack = dataclasses.replace(home("metric", name)[2], attack=None)
        assert isinstance(taken("metric", name, data=without_attack), Reading)


def test_class_attack_takes_held_out_rows_of_the_class_and_pools_them_only_when_asked():
    alone, pooled = (taken("attack", "mia_v2", pool_held_out=pool) for pool in (False, True))
    data = digits()

    assert alone.detail["non_members"] == int((data.attack.y == FORGOTTEN).sum())
    assert pooled.detail["non_members"] == alone.detail["non_members"] + int((data.verification.y == FORGOTTEN).sum())
    assert alone.detail["tpr_at_fpr"] is None
    assert alone.detail["tpr_reason"] == "too_few_nonmembers"


@pytest.mark.parametrize("attacker", ["logistic_balanced", "svc"])
def test_legacy_attack_has_both_published_attackers(attacker):
    found = taken("attack", "mia_legacy", attacker=attacker)

    assert 0 <= found.value <= 1


GATES = (
    entry("metric", "accuracy", "forget_train", direction="band", epsilon=0.05) | {"gate": True},
    entry("metric", "js_divergence", "forget_train", direction="max", epsilon=0.15) | {"gate": True},
)
FACTS = IntegrityFacts(finite=True, differs_from_parent=True, plan_precedes_run=True, fresh_start=False, forget_read=True, guarantee="approximate")


def judged(subject):
    plan = plan_of(*GATES, entry("attack", "mia_v2"), utility={"total": 0.01, "worst_class": 0.03})
    chosen = models().judged_as(subject)
    return judge(plan, evaluation.evaluate(plan, chosen, digits(), TASK, Run(seed=0, architecture=ARCHITECTURE)), FACTS)


def test_on_digits_a_second_retrained_model_passes():
    assert judged(models().unlearned).verdict == "passed"


def test_on_digits_the_original_fails_as_a_leak():
    found = judged(models().original)

    assert (found.verdict, found.codes) == ("failed", ("leak",))


def test_on_digits_a_model_that_knows_nothing_fails_on_utility():
    assert "utility" in judged(ARCHITECTURE.fresh(8)).codes


def test_a_utility_floor_measures_retained_accuracy_though_no_reading_asks_for_it():
    plan = plan_of(entry("metric", "zrf"), utility={"total": 0.01, "worst_class": 0.03})

    found = evaluation.evaluate(plan, models(), digits(), TASK, Run(seed=0, architecture=ARCHITECTURE))

    assert [(reading.name, reading.split) for reading in found] == [("zrf", "forget_train"), ("accuracy", "retain_test")]
    assert isinstance(found[1].change, Reading)


def test_what_does_not_fit_is_unmeasured_with_its_reason():
    class Other(Classification):
        name = "regression"

    plan = plan_of(entry("metric", "zrf", "retain_test"), entry("metric", "zrf", "forget_train"))
    run = Run(seed=0, architecture=ARCHITECTURE)

    assert evaluation.evaluate(plan, models(), digits(), TASK, run)[0].after == Unmeasured("split_not_supported")
    assert evaluation.evaluate(plan, models(), digits(), Other(10), run)[1].after == Unmeasured("task_not_supported")
    assert evaluation.evaluate(plan, models(), digits(), TASK, Run(seed=0))[1].after == Unmeasured("no_architecture")
