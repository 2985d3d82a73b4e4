"""Vectors of the bad-teacher paper's metrics, in the corrected and in the released form."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from services.errors import InvalidInput
from services.learning.run import Run, derived_seed
from services.verification.attacks.mia_v2 import MembershipInference
from services.verification.metric import Models
from services.verification.metrics.activation_distance import ActivationDistance
from services.verification.metrics.zrf import ZeroRetrainForgetting
from services.verification.metrics.zrf_legacy import ZeroRetrainForgettingLegacy
from services.verification.reading import Reading
from services.verification.statistics.divergence import euclidean, jensen_shannon_bits, legacy_divergence
from tests.unit.verification.worlds import TASK, FixedLogits, Table, split_of, splits_of

torch.set_num_threads(1)

VECTORS = {10: (0.525541, 0.758196, 0.241804, 0.741708), 20: (0.592527, 0.854836, 0.145164, 0.865571)}


def nearly_certain(classes):
    p = np.full((1, classes), 1e-6)
    p[0, 0] = 1 - (classes - 1) * 1e-6
    return p, np.full((1, classes), 1 / classes)


def one_hot(index, classes):
    with np.errstate(divide="ignore"):
        return np.log(np.eye(classes)[[index]])


@pytest.mark.parametrize("classes", [10, 20])
def test_zrf_is_one_minus_jensen_shannon_in_bits(classes):
    p, q = nearly_certain(classes)
    nats, bits, zrf, _ = VECTORS[classes]

    value = jensen_shannon_bits(np.log(p), np.log(q))[0]

    assert value * math.log(2) == pytest.approx(nats, abs=1e-6)
    assert value == pytest.approx(bits, abs=1e-6)
    assert 1 - value == pytest.approx(zrf, abs=1e-6)
    assert value == pytest.approx(jensenshannon(p, q, base=2, axis=1)[0] ** 2, abs=1e-12)


def test_zrf_of_equal_and_of_disjoint_outputs_is_one_and_zero():
    assert 1 - jensen_shannon_bits(one_hot(0, 10), one_hot(0, 10))[0] == 1
    assert 1 - jensen_shannon_bits(one_hot(0, 10), one_hot(1, 10))[0] == 0


def test_zrf_of_one_hot_outputs_is_finite():
    uniform = np.full((1, 10), -math.log(10))

    assert jensen_shannon_bits(one_hot(3, 10), uniform)[0] == pytest.approx(0.758277, abs=1e-6)


def test_zrf_of_a_model_that_is_the_teacher_is_one():
    architecture = Table()
    run = Run(seed=4, architecture=architecture)
    data = splits_of(forget=split_of("f", np.arange(20) % 10))
    teachers = [run.fresh_model(f"zrf/{k}") for k in range(5)]
    metric = ZeroRetrainForgetting(ZeroRetrainForgetting.Parameters())

    readings = [metric.measure(Models(teacher, teacher), data, TASK, run, split="forget_train") for teacher in teachers]

    assert [reading.detail["per_seed"][k] for k, reading in enumerate(readings)] == pytest.approx([1.0] * 5, abs=1e-12)
    assert all(reading.value < 1 for reading in readings)


@pytest.mark.parametrize("classes", [10, 20])
def test_legacy_zrf_reproduces_the_released_arithmetic(classes):
    p, q = nearly_certain(classes)
    m = (p + q) / 2
    released = [torch.nn.functional.kl_div(torch.tensor(np.log(side)), torch.tensor(m), reduction="sum").item() / classes for side in (p, q)]

    value = 1 - legacy_divergence(np.log(p), np.log(q))[0]

    assert value == pytest.approx(VECTORS[classes][3], abs=1e-6)
    assert value == pytest.approx(1 - 0.5 * sum(released), abs=1e-12)


def test_legacy_zrf_of_a_one_hot_output_is_minus_infinity_and_is_printed_as_unmeasured():
    uniform = np.full((1, 10), -math.log(10))
    model = FixedLogits(np.where(np.eye(10)[np.zeros(20, dtype=int)] > 0, 0.0, -np.inf))
    data = splits_of(forget=split_of("f", np.arange(20) % 10))
    metric = ZeroRetrainForgettingLegacy(ZeroRetrainForgettingLegacy.Parameters())

    found = metric.measure(Models(model, model), data, TASK, Run(seed=1, architecture=Table()), split="forget_train")

    assert 1 - legacy_divergence(one_hot(0, 10), uniform)[0] == -math.inf
    assert found.reason == "not_finite"


@pytest.mark.parametrize("metric", [ZeroRetrainForgetting, ZeroRetrainForgettingLegacy])
def test_scoring_with_the_teacher_of_the_training_run_is_refused(metric):
    run = Run(seed=9, architecture=Table())
    own = derived_seed(9, "zrf/0")
    data = splits_of(forget=split_of("f", np.arange(20) % 10))
    model = FixedLogits(np.zeros((20, 10)))

    with pytest.raises(InvalidInput, match=str(own)):
        metric(metric.Parameters(excluded_seeds=(own,))).measure(Models(model, model), data, TASK, run, split="forget_train")


def test_mia_v2_is_one_half_when_members_and_non_members_have_the_same_outputs():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    logits = rng.normal(size=(120, 10))
    data = splits_of(forget=split_of("f", labels), attack=split_of("a", labels, first=120))
    model = FixedLogits(np.concatenate([logits, logits]))

    found = MembershipInference(MembershipInference.Parameters()).measure(Models(model, model), data, TASK, Run(seed=1), split="forget_train")

    assert isinstance(found, Reading)
    assert found.value == pytest.approx(0.5, abs=1e-12)
    assert found.low < 0.5 < found.high
    assert found.detail["learned_auc"] == pytest.approx(0.5, abs=0.15)


def test_activation_distance_of_equal_models_is_zero_and_of_opposite_certainties_root_two():
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 10
    first = FixedLogits(rng.normal(size=(20, 10)))
    same = FixedLogits(first.table.numpy())
    data = splits_of(forget=split_of("f", labels))
    metric = ActivationDistance(ActivationDistance.Parameters())

    found = metric.measure(Models(first, first, retrained=same), data, TASK, Run(seed=1), split="forget_train")

    assert found.value == 0
    assert euclidean(one_hot(0, 10), one_hot(1, 10))[0] == pytest.approx(math.sqrt(2), abs=1e-12)
