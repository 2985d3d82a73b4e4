"""Errors, Wasserstein distance, relative differences, the regression attack and AIN, beside scipy, scikit-learn and hand examples."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from services.learning.data import Span, Split, Splits
from services.learning.run import Run
from services.learning.targets import Targets
from services.learning.tasks.forecasting import Forecasting
from services.learning.tasks.regression import Regression
from services.verification.attacks.regression_mia import RegressionMembershipInference
from services.verification.metric import Models
from services.verification.metrics.ain import AnamnesisIndex
from services.verification.metrics.mean_absolute_error import MeanAbsoluteError
from services.verification.metrics.mean_squared_error import MeanSquaredError
from services.verification.metrics.quantile_loss import QuantileLoss
from services.verification.metrics.relative_prediction_difference import RelativePredictionDifference, relative_differences
from services.verification.metrics.wasserstein import Wasserstein
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.transport import wasserstein
from tests.unit.unlearning import real_labs

torch.set_num_threads(1)
TASK = Regression(1)


class Says(nn.Module):
    """Returns row i of a table of outputs for the record whose only feature is i."""

    def __init__(self, outputs) -> None:
        super().__init__()
        self.outputs = torch.as_tensor(np.asarray(outputs), dtype=torch.float32)
        self.outputs = self.outputs[:, None] if self.outputs.ndim == 1 else self.outputs

    def forward(self, x):
        return self.outputs[x[:, 0].long()]


def rows(prefix, y, first=0):
    numbers = torch.arange(first, first + len(y), dtype=torch.float32)[:, None]
    return Split(numbers, torch.as_tensor(np.asarray(y), dtype=torch.float32), tuple(f"{prefix}{i:04d}" for i in range(len(y))))


def splits(forget, retain=None, verification=None, attack=None, span=None):
    empty = forget.take(torch.zeros(0, dtype=torch.int64))
    return Splits(forget, retain or empty, empty, verification or empty, attack or empty, span=span)


def taken(metric, models, data, split="forget_train", task=TASK, **parameters):
    return metric(metric.Parameters(**parameters)).measure(models, data, task, Run(seed=3), split=split)


def models(unlearned, retrained=None, twin=None):
    return Models(Says(unlearned), Says(unlearned), None if retrained is None else Says(retrained), None if twin is None else Says(twin))


@pytest.mark.parametrize(("metric", "reference"), [(MeanAbsoluteError, mean_absolute_error), (MeanSquaredError, mean_squared_error)])
def test_errors_are_those_of_scikit_learn(metric, reference):
    rng = np.random.default_rng(0)
    y, said = rng.normal(size=40), rng.normal(size=40)

    found = taken(metric, models(said), splits(rows("f", y)))

    assert found.value == pytest.approx(reference(y, said), abs=1e-5)
    assert found.low < found.value < found.high
    assert found.n == 40


def test_the_quantile_loss_is_scikit_learns_over_steps_and_quantiles():
    rng = np.random.default_rng(1)
    y, said = rng.normal(size=(30, 2)), rng.normal(size=(30, 6))
    task = Forecasting(6)

    found = taken(QuantileLoss, models(said), splits(rows("f", y)), task=task)

    cut = said.reshape(30, 2, 3)
    assert found.value == pytest.approx(
        np.mean([mean_pinball_loss(y, cut[..., q], alpha=level) for q, level in enumerate((0.1, 0.5, 0.9))]), abs=1e-5
    )
    assert taken(MeanAbsoluteError, models(said), splits(rows("f", y)), task=task).value == pytest.approx(
        mean_absolute_error(y, cut[..., 1]), abs=1e-5
    )
    one = taken(QuantileLoss, models(said[:, 0]), splits(rows("f", y[:, 0]))).value
    assert one == pytest.approx(0.5 * mean_absolute_error(y[:, 0], said[:, 0]), abs=1e-5)


@pytest.mark.parametrize("metric", [MeanAbsoluteError, MeanSquaredError, QuantileLoss])
def test_with_scale_spread_the_mean_retained_target_has_error_1(metric):
    y = np.random.default_rng(2).normal(50, 10, size=60)
    data = splits(rows("f", y), rows("r", y))

    assert taken(metric, models(np.full(60, y.mean())), data, "retain_train", scale="spread").value == pytest.approx(1, abs=1e-4)
    flat = splits(rows("f", y), rows("r", np.ones(60)))
    assert taken(metric, models(y), flat, scale="spread") == Unmeasured("targets_without_spread")


def test_errors_are_in_the_units_of_the_targets_whatever_the_model_is_trained_in():
    task = Regression(1, targets=Targets(mean=100, std=10))

    found = taken(MeanAbsoluteError, models([0.0, 1.0]), splits(rows("f", [100, 115])), task=task)

    assert found.value == pytest.approx(2.5)


def test_8_wasserstein_is_scipys_on_random_vectors_and_nothing_between_equal_sets():
    rng = np.random.default_rng(3)
    for sizes in ((50, 50), (50, 31), (1, 7)):
        first, second = (rng.normal(size=size) for size in sizes)
        assert wasserstein(first, second) == pytest.approx(wasserstein_distance(first, second), abs=1e-12)
    assert wasserstein([0, 1, 3], [5, 6, 8]) == 5
    assert wasserstein([3, 1, 2], [1, 2, 3]) == 0


def test_8_the_metric_is_the_distance_of_the_predictions_and_the_reference_has_a_floor():
    rng = np.random.default_rng(4)
    own, gold, twin = rng.normal(1, 1, 80), rng.normal(0, 1, 80), rng.normal(0, 1, 80)
    data, held = splits(rows("f", rng.normal(size=80)), rows("r", rng.normal(0, 2, 80))), models(own, gold, twin)

    found = taken(Wasserstein, held, data)
    floor = taken(Wasserstein, held.judged_as(held.retrained), data)

    assert found.value == pytest.approx(wasserstein_distance(own.astype("f4"), gold.astype("f4")), abs=1e-6)
    assert floor.value == pytest.approx(wasserstein_distance(gold.astype("f4"), twin.astype("f4")), abs=1e-6)
    assert found.low <= found.value <= found.high
    assert taken(Wasserstein, models(gold, gold, twin), data).value == 0
    assert taken(Wasserstein, models(own), data) == Unmeasured("no_retrained_reference")
    spread = data.retain.y.double().numpy().std()
    assert taken(Wasserstein, held, data, scale="spread").value == pytest.approx(found.value / spread)
    paired = Wasserstein(Wasserstein.Parameters()).difference(held, data, TASK, Run(seed=3), split="forget_train", versus=held.retrained)
    assert paired.value == pytest.approx(found.value - floor.value)


def test_relative_differences_leave_targets_of_zero_out_and_count_them():
    found, zero = relative_differences(np.array([[2.0], [5.0], [1.0]]), np.array([[1.0], [9.0], [1.5]]), np.array([[4.0], [0.0], [-1.0]]))

    assert found.tolist() == [0.25, 0.5]
    assert zero == 1
    data = splits(rows("f", [4, 0, -1]))
    reading = taken(RelativePredictionDifference, models([2, 5, 1], [1, 9, 1.5]), data)
    assert reading.value == pytest.approx(0.375)
    assert reading.detail["targets_of_zero"] == 1
    assert taken(RelativePredictionDifference, models([1], [2]), splits(rows("f", [0]))) == Unmeasured("every_target_is_zero")


# --- the attack ------------------------------------------------------------------------------------------------------------------------


def world(rng, *, forgotten_error=1.0, member_error=0.3):
    """120 forgotten, 300 retained and 200 unseen records, with the model's residuals drawn at the given sizes."""
    y = rng.uniform(0, 60, 620)
    sizes = np.concatenate([np.full(120, forgotten_error), np.full(300, member_error), np.full(200, 1.0)])
    said = y + sizes * rng.normal(size=620)
    return said, splits(rows("f", y[:120]), rows("r", y[120:420], 120), attack=rows("a", y[420:], 420))


def test_the_attack_is_the_area_of_minus_the_residual():
    said, data = world(np.random.default_rng(5), forgotten_error=0.4)

    found = taken(RegressionMembershipInference, models(said), data)

    residual = [-np.abs(said[part] - y.numpy()) for part, y in ((slice(0, 120), data.forget.y), (slice(420, 620), data.attack.y))]
    expected = roc_auc_score(np.repeat([1, 0], [120, 200]), np.concatenate(residual))
    assert found.value == pytest.approx(expected, abs=1e-4)
    assert found.value > 0.65
    assert found.detail["members"] == 120
    assert found.detail["non_members"] == 200


def test_9_no_forgotten_record_is_among_the_members_that_the_attack_is_fitted_on():
    _, data = world(np.random.default_rng(6))
    attack = RegressionMembershipInference(RegressionMembershipInference.Parameters())

    sides = attack.fitting_sides(data, Run(seed=3))

    forgotten = set(data.forget.ids)
    parts = [set(side.ids) for side in (sides.members, sides.calibrate, sides.other_members, sides.evaluate)]
    assert not forgotten & set.union(*parts)
    assert parts[0] | parts[2] == set(data.retain.ids)
    assert parts[1] | parts[3] == set(data.attack.ids)
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_9_the_fitted_attack_is_scored_on_rows_it_was_not_fitted_on():
    said, data = world(np.random.default_rng(7))
    attack = RegressionMembershipInference(RegressionMembershipInference.Parameters())
    sides = attack.fitting_sides(data, Run(seed=3))

    fitted = taken(RegressionMembershipInference, models(said), data).detail["fitted"]

    def features(side):
        size = np.abs(said.astype("f4")[side.x[:, 0].long().numpy()] - side.y.numpy())
        return np.stack([size, np.log(size)], 1)

    judge = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", solver="newton-cholesky"))
    judge.fit(np.concatenate([features(sides.members), features(sides.calibrate)]), np.repeat([1, 0], [150, 100]))
    scores = [judge.decision_function(features(side)) for side in (data.forget, sides.other_members, sides.evaluate)]
    assert fitted["auc"] == pytest.approx(roc_auc_score(np.repeat([1, 0], [120, 100]), np.concatenate([scores[0], scores[2]])), abs=0.01)
    assert fitted["retain_auc"] == pytest.approx(roc_auc_score(np.repeat([1, 0], [150, 100]), np.concatenate([scores[1], scores[2]])), abs=0.01)
    assert fitted["retain_auc"] > 0.7
    assert 0.4 < fitted["auc"] < 0.6
    assert fitted["members"] == 150


def test_17_all_rows_of_the_attack_are_prepared_alike():
    rng = np.random.default_rng(9)
    y = rng.normal(size=120)
    shifted = [dataclasses.replace(rows(name, y), prepare=lambda x: x + 120) for name in ("f", "r", "a")]
    said = np.concatenate([np.full(120, 100.0), y + rng.normal(size=120)])  # records that are not prepared would all be far off

    found = taken(RegressionMembershipInference, models(said), splits(shifted[0], shifted[1], attack=shifted[2]))

    assert found.value == pytest.approx(0.5, abs=1e-12)  # the same targets and answers on both sides
    assert taken(RegressionMembershipInference, models(said), splits(rows("f", y), shifted[1], attack=shifted[2])).value != pytest.approx(
        0.5, abs=0.02
    )


def test_a_range_is_attacked_with_records_of_the_same_range():
    said, data = world(np.random.default_rng(8))
    ranged = dataclasses.replace(data, span=Span(below=30))

    found = taken(RegressionMembershipInference, models(said), ranged)
    kept = taken(RegressionMembershipInference, models(said), ranged, "retain_train")

    assert found.detail["non_members"] == int((data.attack.y < 30).sum())
    assert kept.detail["non_members"] == int((data.attack.y >= 30).sum())
    nobody = dataclasses.replace(data, span=Span(below=-1))
    assert taken(RegressionMembershipInference, models(said), nobody) == Unmeasured("no_nonmembers_of_these_targets")


def test_unseen_records_with_residuals_like_the_forgotten_have_an_area_of_one_half():
    areas = [
        taken(RegressionMembershipInference, models(said), data, fitted=False).value
        for said, data in (world(np.random.default_rng(s)) for s in range(20, 32))
    ]

    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


# --- relearning ------------------------------------------------------------------------------------------------------------------------


def test_10_ain_of_the_retrained_model_is_1_and_no_model_changes():
    lab = real_labs.table()
    data = lab.splits()
    gold = lab.trained(data.retain, 99)
    held = Models(lab.original, gold, gold)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (lab.original, gold)]

    found = [taken(AnamnesisIndex, held, data, task=lab.task, seeds=3, steps=150, learning_rate=0.01) for _ in range(2)]

    assert isinstance(found[0], Reading)
    assert found[0].value == 1
    assert found[0].detail["judged_on"] == "forget_test"
    assert found[0] == found[1]
    for model, kept in zip((lab.original, gold), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_10_the_bar_is_105_percent_of_the_originals_loss_and_the_original_is_at_it():
    lab = real_labs.table()
    data = lab.splits()
    gold = lab.trained(data.retain, 99)

    found = taken(AnamnesisIndex, Models(lab.original, lab.original, gold), data, task=lab.task, seeds=3, steps=150, learning_rate=0.01)

    rows = data.named("forget_test")
    loss = float(lab.task.losses(lab.original, rows.batch(torch.arange(len(rows)))).detach().double().mean())
    assert found.value == 0
    assert found.detail["bar"] == pytest.approx(-1.05 * loss, rel=1e-5)
