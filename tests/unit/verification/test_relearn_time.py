"""Relearning on models whose accuracy is a known function of the step, and on small trained networks."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from services.errors import Cancelled
from services.learning.data import Split
from services.learning.run import Run
from services.learning.task import Task
from services.learning.tasks.classification import Classification
from services.verification.metric import Models
from services.verification.metrics.relearn_time import RelearnTime
from services.verification.reading import Reading, Unmeasured
from services.verification.relearning import Relearned, lesson_of, relearn
from services.verification.statistics.ratios import median_interval, median_ratio
from tests.unit.verification.worlds import splits_of

torch.set_num_threads(1)

TWO = Classification(2)


class Counter(nn.Module):
    """Gives record i, whose only feature is its threshold, label 1 once the clock has passed the threshold; SGD of rate 1 adds 1 a step."""

    def __init__(self, clock=0.0):
        super().__init__()
        self.clock = nn.Parameter(torch.tensor(clock))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.judged = []

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        else:
            self.judged.append(x[:, 0].tolist())
        return torch.stack([torch.zeros(len(x)), self.clock - x[:, 0] + 0.5], dim=1)


class Ticking(Classification):
    """Its gradient is -1 wherever the clock stands."""

    def loss(self, model, batch):
        model(batch.x)
        return -model.clock


def thresholds(count=20):
    """Return forgotten records with thresholds 1 to `count`, all of label 1."""
    numbers = torch.arange(1, count + 1, dtype=torch.float32)[:, None]
    return Split(numbers, torch.ones(count, dtype=torch.int64), tuple(f"f{i:04d}" for i in range(count)))


def clocks(*, original=1000.0, unlearned=0.0, retrained=0.0):
    return Models(Counter(original), Counter(unlearned), Counter(retrained))


PARAMETERS = {"optimizer": "sgd", "learning_rate": 1.0, "batch_size": 4, "train_data": "forget", "steps": 50, "seeds": 3}


def plain_steps(p, models, data, run, start):
    """Return the step at which the accuracy, known in closed form, first is at 95 % of the original's 1."""
    lesson = lesson_of(p, models, data, TWO, run, "forget_train")
    held = torch.cat([batch.x[:, 0] for batch in lesson.held]).numpy()
    return next(step for step in range(1000) if np.mean(start + step + 0.5 > held) >= 0.95), len(held)


def sgd_without_momentum(monkeypatch):
    monkeypatch.setattr(
        "services.verification.relearning.optimizer_for", lambda recipe, parameters: torch.optim.SGD(parameters, recipe.learning_rate)
    )


def taken(models, data, task=None, run=None, **more):
    metric = RelearnTime(RelearnTime.Parameters(**{**PARAMETERS, **more}))
    return metric.measure(models, data, task or Ticking(2), run or Run(seed=1), split="forget_train")


def test_steps_of_a_model_whose_accuracy_is_a_known_step_function(monkeypatch):
    sgd_without_momentum(monkeypatch)
    data, models = splits_of(forget=thresholds()), clocks()
    p = RelearnTime.Parameters(**PARAMETERS)
    expected, held = plain_steps(p, models, data, Run(seed=1), 0.0)

    found = taken(models, data)

    assert (found.value, found.low, found.high, found.n) == (expected, expected, expected, held)
    assert found.detail["per_seed"] == [expected] * 3
    assert not found.detail["censored"]
    assert all(len(course) == expected + 1 for course in found.detail["courses"])
    assert found.detail["courses"][0][0] == 0.0
    assert found.detail["bar"] == pytest.approx(0.95)


def test_the_bar_is_relative_to_the_originals_accuracy(monkeypatch):
    sgd_without_momentum(monkeypatch)
    data = splits_of(forget=thresholds())

    half, whole = (taken(clocks(original=clock), data) for clock in (10.0, 1000.0))

    assert half.detail["bar"] < 0.95 * 0.8
    assert half.value < whole.value


def test_a_model_at_the_bar_takes_no_step_and_one_that_never_gets_there_is_censored(monkeypatch):
    sgd_without_momentum(monkeypatch)
    data = splits_of(forget=thresholds())

    there, never = taken(clocks(unlearned=1000.0), data), taken(clocks(unlearned=-1000.0), data, steps=7)

    assert (there.value, there.detail["censored"], there.detail["coarse"]) == (0, False, True)
    assert (never.value, never.detail["censored"], never.detail["censored_runs"]) == (7, True, 3)
    assert never.detail["areas"] == [0.0] * 3


def spied_on(data, models, **more):
    """Return what was judged and the lesson."""
    p = RelearnTime.Parameters(**{**PARAMETERS, **more})
    lesson = lesson_of(p, models, data, TWO, Run(seed=1), "forget_train")
    seen = []

    class Spy(Counter):
        def forward(self, x):
            if not self.training:
                seen.extend(x[:, 0].tolist())
            return super().forward(x)

    relearn(Spy(), lesson, p, Ticking(2), Run(seed=1), seed=0)
    return set(seen), lesson


def test_only_forgotten_records_are_judged(monkeypatch):
    """The released code of one repository ignores the loader it is given and judges all classes."""
    sgd_without_momentum(monkeypatch)
    retain = Split(torch.full((30, 1), -5.0), torch.zeros(30, dtype=torch.int64), tuple(f"r{i:04d}" for i in range(30)))
    data = splits_of(forget=thresholds(), retain=retain)

    seen, lesson = spied_on(data, clocks(), train_data="all")

    assert seen == set(thresholds().x[:, 0].tolist())
    assert (len(lesson.taught), lesson.records, lesson.judged_on) == (50, 20, "forget_train")


def test_a_class_is_judged_on_its_held_out_records_which_are_not_relearned(monkeypatch):
    sgd_without_momentum(monkeypatch)
    twelve = torch.arange(100, 112, dtype=torch.float32)[:, None] / 10
    labels = torch.tensor([1] * 12 + [0] * 12)
    held_out = Split(torch.cat([twelve, twelve + 50]), labels, tuple(f"v{i:04d}" for i in range(24)))
    data = splits_of(forget=thresholds(), verification=held_out, kind="class", classes=(1,))

    seen, lesson = spied_on(data, clocks())
    capped, _ = spied_on(data, clocks(), judged_rows=5)
    itself, _ = spied_on(data, clocks(), judged_on="forget_train")

    assert seen == set(twelve[:, 0].tolist())
    assert not set(lesson.taught.ids) & set(held_out.ids)
    assert capped < seen
    assert len(capped) == 5
    assert itself == set(thresholds().x[:, 0].tolist())


def test_inputs_are_bit_identical_afterwards_and_a_second_call_gives_the_same():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    forget = Split(x[:40], (x[:40, 0] > 0).long(), tuple(f"f{i:03d}" for i in range(40)))
    retain = Split(x[40:], (x[40:, 0] > 0).long(), tuple(f"r{i:03d}" for i in range(40)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    exact = nn.Linear(4, 2)
    with torch.no_grad():
        exact.weight.copy_(torch.tensor([[-9.0, 0, 0, 0], [9.0, 0, 0, 0]]))
        exact.bias.zero_()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    models, data = Models(exact, model), splits_of(forget=forget, retain=retain)

    first, second = (
        RelearnTime(RelearnTime.Parameters(learning_rate=0.03, batch_size=16, seeds=3, steps=60)).measure(
            models, data, TWO, Run(seed=3), split="forget_train"
        )
        for _ in range(2)
    )

    assert first == second
    assert first.value > 0
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_evaluation_relearns_equal_weights_once_and_changed_weights_again(monkeypatch):
    sgd_without_momentum(monkeypatch)
    data, models, run, steps = splits_of(forget=thresholds()), clocks(), Run(seed=1), []

    class Counted(Ticking):
        def loss(self, model, batch):
            steps.append(1)
            return super().loss(model, batch)

    first = taken(models, data, Counted(2), run)
    taken_once = len(steps)
    again = taken(models.judged_as(copy.deepcopy(models.unlearned)), data, Counted(2), run)
    with torch.no_grad():
        models.unlearned.clock += 5.0
    nearer = taken(models, data, Counted(2), run)

    assert first == again
    assert nearer.value == first.value - 5
    assert len(steps) == taken_once + 3 * nearer.value


class Squared(Task):
    """Regression by squared error."""

    name, modalities, loss_unit = "regression", frozenset({"tabular"}), "squares"

    def losses(self, model, batch):
        return (model(batch.x)[:, 0] - batch.y).square()

    def loss(self, model, batch):
        return self.losses(model, batch).mean()

    def predict(self, model, split, *, batch_size=1024):
        return model(split.x)

    def trivial_loss(self, split):
        return 1.0

    def check(self, split):
        return


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value.expand(len(x), 1)


def test_the_bar_of_a_regression_is_105_percent_of_the_originals_loss(monkeypatch):
    """Target 0, prediction w: SGD of rate .05 multiplies w by .9, loss w^2 starts at 1; the original's is .01, so the bar is .0105."""
    sgd_without_momentum(monkeypatch)
    forget = Split(torch.zeros(10, 1), torch.zeros(10), tuple(f"f{i}" for i in range(10)))
    expected = math.ceil(math.log(0.0105) / (2 * math.log(0.9)))

    found = taken(Models(Constant(0.1), Constant(1.0)), splits_of(forget=forget), Squared(1), learning_rate=0.05)

    assert found.detail["bar"] == pytest.approx(-0.0105)
    assert found.value == expected


def test_an_owner_can_stop_it_and_what_is_not_finite_is_unmeasured():
    data = splits_of(forget=thresholds())

    class Broken(Ticking):
        def loss(self, model, batch):
            return model.clock * float("nan")

    with pytest.raises(Cancelled):
        taken(clocks(unlearned=-1000.0), data, run=Run(seed=1, cancelled=lambda: True))
    assert taken(clocks(), data, Broken(2)) == Unmeasured("not_finite")
    assert taken(clocks(), splits_of(forget=thresholds(0))) == Unmeasured("no_records")


def test_the_area_holds_the_last_value_to_the_cap():
    assert Relearned(2, censored=False, course=(0.0, 0.5, 1.0)).area(4) == pytest.approx(np.trapezoid([0, 0.5, 1, 1, 1]) / 4)
    assert Relearned(0, censored=False, course=(0.96,)).area(10) == pytest.approx(0.96)


def test_median_ratio_and_interval_have_their_closed_forms():
    found = median_ratio([2, 4, 9], [1, 2, 3], level=0.9, rng=np.random.default_rng(0))

    assert (found.value, found.per_pair.tolist()) == (2.0, [2.0, 2.0, 3.0])
    assert found.log_interval == pytest.approx((math.log(2), math.log(3)))
    assert found.interval == pytest.approx((2, 3))
    assert median_ratio([0, 0, 0], [5, 6, 7], level=0.9, rng=np.random.default_rng(0)).log_interval is None


@pytest.mark.parametrize("size", [5, 7, 25])
def test_the_medians_interval_is_scipys_bootstrap_widened_to_scipys_order_statistics(size):
    from scipy import stats

    values = np.random.default_rng(1).normal(size=size)
    boot = stats.bootstrap((values,), np.median, confidence_level=0.9, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    exact = stats.quantile_test(values, q=0, p=0.5).confidence_interval(confidence_level=0.9)

    found = median_interval(values, level=0.9, rng=np.random.default_rng(3))

    assert found == pytest.approx((min(boot.low, exact.low), max(boot.high, exact.high)), abs=0.05)


def test_relearn_time_is_a_reading_of_its_own():
    assert isinstance(taken(clocks(unlearned=1000.0), splits_of(forget=thresholds())), Reading)
    assert RelearnTime.direction == "info"
