"""The numbered acceptance tests of the method, and of its search for an alpha. Targets are the specification's."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.run import Run
from services.unlearning.mechanisms.dampening import GRID, damped
from services.unlearning.mechanisms.importance import Importance, ImportanceCache, Importances, Measure, Whole, importance
from services.unlearning.methods.ssd import Ssd
from tests.unit.unlearning import real_labs

torch.set_num_threads(1)


def importances(lab, splits: Splits, granule: str, *, batch_size: int = 64) -> tuple[Importance, Importance]:
    measure, model, run = Measure("loss", granule, batch_size), lab.copy(), lab.run()
    whole, _ = Whole.of(splits.forget, splits.retain).importance(model, lab.task, run, measure, None)
    return importance(model, splits.forget, lab.task, run, measure, stage="forget"), whole


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("strength", [1.0, 10.0])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_1_no_weight_grows_in_magnitude_whatever_alpha_and_lambda(alpha, strength, cnn_lab):
    forget, whole = importances(cnn_lab, cnn_lab.splits(), "per_sample")
    before = parameters_of(cnn_lab.original)

    after = {name: weight for name, weight, _ in damped(before, forget, whole, alpha=alpha, strength=strength)}

    assert all(bool((after[name].abs() <= before[name].abs()).all()) for name in before)
    assert all(bool((after[name] * before[name] >= 0).all()) for name in before)
    if strength == 1:  # ten times the ratio is more than one for every weight here, and then nothing changes
        assert any(not torch.equal(after[name], before[name]) for name in before)


def test_1_a_chosen_weight_is_scaled_by_lambda_times_the_ratio_and_at_most_by_one():
    weight = {"w": torch.tensor([2.0, 2.0, 2.0, -2.0, 2.0])}
    forget, whole = {"w": torch.tensor([8.0, 8.0, 1.0, 8.0, 0.0])}, {"w": torch.tensor([1.0, 4.0, 1.0, 0.0, 0.0])}

    ((_, after, changed),) = damped(weight, forget, whole, alpha=1.5, strength=2.0)

    assert after.tolist() == [2.0 * 2.0 / 8.0, 2.0, 2.0, 0.0, 2.0]  # 2 * 4 / 8 = 1 for the second; the third and last are not chosen
    assert changed == 2


@pytest.mark.parametrize("granule", ["per_sample", "batch"])
def test_2_weights_are_unchanged_where_the_forget_set_does_not_exceed_alpha(granule, cnn_lab):
    splits = cnn_lab.splits()
    forget, whole = importances(cnn_lab, splits, granule)
    before = parameters_of(cnn_lab.original)

    method = Ssd(Ssd.Parameters(alpha=5.0, importance=granule, retain_drop=1.0, guard_factor=100))
    after = parameters_of(method.unlearn(cnn_lab.copy(), splits, cnn_lab.task, cnn_lab.run()))

    chosen = {name: forget[name] > 5.0 * whole[name] for name in before}
    assert sum(int(each.sum()) for each in chosen.values()) > 0
    assert all(torch.equal(after[name][~chosen[name]], before[name][~chosen[name]]) for name in before)
    for name in before:
        expected = (before[name] * (whole[name] / forget[name]))[chosen[name]]
        assert torch.allclose(after[name][chosen[name]], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("granule", ["per_sample", "batch"])
def test_3_cached_importance_is_the_fresh_one_and_serves_other_requests(granule, mlp_lab, digest_of):
    cache: ImportanceCache = {}
    first, second = mlp_lab.splits(classes=(3,)), mlp_lab.splits(classes=(6,))
    measure, model = Measure("loss", granule, 64), mlp_lab.copy()
    kept, was_cached = Whole.of(first.forget, first.retain).importance(model, mlp_lab.task, Run(seed=0), measure, cache)
    again, now_cached = Whole.of(second.forget, second.retain).importance(model, mlp_lab.task, Run(seed=0), measure, cache)
    fresh, _ = Whole.of(second.forget, second.retain).importance(model, mlp_lab.task, Run(seed=0), measure, None)

    parameters = Ssd.Parameters(alpha=5.0, importance=granule, retain_drop=1.0, guard_factor=100)
    runs = mlp_lab.run(), mlp_lab.run()
    models = [Ssd(parameters, each).unlearn(mlp_lab.copy(), second, mlp_lab.task, run) for each, run in zip((cache, None), runs, strict=True)]

    assert (was_cached, now_cached) == (False, True)
    assert again is kept
    assert all(torch.equal(kept[name], fresh[name]) for name in fresh)
    assert digest_of(models[0]) == digest_of(models[1])
    assert [run.notes["effective"]["importance_cached"] for run in runs] == [True, False]
    assert [run.notes["rows"]["importance_all"] for run in runs] == [0, 1200]


def test_3_another_weight_or_measure_is_another_key(cnn_lab):
    model, other = cnn_lab.copy(), cnn_lab.copy()
    with torch.no_grad():
        other.head.bias[0] += 1e-6

    keys = [
        measure.key(each)
        for each in (model, other)
        for measure in (Measure("loss", "per_sample", 64), Measure("output_norm", "per_sample", 64), Measure("loss", "batch", 64))
    ]

    assert len(set(keys)) == 6
    assert Measure("loss", "batch", 32).key(model) != Measure("loss", "batch", 64).key(model)
    assert Measure("loss", "per_sample", 32).key(model) == Measure("loss", "per_sample", 64).key(model)


def test_4_batch_importance_depends_on_the_batch_size_and_per_sample_importance_does_not(mlp_lab):
    splits = mlp_lab.splits()
    batch = [importances(mlp_lab, splits, "batch", batch_size=size)[0] for size in (16, 64)]
    per_sample = [importances(mlp_lab, splits, "per_sample", batch_size=size)[0] for size in (16, 64)]

    assert all(torch.allclose(per_sample[0][name], per_sample[1][name], rtol=1e-4, atol=1e-12) for name in per_sample[0])
    ratio = torch.stack([batch[1][name].sum() / batch[0][name].sum() for name in batch[0]])
    assert float(ratio.max()) < 0.95  # a mean over more rows has a smaller square


def test_4_importance_is_the_mean_of_squares_row_by_row_or_batch_by_batch(mlp_lab):
    splits = mlp_lab.splits()
    rows, model = splits.forget.take(torch.arange(10)), mlp_lab.copy()
    found = {size: importance(model, rows, mlp_lab.task, Run(seed=0), Measure("loss", "batch", size), stage="x") for size in (4, 1)}
    by_row = importance(model, rows, mlp_lab.task, Run(seed=0), Measure("loss", "per_sample", 4), stage="x")

    total = torch.zeros_like(model.head.weight)
    for batch in rows.batches(4):
        (gradient,) = torch.autograd.grad(cross_entropy(model(batch.x), batch.y), [model.head.weight])
        total += gradient**2

    assert torch.allclose(found[4]["head.weight"], total / 3, rtol=1e-5)
    assert all(torch.allclose(by_row[name], found[1][name], rtol=1e-4, atol=1e-12) for name in by_row)


@pytest.mark.parametrize("most", [40, 5000])
def test_of_a_large_forget_set_some_records_are_drawn_and_of_a_small_one_all_are_taken(most, mlp_lab):
    splits, run, model = mlp_lab.splits(), mlp_lab.run(), mlp_lab.copy()
    seen = min(most, len(splits.forget))
    held = Importances(model, splits, mlp_lab.task, run, "loss", 64, most, {})

    pair = held.of("per_sample")

    assert len(held.drawn) == run.notes["rows"]["importance_forget"] == seen
    assert set(held.drawn.ids) <= set(splits.forget.ids)
    again = importance(model, held.drawn, mlp_lab.task, Run(seed=0), Measure("loss", "per_sample", 64), stage="x")
    assert all(torch.equal(pair.forget[name], again[name]) for name in again)
    if seen == most:
        every = importance(model, splits.forget, mlp_lab.task, Run(seed=0), Measure("loss", "per_sample", 64), stage="x")
        assert 0.5 < float(pair.forget["head.weight"].sum() / every["head.weight"].sum()) < 2
    else:
        assert held.drawn.ids == splits.forget.ids


def test_5_the_guard_fires_at_the_lowest_alpha_and_doubles_it_until_enough_is_kept(mlp_lab):
    lab, splits, run = mlp_lab, mlp_lab.splits(), mlp_lab.run()

    model = Ssd(Ssd.Parameters(alpha=0.1)).unlearn(lab.copy(), splits, lab.task, run)

    trials = run.notes["trials"]
    assert [trial["alpha"] for trial in trials] == pytest.approx([0.1 * 2**number for number in range(len(trials))])
    assert len(trials) > 1
    assert all(trial["retain"] < trial["floor"] for trial in trials[:-1])
    assert trials[-1]["retain"] >= trials[-1]["floor"]
    assert run.notes["ended_by"] == "floor"
    assert lab.scores(model, splits)[0] <= 0.05


def test_5_without_doublings_the_original_comes_back(cnn_lab, digest_of):
    model = cnn_lab.copy()

    with pytest.raises(Diverged, match=r"under the floor .* after 0 doublings\. The original model is kept"):
        Ssd(Ssd.Parameters(alpha=0.1, backoff_max=0)).unlearn(model, cnn_lab.splits(), cnn_lab.task, cnn_lab.run())

    assert digest_of(model) == digest_of(cnn_lab.original)


def test_5_an_alpha_that_changes_nothing_is_a_failure(cnn_lab, digest_of):
    model = cnn_lab.copy()

    with pytest.raises(Diverged, match="alpha 1000 changes no weight"):
        Ssd(Ssd.Parameters(alpha=1000)).unlearn(model, cnn_lab.splits(), cnn_lab.task, cnn_lab.run())

    assert digest_of(model) == digest_of(cnn_lab.original)


def test_6_buffers_and_modes_stay_and_batch_norm_weights_are_measured(cnn_lab):
    splits, model = cnn_lab.splits(), cnn_lab.copy().train()

    forget = importance(model, splits.forget, cnn_lab.task, Run(seed=0), Measure("loss", "per_sample", 64), stage="x")
    assert model.training
    Ssd(Ssd.Parameters()).unlearn(model, splits, cnn_lab.task, cnn_lab.run())

    before = dict(cnn_lab.original.named_buffers())
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    assert set(forget) == {name for name, _ in model.named_parameters()}
    assert float(forget["features.1.weight"].max()) > 0


@pytest.mark.parametrize(("lab", "granule"), [("mlp_lab", "per_sample"), ("mlp_lab", "batch"), ("cnn_lab", "per_sample"), ("plain_cnn_lab", "batch")])
def test_the_search_finds_an_alpha_that_forgets_a_digit_and_keeps_the_others(lab, granule, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()
    before = lab.scores(lab.original, splits)

    model = Ssd(Ssd.Parameters(importance=granule)).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert forget <= 0.05
    assert forget_test <= 0.05
    assert retain_test >= before[2] - 0.06
    assert run.notes["ended_by"] == "target"
    assert [trial["alpha"] for trial in run.notes["trials"]][:12] == list(reversed(GRID))[: len(run.notes["trials"])]


def test_where_no_alpha_will_do_the_original_comes_back(cnn_lab, digest_of):
    model, run = cnn_lab.copy(), cnn_lab.run()

    with pytest.raises(Diverged, match="too little is kept"):
        Ssd(Ssd.Parameters(retain_drop=0.0, forget_target=0.0)).unlearn(model, cnn_lab.splits(), cnn_lab.task, run)

    assert digest_of(model) == digest_of(cnn_lab.original)
    assert len(run.notes["trials"]) >= 12


def test_where_single_records_name_no_weights_those_of_batches_are_sought(mlp_lab):
    splits, run = mlp_lab.splits(classes=(1,)), mlp_lab.run()
    before = mlp_lab.scores(mlp_lab.original, splits)

    model = Ssd(Ssd.Parameters()).unlearn(mlp_lab.copy(), splits, mlp_lab.task, run)

    forget, forget_test, retain_test = mlp_lab.scores(model, splits)
    trials, effective = run.notes["trials"], run.notes["effective"]
    assert max(forget, forget_test) <= 0.05
    assert retain_test >= before[2] - 0.06
    assert (effective["importance"], effective["strength"]) == ("batch", 1.0)
    assert run.notes["rows"] == {"importance_forget": 2 * len(splits.forget), "importance_all": 2 * 1200}
    assert [trial["importance"] for trial in trials] == sorted((trial["importance"] for trial in trials), reverse=True)  # records first, then batches
    assert all(trial["forget"] > trial["expected"] or trial["retain"] < trial["floor"] for trial in trials[:-1])


def test_a_batch_search_after_one_of_records_ends_where_a_batch_search_alone_does(mlp_lab, digest_of):
    splits = mlp_lab.splits(classes=(1,))

    models = [Ssd(Ssd.Parameters(**each)).unlearn(mlp_lab.copy(), splits, mlp_lab.task, mlp_lab.run()) for each in ({}, {"importance": "batch"})]

    assert digest_of(models[0]) == digest_of(models[1])


def test_a_given_importance_and_strength_are_kept_to_and_the_failure_says_what_came_nearest(mlp_lab, digest_of):
    model, run = mlp_lab.copy(), mlp_lab.run()

    with pytest.raises(
        Diverged, match=r"none forgets enough: alpha 1 with importance per_sample and strength 1 leaves 0\.\d+ and keeps .*0\.05 may be left"
    ):
        Ssd(Ssd.Parameters(importance="per_sample", strength=1.0)).unlearn(model, mlp_lab.splits(classes=(1,)), mlp_lab.task, run)

    assert {(trial["importance"], trial["strength"]) for trial in run.notes["trials"]} == {("per_sample", 1.0)}
    assert digest_of(model) == digest_of(mlp_lab.original)


@pytest.mark.soak
def test_fashion_mnist_without_batch_norm_forgets_class_6(fashion_lab):
    lab = fashion_lab(20_000, 128, 5)
    splits, run = lab.splits(classes=(6,)), lab.run()
    before = lab.scores(lab.original, splits)

    model = Ssd(Ssd.Parameters()).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    told = f"forget {forget:.3f}/{forget_test:.3f}, retain {retain_test:.3f} from {before[2]:.3f}, {run.notes['effective']}"
    assert max(forget, forget_test) <= 0.05, told
    assert retain_test >= before[2] - 0.06, told


def test_records_of_a_regression_model_are_forgotten_to_the_fit_of_held_out_ones():
    lab = real_labs.table()
    data, run = replace(lab.splits(), span=None), lab.run()

    model = Ssd(Ssd.Parameters()).unlearn(lab.copy(), data.for_method(), lab.task, run)

    found = run.notes["trials"][-1]
    assert found["changed"] > 0
    assert found["forget"] <= found["expected"]
    assert found["retain"] >= found["floor"]
    assert lab.error(model, data.forget) > lab.error(lab.original, data.forget)


def test_where_a_range_cannot_be_dampened_away_without_the_rest_the_original_stays():
    lab = real_labs.table()
    model = lab.copy()

    with pytest.raises(Diverged, match="too little is kept"):
        Ssd(Ssd.Parameters()).unlearn(model, lab.splits().for_method(), lab.task, lab.run())

    assert all(torch.equal(value, lab.original.state_dict()[name]) for name, value in model.state_dict().items())
