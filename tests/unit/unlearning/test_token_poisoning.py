"""Concept poisoning of text classifiers: the tokens that carry a class, texts without them or with a donor's, and what the classifier keeps."""

import copy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from services.errors import ParameterOutOfRange
from services.learning.architectures.text_transformer import TextTransformer
from services.learning.data import Split, Splits
from services.learning.datasets.text import Text
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.learning.word_ids import word_ids
from services.unlearning.mechanisms.accuracy import accuracy
from services.unlearning.mechanisms.token_poisoning import exchanged, label_attribution, ranking_of
from services.unlearning.methods.concept_poisoning import ConceptPoisoning

torch.set_num_threads(1)

CLASSES, CARRIERS, LENGTH, VOCABULARY = 5, 6, 12, 4096
FILLERS = [f"filler{number}" for number in range(80)]
FORGOTTEN = 1


def carriers(label: int) -> list[str]:
    return [f"carrier{label}x{number}" for number in range(CARRIERS)]


def ids_of(words: list[str]) -> set[int]:
    return set(word_ids(" ".join(words), VOCABULARY, len(words)))


def texts(count: int, seed: int) -> Split:
    """Twelve words each: two or three that carry the class, of six, at any place, the others from a common stock."""
    generator = np.random.default_rng(seed)
    labels, rows = np.arange(count) % CLASSES, []
    for label in labels:
        planted = generator.choice(carriers(label), size=generator.integers(2, 4), replace=False).tolist()
        words = [*planted, *generator.choice(FILLERS, size=LENGTH - len(planted))]
        rows.append(" ".join(generator.permutation(words)))
    adapter = Text(Text.Parameters(vocab_size=VOCABULARY, max_length=LENGTH))
    x, y = adapter.decode({"text": np.array(rows, dtype=object), "label": labels})
    return Split(x, y, tuple(f"text-{seed}-{row}" for row in range(count)))


@dataclass(frozen=True)
class World:
    architecture: TextTransformer
    recipe: Recipe
    task: Classification
    data: Splits
    held_out: Split
    original: nn.Module

    def unlearn(self, **parameters: object) -> tuple[nn.Module, Run]:
        run = Run(seed=4, architecture=self.architecture, recipe=self.recipe)
        method = ConceptPoisoning(ConceptPoisoning.Parameters.model_validate({"lr": 1e-2, "max_epochs": 10, "min_steps": 0, **parameters}))
        return method.unlearn(copy.deepcopy(self.original), self.data, self.task, run), run

    def scores(self, model: nn.Module) -> tuple[float, float, float]:
        """Accuracy on the class (train, test) and on the other test texts."""
        held = [self.held_out.with_labels((FORGOTTEN,), keep=keep) for keep in (True, False)]
        return tuple(accuracy(model, part) for part in (self.data.forget, *held))  # pyright: ignore[reportReturnType]


@cache
def world() -> World:
    train, held = texts(300, 1), texts(250, 2)
    architecture = TextTransformer(
        TextTransformer.Parameters(outputs=CLASSES, vocab_size=VOCABULARY, max_length=LENGTH, width=32, layers=1, dropout=0.0)
    )
    recipe, task, run = Recipe(learning_rate=3e-3, epochs=10, batch_size=50), Classification(CLASSES), Run(seed=3, architecture=architecture)
    model = run.fresh_model("original")
    fit(model, train, task, recipe, run)
    analysis, held_out = held.take(torch.arange(50)), held.take(torch.arange(50, 250))
    forget, retain = (train.with_labels((FORGOTTEN,), keep=keep) for keep in (True, False))
    data = Splits(forget, retain, analysis, held_out, held_out, "class", (FORGOTTEN,)).for_method()
    return World(architecture, recipe, task, data, held_out, model.eval())


def test_the_shares_of_tokens_add_up_to_what_the_words_change_better_with_more_points():
    forget = world().data.forget

    coarse, usual, fine = (float(label_attribution(world().original, forget.x[:40], forget.y[:40], steps=steps)[1].mean()) for steps in (16, 32, 64))

    assert coarse > usual > fine
    assert usual <= 0.05
    assert fine <= 0.01


def test_a_word_that_carries_the_class_is_in_the_top_three_of_nine_texts_in_ten_and_they_lead_the_ranking():
    forget, planted = world().data.forget, ids_of(carriers(FORGOTTEN))
    values, _ = label_attribution(world().original, forget.x, forget.y, steps=64)

    top = forget.x.gather(1, values.topk(3, dim=1).indices)
    found = torch.tensor([bool(set(row) & planted) for row in top.tolist()])
    ranking = ranking_of(world().original, forget, Run(seed=0), steps=64)

    assert float(found.double().mean()) >= 0.9
    assert set(ranking.tokens[:CARRIERS]) == planted


def test_tokens_are_exchanged_in_the_order_of_the_ranking_and_the_others_stay():
    x = torch.tensor([[5, 7, 9, 5, 0], [9, 8, 8, 8, 0]])

    masked, places = exchanged(x, [5, 9, 7], [], most=2)
    swapped, _ = exchanged(x, [5, 9, 7], [20, 30], most=2)

    assert (masked.tolist(), places) == ([[0, 7, 0, 0, 0], [0, 8, 8, 8, 0]], 4)
    assert swapped.tolist() == [[20, 7, 30, 20, 0], [20, 8, 8, 8, 0]]
    assert x.tolist()[0] == [5, 7, 9, 5, 0]


@pytest.mark.parametrize(
    ("mode", "trainable"),
    [
        ("mask", "head"),
        ("substitute", "all"),
        pytest.param("mask", "all", marks=pytest.mark.soak),
        pytest.param("substitute", "head", marks=pytest.mark.soak),
    ],
)
def test_a_class_of_texts_is_forgotten_and_the_others_keep_their_accuracy_to_two_points(mode, trainable):
    before = world().scores(world().original)
    model, run = world().unlearn(token_mode=mode, trainable=trainable, backbone_lr=1e-2)

    train, test, others = world().scores(model)

    assert min(before[:2]) >= 0.95
    assert max(train, test) <= 0.05
    assert others >= before[2] - 0.02
    noted = run.notes["tokens"][str(FORGOTTEN)]
    assert set(noted["top"][:CARRIERS]) == ids_of(carriers(FORGOTTEN))
    assert noted["exchanged"] > 0
    donor = run.notes["donors"][str(FORGOTTEN)]["donor"]
    assert mode == "mask" or set(noted["put"][:3]) <= ids_of(carriers(donor))


def test_poisoned_texts_under_their_own_label_are_inert():
    model, _ = world().unlearn(token_mode="mask", labels="keep")

    assert min(world().scores(model)) >= 0.95


def test_token_modes_are_refused_where_the_records_are_no_texts(mlp_lab):
    method = ConceptPoisoning(ConceptPoisoning.Parameters(token_mode="mask"))

    with pytest.raises(ParameterOutOfRange, match="texts"):
        method.unlearn(mlp_lab.copy(), mlp_lab.splits(classes=(3,)), mlp_lab.task, mlp_lab.run())


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["none", "mask", "substitute"])
def test_an_intent_of_banking77_is_forgotten_and_the_others_keep_their_accuracy_to_two_points(mode):
    from bench import sets
    from bench.methods import cut

    try:
        held = sets.load("banking77")
    except sets.DataMissing as missing:
        pytest.skip(str(missing))
    task, run = Classification(held.classes), Run(seed=1, architecture=held.architecture, recipe=held.recipe)
    model = run.fresh_model("original")
    fit(model, held.train, task, held.recipe, run)
    data = cut(held, "class", 1)
    before = accuracy(model, data.named("retain_test"))
    method = ConceptPoisoning(ConceptPoisoning.Parameters(token_mode=mode))
    model = method.unlearn(model.eval(), data.for_method(), task, Run(seed=2, architecture=held.architecture, recipe=held.recipe))

    assert accuracy(model, data.forget) <= 0.05
    assert accuracy(model, data.named("forget_test")) <= 0.05
    assert accuracy(model, data.named("retain_test")) >= before - 0.02
