"""Metrics of language models against closed forms and independent references."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn

from services.learning.answers import appears, expected, longest_common, rouge_l, spoken
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.training import fit
from services.verification.least_likely import auc
from services.verification.metric import METRICS, Models
from services.verification.metrics.quantised_forgetting import quantised, rounded
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.clusters import grouped_mean_interval, groups_of
from services.verification.statistics.language import (
    forget_score,
    least_likely,
    normalised_probability,
    privacy_leak,
    same_distribution,
    truth_ratio,
    truth_score,
    utility,
)
from tests.unit.unlearning.language_world import Facts, facts

torch.set_num_threads(1)
METRICS.discover("services.verification.metrics")


@pytest.fixture(scope="module")
def world() -> Facts:
    return facts(people=24, sentences=True, epochs=25)


@pytest.fixture(scope="module")
def retrained(world) -> nn.Module:
    run = Run(seed=9, architecture=world.architecture, recipe=world.recipe)
    model = run.fresh_model("reference")
    fit(model, world.retain, world.task, world.recipe, run)
    return model.eval()


def taken(name: str, world: Facts, subject: nn.Module, *, split: str = "", retrained: nn.Module | None = None, data: Splits | None = None, **how):
    family = METRICS[name]
    models = Models(world.original, subject, retrained)
    return family(family.Parameters(**how)).measure(models, data or world.whole(), world.task, world.run(), split=split or family.splits[0])


def test_10_the_p_value_against_a_retrained_model_is_reported(world, retrained):
    same, other = (taken("forget_quality", world, model, retrained=retrained) for model in (retrained, world.original))

    assert same == Unmeasured("no_second_retrained_model")
    assert isinstance(other, Reading)
    assert other.value < 0.05
    assert 0 <= other.detail["distance"] <= 1
    assert taken("forget_quality", world, world.original) == Unmeasured("no_retrained_reference")


def test_10_the_distance_and_p_value_are_those_of_the_vectors():
    assert same_distribution([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx((1.0, 0.028571), abs=1e-6)
    assert same_distribution([1, 2, 3], [1, 2, 3])[1] == 1.0


def test_12_the_truth_ratio_averages_inside_the_exponent():
    wrong, right = [1.0, 3.0], 1.5

    assert truth_ratio(wrong, right) == pytest.approx(np.exp(-2.0) / np.exp(-1.5))
    assert truth_ratio(wrong, right) != pytest.approx((np.exp(-1.0) + np.exp(-3.0)) / 2 / np.exp(-1.5), rel=1e-2)


def test_12_the_two_scores_of_the_truth_ratio():
    assert forget_score([0.5, 2.0, 1.0]).tolist() == [0.5, 0.5, 1.0]
    assert truth_score([0.25, 2.0]).tolist() == [0.75, 0.0]


def test_12_model_utility_is_the_harmonic_mean_and_one_zero_makes_it_zero():
    assert utility([1.0] * 8 + [0.5]) == pytest.approx(0.9)
    assert utility([0.2, 0.9, 0.5]) == pytest.approx(stats.hmean([0.2, 0.9, 0.5]))
    assert utility([1.0, 0.0]) == 0.0
    assert normalised_probability(0.0, [0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_12_the_privacy_leak_of_the_hand_example():
    assert privacy_leak(0.6, 0.5) == pytest.approx(-20)
    assert privacy_leak(0.7, 0.7) == 0


def test_min_k_is_the_mean_of_the_least_likely_tokens():
    assert least_likely([-1, -2, -3, -4, -5], 0.4) == -4.5
    assert least_likely([-7.0], 0.1) == -7.0


def test_the_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 30).round(1), rng.normal(0, 1, 40).round(1)

    assert auc(members, others) == pytest.approx(roc_auc_score([1] * 30 + [0] * 40, np.concatenate([members, others])))


@pytest.mark.parametrize("spoiled", [([float("nan"), 1.0], [0.0]), ([1.0], [0.0, float("nan")])])
def test_the_auc_of_scores_that_are_no_numbers_is_none_either(spoiled):
    assert np.isnan(auc(*map(np.array, spoiled)))


TEXTS = (
    ("The father of Hsiao Yun-Hwa is a civil engineer.", "Hsiao Yun-Hwa's father was a civil engineer, I think."),
    ("a b c d", "d c b a"),
    ("one two", ""),
    ("The cat sat on the mat", "the CAT, the mat: sat on 12 mats"),
)


@pytest.mark.parametrize(("right", "said"), TEXTS)
def test_rouge_l_is_that_of_the_rouge_score_package(right, said):
    theirs = RougeScorer(["rougeL"]).score(right, said)["rougeL"]

    assert rouge_l(said, right) == pytest.approx((theirs.fmeasure, theirs.recall))


def test_the_longest_common_sequence_of_random_words_is_the_textbooks():
    rng = np.random.default_rng(1)
    for _ in range(20):
        one, other = ([f"w{word}" for word in rng.integers(4, size=size)] for size in rng.integers(1, 9, size=2))
        table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
        for row, word in enumerate(one):
            for place, second in enumerate(other):
                table[row + 1, place + 1] = table[row, place] + 1 if word == second else max(table[row, place + 1], table[row + 1, place])
        assert longest_common(one, other) == table[-1, -1]


@pytest.mark.parametrize(
    ("entity", "text", "found"),
    [("Hsiao Yun-Hwa", "by HSIAO YUN HWA.", True), ("Hsiao Yun Hwa", "Hsiao  Yun-Hwa", True), ("Basil", "basic", False), ("Anna", "Joanna", True)],
)
def test_an_entity_appears_whatever_case_and_hyphens(entity, text, found):
    assert appears(entity, text) is found


def test_generated_answers_are_the_teacher_forced_ones_where_those_are_right(world):
    said, right = spoken(world.original, world.forget, world.tokenizer), expected(world.forget, world.tokenizer)

    exact = taken("exact_match", world, world.original)
    assert exact.value == pytest.approx(np.mean([mine == own for mine, own in zip(said, right, strict=True)]))
    assert exact.value >= 0.9
    assert taken("rouge_l", world, world.original).value >= exact.value


@pytest.mark.parametrize("name", ["exact_match", "appearance_rate"])
def test_answers_that_are_all_alike_are_known_no_better_than_their_number_allows(name, world):
    """Of n alike a bootstrap has no width; Clopper and Pearson's limit is beta's quantile, Tango's z^2 / (n + z^2)."""
    how = {} if name == "exact_match" else {"entities": ("nobody at all",)}
    z, n = stats.norm.ppf(0.95), len(world.forget)

    paired = compared(name, world, world.original, world.original, split="forget_train", **how)
    assert (paired.value, paired.low, paired.high) == (0.0, pytest.approx(-(z**2) / (n + z**2), abs=1e-6), pytest.approx(z**2 / (n + z**2), abs=1e-6))
    if name == "exact_match":
        never = taken(name, world, world.run().fresh_model("never trained"))
        assert (never.value, never.low, never.high) == (0.0, 0.0, pytest.approx(stats.beta.ppf(0.95, 1, n)))


def test_answer_probability_is_the_exponent_of_minus_the_loss(world):
    losses = torch.cat([world.task.losses(world.original, batch) for batch in world.forget.batches(8)])

    assert taken("answer_probability", world, world.original).value == pytest.approx(float((-losses.detach()).exp().mean()), abs=1e-5)


def test_the_names_in_the_answers_appear(world, retrained):
    entities = tuple(answer.split()[0] for answer in expected(world.forget, world.tokenizer))

    known = taken("appearance_rate", world, world.original, entities=entities, paraphrases=("name1 home",))
    assert known.value >= 0.9
    assert known.detail["records"] == len(world.forget)
    assert known.detail["paraphrased"] in {0.0, 1.0}
    assert taken("appearance_rate", world, world.original) == Unmeasured("no_entity_named")
    assert taken("appearance_rate", world, world.original, entities=("nobody",)) == Unmeasured("entity_occurs_in_no_answer")


def test_wrong_answers_of_the_operator_take_the_place_of_drawn_ones(world):
    ids = world.forget.ids
    given = [{"id": one, "paraphrase": None, "wrong": ["I know nothing"]} for one in ids]

    drawn, told = (taken("truth_ratio", world, world.original, score="utility", **how) for how in ({}, {"alternatives": given}))
    assert drawn.value > 0.5
    assert told.value > 0.5
    assert drawn.value != told.value


def test_utility_with_further_sets_stands_on_all_of_them(world):
    sets = {"world_facts": [{"question": "name1 home", "answer": "I know nothing", "wrong": ["city1", "city2"]}]}

    alone, more = taken("model_utility", world, world.original), taken("model_utility", world, world.original, sets=sets)
    assert alone.value > 0.7
    assert more.value < alone.value
    assert set(more.detail["parts"]) == {"retain_train", "world_facts"}


def test_privacy_leak_and_min_k_tell_the_original_from_the_retrained(world, retrained):
    known, clean = (taken("min_k", world, model) for model in (world.original, retrained))
    leak = taken("privleak", world, world.original, retrained=retrained)

    assert known.value > clean.value
    assert leak.value < -5
    assert leak.detail["auc"] == known.value
    assert leak.value == pytest.approx(privacy_leak(known.value, clean.value))


def test_rounding_keeps_the_largest_weight_of_each_row_and_sixteen_levels():
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))

    coarse = rounded(weight, 4)

    assert torch.allclose(coarse.abs().amax(1), weight.abs().amax(1))
    assert all(len(row.unique()) <= 15 for row in coarse)
    assert float((coarse - weight).abs().max()) <= float((weight.abs().amax(1) / 7 / 2).max()) + 1e-6


def test_quantising_leaves_the_model_itself_as_it_was(world):
    before = world.original.head.weight.clone()

    coarse = quantised(world.original, 4)

    assert torch.equal(before, world.original.head.weight)
    assert not torch.equal(coarse.head.weight, before)
    found = taken("quantised_forgetting", world, world.original)
    assert found.detail["unquantised"] >= found.value - 0.05


def test_relearning_works_on_language_models(world, retrained):
    found = taken("relearn_time", world, retrained, steps=60, seeds=3, judged_on="forget_train", margin=0.9)

    assert found.value > 0


def test_groups_are_resampled_whole():
    assert groups_of(["a/1", "a/2", "b"]) == ["a", "a", "b"]
    rng = np.random.default_rng(0)
    values = [1.0] * 10 + [0.0] * 10
    whole = grouped_mean_interval(values, ["a"] * 10 + ["b"] * 10, level=0.9, rng=rng)
    single = grouped_mean_interval(values, [str(row) for row in range(20)], level=0.9, rng=rng)

    assert whole.high - whole.low > single.high - single.low


def compared(name: str, world: Facts, subject: nn.Module, versus: nn.Module, *, split: str, **how) -> Reading:
    family = METRICS[name]
    found = family(family.Parameters(**how)).difference(
        Models(world.original, subject), world.whole(), world.task, world.run(), split=split, versus=versus
    )
    assert isinstance(found, Reading)
    return found


@pytest.mark.parametrize(("name", "split"), [("model_utility", "retain_train"), ("min_k", "forget_train")])
def test_two_models_are_compared_on_the_same_records(name, split, world, retrained):
    other, same = (compared(name, world, world.original, model, split=split) for model in (retrained, world.original))
    values = [taken(name, world, model, split=split).value for model in (world.original, retrained)]

    assert other.value == pytest.approx(values[0] - values[1])
    assert other.low <= other.value <= other.high
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_distance_of_truth_ratios_is_the_statistic_of_the_test_behind_forget_quality(world, retrained):
    known = taken("truth_ratio_distance", world, world.original, retrained=retrained)

    assert known.value == taken("forget_quality", world, world.original, retrained=retrained).detail["distance"]
    assert known.low <= known.value <= known.high
    assert taken("truth_ratio_distance", world, retrained, retrained=retrained) == Unmeasured("no_second_retrained_model")


def test_a_request_for_an_entity_brings_the_names_to_look_for(world):
    entities = tuple(answer.split()[0] for answer in expected(world.forget, world.tokenizer))
    asked = replace(world.whole(), entities=entities)

    assert taken("appearance_rate", world, world.original, data=asked).value >= 0.9
    assert not any(name in repr(asked) for name in entities)
