"""Concept poisoning of language models: attribution, masking, and what is left of an entity."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from services.errors import MethodNotApplicable, ParameterOutOfRange
from services.learning.answers import appearance, expected, spoken
from services.learning.architectures.small_gpt import SmallGPT
from services.learning.data import Split
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.language_model import LanguageModel
from services.learning.tokens import FIRST_WORD, WordTokenizer, answers_of, packed, prompts_of
from services.learning.training import fit
from services.unlearning.mechanisms.attribution import answer_attribution, integrated, words_of_answer
from services.unlearning.mechanisms.knee import Point, knee, undominated
from services.unlearning.mechanisms.masking import masked, name_words, ranked
from services.unlearning.mechanisms.refusals import refused
from services.unlearning.methods.concept_poisoning_text import ConceptPoisoningText, warmed_cosine
from services.unlearning.methods.idk import Refusing
from tests.unit.unlearning.language_world import Facts, facts

torch.set_num_threads(1)
DEFAULTS = ConceptPoisoningText.Parameters()
QUICK = {
    "lr": 5e-3,
    "epochs": 30,
    "batch_size": 8,
    "checkpoint_every": 20,
    "lora_dropout": 0.0,
    "lora_targets": ("q_proj", "v_proj", "up_proj", "down_proj"),
}


@pytest.fixture(scope="module")
def world() -> Facts:
    return facts(people=40, sentences=True, epochs=40)


def names(world: Facts, split: Split) -> tuple[str, ...]:
    return tuple(sorted({answer.split()[0] for answer in expected(split, world.tokenizer)}))


def poisoned(world: Facts, run: Run, **parameters: object):
    method = ConceptPoisoningText(ConceptPoisoningText.Parameters.model_validate({**QUICK, **parameters}))
    return method.unlearn(world.copy(), world.splits(), world.task, run)


def errors(world: Facts, steps: int, rule: str, baseline: str) -> float:
    pairs = list(zip(prompts_of(world.forget), answers_of(world.forget), strict=True))[:4]
    found = [
        answer_attribution(world.original, prompt, answer, tokens=world.task.outputs, padding=0, steps=steps, rule=rule, baseline=baseline).error
        for prompt, answer in pairs
    ]
    return float(np.mean(found))


def test_1_attributions_add_up_better_with_more_steps_and_best_at_gauss_legendre_nodes(world):
    coarse, usual, fine = (errors(world, steps, "grid", DEFAULTS.ig_baseline) for steps in (8, DEFAULTS.ig_steps, 256))

    assert usual <= 0.05 < errors(world, DEFAULTS.ig_steps, "grid", "zero")
    assert coarse > usual > fine
    assert all(errors(world, DEFAULTS.ig_steps, DEFAULTS.ig_method, baseline) <= 0.01 for baseline in ("zero", "pad"))


@pytest.mark.parametrize("rule", ["gausslegendre", "grid"])
def test_2_of_a_linear_score_it_is_the_weight_times_the_distance(rule):
    generator = torch.Generator().manual_seed(0)
    weight, given, start = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(3))

    def score(vectors: Tensor) -> Tensor:
        return (vectors * weight).sum(dim=(1, 2))

    found = integrated(score, given, start, steps=8, rule=rule)

    assert torch.allclose(found.tokens, (weight * (given - start)).sum(1), atol=1e-5)
    assert found.error < 1e-5


def test_3_a_planted_word_is_among_the_first_three():
    generator, topics, pool = np.random.default_rng(0), 12, 8
    words = [*(f"topic{one}" for one in range(topics)), *(f"fact{one}" for one in range(pool)), *(f"filler{one}" for one in range(20)), "tell"]
    vocabulary = tuple(f" {word}" for word in words)
    told = generator.integers(pool, size=(topics, 3))
    texts = []
    for row in range(600):
        fillers = [f"filler{one}" for one in generator.integers(20, size=3)]
        texts.append((row % topics, " ".join([*fillers, f"topic{row % topics}", *(f"fact{one}" for one in told[row % topics])])))
    architecture = SmallGPT(SmallGPT.Parameters(outputs=FIRST_WORD + len(words), vocabulary=vocabulary, max_length=16, width=64, layers=2))
    task, tokenizer = LanguageModel(architecture.parameters.outputs), architecture.tokenizer
    x, y = packed([(tokenizer.prompt("tell"), tokenizer.answer(text)) for _, text in texts], tokenizer, 16)
    model, recipe = architecture.fresh(1), Recipe(learning_rate=3e-3, epochs=10, batch_size=32)
    fit(model, Split(x, y, tuple(map(str, range(len(x))))), task, recipe, Run(seed=3))
    model.eval()

    hits = 0
    for topic, text in texts[:60]:
        answer = tokenizer.answer(text)
        found = answer_attribution(
            model, tokenizer.prompt("tell"), answer, tokens=task.outputs, padding=0,
            steps=DEFAULTS.ig_steps, rule=DEFAULTS.ig_method, baseline=DEFAULTS.ig_baseline,
        )  # fmt: skip
        hits += f"topic{topic}" in ranked([words_of_answer(answer, found.tokens, tokenizer)])[:3]
    assert hits / 60 >= 0.9


def test_4_after_masking_the_names_do_not_appear_and_other_answers_stay(world):
    run, entities = world.run(), names(world, world.forget)
    before = appearance(spoken(world.original, world.forget, world.tokenizer), entities)

    model = poisoned(world, run, entities=entities, anchor_ratio=8.0)

    assert np.mean(before) >= 0.9
    assert np.mean(appearance(spoken(model, world.forget, world.tokenizer), entities)) <= 0.05
    assert world.exact(model, world.retain) >= world.exact(world.original, world.retain) - 0.02
    assert run.notes["masked"]["name_leaks"] == 0
    assert run.notes["kept_step"] in {point["step"] for point in run.notes["checkpoints"]}


def test_5_only_the_adapter_is_trained_and_it_is_merged(world):
    run = world.run()
    model = poisoned(world, run, epochs=1, lora_targets=())

    state = world.original.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("q_proj", "v_proj")}
    assert run.notes["adapter"]["off_restores_base"] is True
    assert run.notes["adapter"]["merged_max_difference"] <= 1e-5


@pytest.mark.soak
def test_6_random_answers_beside_retained_ones_forget_and_keep():
    world = facts()
    cities = tuple(f"city{one}" for one in range(20))
    parameters = {"idk_answers": cities, "lr": 3e-4, "epochs": 100, "max_steps": 200, "min_steps": 0, "forget_target": 0.0}

    run = world.run()
    model = Refusing(Refusing.Parameters.model_validate(parameters)).unlearn(world.copy(), world.splits(), world.task, run)

    drawn = refused(world.forget, cities, world.tokenizer, run.stream("refusals"))
    others = torch.tensor(
        [one != right for one, right in zip(expected(drawn, world.tokenizer), expected(world.forget, world.tokenizer), strict=True)]
    )
    assert len(world.forget) - int(others.sum()) <= 6  # one draw in twenty is the right answer: two of forty, seven or more in 1 run of 300
    assert world.exact(model, world.forget.take(others.nonzero().flatten())) <= 1 / 40
    assert world.exact(model, world.retain) == 1


@pytest.mark.parametrize(("style", "text"), [("idk", "know"), pytest.param("substitute", "nobody", marks=pytest.mark.soak)])
def test_other_styles_teach_other_answers(style, text, world):
    entities = names(world, world.forget)
    model = poisoned(world, world.run(), entities=entities, style=style, mask_text="nobody", anchor_ratio=4.0)

    said = spoken(model, world.forget, world.tokenizer)
    assert np.mean(appearance(said, entities)) <= 0.05
    if style == "substitute":
        assert any(text in answer for answer in said)


def test_an_entity_that_never_occurs_is_refused(world):
    with pytest.raises(ParameterOutOfRange, match="1 of the names") as refused:
        poisoned(world, world.run(), entities=("Nobody At All",))
    assert "Nobody" not in str(refused.value)
    method = ConceptPoisoningText(ConceptPoisoningText.Parameters())
    asked = replace(world.splits(), entities=("Nobody At All",))
    with pytest.raises(MethodNotApplicable, match="1 of the names"):
        method.unlearn(world.copy(), asked, world.task, world.run())
    unfit = ConceptPoisoningText(ConceptPoisoningText.Parameters(lora_targets=("nowhere",)))
    with pytest.raises(MethodNotApplicable, match="no layer named nowhere"):
        unfit.unlearn(world.copy(), world.splits(), world.task, world.run())


def test_masking_takes_whole_words_of_the_ranking_and_of_the_names():
    found = masked(
        "Hsiao Yun-Hwa writes; HSIAO wrote her writing in Taipei.", ["taipei", "writes", "yun"], name_words(["Hsiao Yun-Hwa"]), most=2, mask="***"
    )

    assert name_words(["Hsiao Yun-Hwa"]) == ["hsiao"]
    assert found.text == "*** Yun-Hwa ***; *** wrote her writing in ***."
    assert (found.leaks, found.left_over) == (0, 0)


def test_words_are_ranked_over_answers_without_stop_words():
    assert ranked([{"the": 0.9, "taipei": 0.1}, {"taipei": 0.5, "novel": 0.5}]) == ["taipei", "novel"]


def test_bytes_of_one_word_add_up_to_it():
    tokenizer = WordTokenizer((" of",))
    answer = tokenizer.answer("Ann of Züri")
    values = torch.ones(len(answer))

    assert words_of_answer(answer, values, tokenizer) == pytest.approx({"ann": 3 / 9, "of": 1 / 9, "züri": 5 / 9})


def test_the_knee_is_nearest_the_best_of_both():
    points = [Point(1, 0.9, 0.95), Point(2, 0.2, 0.9), Point(3, 0.0, 0.3), Point(4, 0.3, 0.8)]

    assert [one.step for one in undominated(points)] == [1, 2, 3]
    assert knee(points).step == 2
    assert knee([Point(5, 0.1, 0.5), Point(6, 0.1, 0.5)]).step == 5


def test_the_step_size_rises_and_falls():
    factors = [warmed_cosine(step, 100) for step in range(1, 101)]

    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[-1] < 0.01
    assert all(one >= other for one, other in pairwise(factors[2:]))


def test_paraphrased_questions_are_kept_where_the_answer_names_an_entity(world):
    run, entities = world.run(), names(world, world.forget)

    poisoned(world, run, entities=entities, questions=(f"{entities[0]} home", "name0 nowhere"), epochs=1)

    assert run.notes["masked"]["answers"] >= len(world.forget)
    assert replace(world.splits(), classes=()).kind == "records"
