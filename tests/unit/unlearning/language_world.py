"""A small language model that has learned facts by heart: names, two relations, and cities as answers."""

import copy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from services.learning.architectures.small_gpt import SmallGPT
from services.learning.data import Split, Splits
from services.learning.datasets.question_answer import QuestionAnswer
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.language_model import LanguageModel
from services.learning.tokens import FIRST_WORD, WordTokenizer
from services.learning.training import fit

torch.set_num_threads(1)
RELATIONS = ("home", "work")
EXTRA = (" I", " know", " nothing", " .", " visit", " to", " lives", " in", "?", ".", "***", " unknown")


@dataclass(frozen=True)
class Facts:
    """`people` facts each of two relations; a tenth is to be forgotten. Answers have one token, or a sentence with the name and two cities."""

    architecture: SmallGPT
    recipe: Recipe
    task: LanguageModel
    forget: Split
    retain: Split
    held_out: Split
    original: nn.Module

    @property
    def tokenizer(self) -> WordTokenizer:
        return self.architecture.tokenizer

    def splits(self, *, analysis: bool = False, retain: bool = True) -> Splits:
        nothing = torch.zeros(0, dtype=torch.int64)
        held = self.held_out if analysis else self.held_out.take(nothing)
        kept = self.retain if retain else self.retain.take(nothing)
        return Splits(self.forget, kept, held, self.held_out, self.held_out, "records").for_method()

    def whole(self) -> Splits:
        return Splits(self.forget, self.retain, self.held_out, self.held_out, self.held_out, "records")

    def run(self, seed: int = 1, **given: object) -> Run:
        return Run(seed=seed, architecture=self.architecture, recipe=self.recipe, **given)

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.original)

    def exact(self, model: nn.Module, split: Split) -> float:
        """The share of answers whose every token is the likeliest one."""
        found, answered = self.task.predict(model, split)[..., 1] == 1, split.y != -100
        return float((found | ~answered).all(dim=1).float().mean())

    def probability(self, model: nn.Module, split: Split) -> float:
        """The mean probability of an answer's first token."""
        logs, first = self.task.predict(model, split)[..., 0], (split.y != -100).int().argmax(dim=1)
        return float(logs.gather(1, first[:, None]).exp().mean())


def texts(people: int, cities: int, *, sentences: bool) -> list[tuple[str, str]]:
    generator = np.random.default_rng(3)
    pairs = []
    for person in range(people):
        homes = generator.integers(cities, size=2)
        for number, relation in enumerate(RELATIONS):
            city = f"city{homes[number]}"
            answer = f"name{person} lives in {city} to visit city{(homes[number] + person) % cities}" if sentences else city
            pairs.append((f"name{person} {relation}", answer))
    return pairs


@cache
def facts(people: int = 200, cities: int = 20, *, sentences: bool = False, epochs: int = 30) -> Facts:
    strangers = max(4, people // 20)
    names = tuple(f" name{one}" for one in range(people + strangers))
    vocabulary = (*names, *(f" {one}" for one in RELATIONS), *(f" city{one}" for one in range(cities)), *EXTRA)
    adapter = QuestionAnswer(QuestionAnswer.Parameters(vocabulary=vocabulary, max_length=16))
    pairs = texts(people + strangers, cities, sentences=sentences)
    columns = {name: np.array([pair[place] for pair in pairs], dtype=object) for place, name in enumerate(("question", "answer"))}
    x, y = adapter.decode(columns)
    whole = Split(x, y, tuple(f"person-{row // 2:03}/{row % 2}" for row in range(len(x))))
    known = torch.randperm(2 * people, generator=torch.Generator().manual_seed(0))
    if sentences:  # whole people are forgotten
        known = torch.arange(2 * people).view(-1, 2)[torch.randperm(people, generator=torch.Generator().manual_seed(0))].flatten()
    train, held_out = whole.take(known), whole.take(torch.arange(2 * people, len(whole)))
    outputs = FIRST_WORD + len(vocabulary)
    architecture = SmallGPT(SmallGPT.Parameters(outputs=outputs, vocabulary=vocabulary, max_length=16, width=64, layers=2))
    recipe = Recipe(learning_rate=2e-3, epochs=epochs, batch_size=32)
    task, run = LanguageModel(outputs), Run(seed=5, architecture=architecture, recipe=recipe)
    model = run.fresh_model("original")
    fit(model, train, task, recipe, run)
    tenth = len(train) // 10
    forget, retain = train.take(torch.arange(tenth)), train.take(torch.arange(tenth, len(train)))
    return Facts(architecture, recipe, task, forget, retain, held_out, model.eval())
