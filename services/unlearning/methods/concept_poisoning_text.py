"""Concept inference and poisoning of text: the words that carry an entity are found, masked in the model's own answers, and these are trained.

Source: Chang et al., arXiv 2405.15662, the part on language models.
Differs: Gauss-Legendre nodes from padding (released: a grid from zeros); anchors are drawn one by one; the checkpoint is the knee's; the adapter is merged.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.answers import appearance, expected, greedy, rouge_l, spoken
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.learning.tokens import Tokenizer, packed, prompts_of
from services.unlearning.mechanisms.adapter import Adapted, Lora, adapted, fitting
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.attribution import Baseline, Rule, answer_attribution, words_of_answer
from services.unlearning.mechanisms.descent import loss_on, plan_steps
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.knee import Point, knee
from services.unlearning.mechanisms.masking import masked, name_words, ranked
from services.unlearning.mechanisms.refusals import REFUSALS, tokenizer_of
from services.unlearning.mechanisms.relabelling import Joined
from services.unlearning.method import METHODS, PERSONAL, Cost, Memory, Needs, UnlearningMethod

WARM_UP = 0.03
CLIP = 1.0
SCORED = 40


@dataclass(frozen=True, slots=True)
class Lesson:
    """Poisoned answers and anchors, what checkpoints are scored on, and the names that must not appear."""

    rows: Joined
    asked: Split
    kept: Split
    names: tuple[str, ...]
    tokenizer: Tokenizer


@METHODS.register("concept_poisoning_text")
class ConceptPoisoningText(UnlearningMethod):
    """Train masked or refusing answers in the place of those that name an entity; what the model holds inside stays."""

    tasks = frozenset({"language_model"})
    granularities = frozenset({"records", "concept"})
    guarantee = "suppression"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=32 * 3.0 + 10 * 6.0)
    private_notes = frozenset({"top_words"})
    memory = Memory(trained=0.0)  # an adapter alone

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `concept_poisoning_text`."""

        entities: tuple[str, ...] = Field(
            (),
            max_length=1000,
            description="Names that must not appear; none: the request's, or the highest ranked words.",
            json_schema_extra=PERSONAL,
        )
        questions: tuple[str, ...] = Field(
            (), max_length=10_000, description="Paraphrased questions; used where the answer names an entity.", json_schema_extra=PERSONAL
        )
        ig_steps: int = Field(32, ge=4, le=512, description="Points on the way from the baseline.")
        ig_method: Rule = Field("gausslegendre", description="How they are placed; `grid` is the released code's.")
        ig_baseline: Baseline = Field("pad", description="Vectors that say nothing: those of padding, or zeros.")
        top_words: int = Field(5, ge=1, le=50, description="Highest ranked words of an answer that are masked.")
        style: Literal["mask", "substitute", "idk"] = Field("mask", description="A mask, another name in the place of the words, or a refusal.")
        mask_text: str = Field("***", min_length=1, max_length=64, description="What stands for a masked word; with `substitute` another name.")
        anchor_ratio: float = Field(1.0, ge=0, le=10, description="Retained records beside each poisoned one.")
        lora_r: int = Field(8, ge=1, le=256, description="Rank of the adapter.")
        lora_alpha: int = Field(16, ge=1, le=512, description="Scale of the adapter.")
        lora_dropout: float = Field(0.05, ge=0, le=0.5, description="Dropout before the adapter.")
        lora_targets: tuple[str, ...] = Field((), max_length=100, description="Layers with an adapter; none: the query and value projections.")
        lr: float = Field(2e-5, ge=1e-7, le=1e-2, description="Step size of AdamW, warmed up and then on a half cosine.")
        epochs: int = Field(10, ge=1, le=50, description="Passes over poisoned answers and anchors.")
        batch_size: int = Field(2, ge=1, le=256, description="Records per step.")
        max_len: int = Field(1024, ge=16, le=32_768, description="Most tokens of a record.")
        answer_tokens: int = Field(64, ge=1, le=4096, description="Tokens after which the model's own answer is cut off.")
        checkpoint_every: int = Field(50, ge=1, le=10_000, description="Steps between two checkpoints.")
        guard_factor: float = Field(10.0, ge=1.5, le=100, description="Stop when the retain loss exceeds this many times its first value.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, T) tokens, y (B, T) with -100 outside the answers."""
        admit(self, data, task, run)
        p = self.parameters
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="poisoning")
        lora = Lora(r=p.lora_r, alpha=p.lora_alpha, dropout=p.lora_dropout, targets=p.lora_targets)
        fitting(self, model, lora, data)
        lesson = self._lesson(model, data, task, run)
        probe = lesson.asked.batch(torch.arange(min(4, len(lesson.asked)))).x

        def attempt(scale: float) -> None:
            with adapted(model, lora, probe, run) as held:
                assert held is not None
                self._train(edit, lesson, held, p.lr * scale)

        return edit.carry_out(attempt, ended_by="knee")

    def _lesson(self, model: nn.Module, data: Splits, task: Task, run: Run) -> Lesson:
        """Return what is trained on: the model's own answers with their words masked, and anchors."""
        p, tokenizer = self.parameters, tokenizer_of(self, data, run)
        entities = p.entities or data.entities
        texts = [*expected(data.forget, tokenizer), *(tokenizer.decode(prompt) for prompt in prompts_of(data.forget))]
        absent = sum(not any(appearance(texts, [entity])) for entity in entities)
        if absent:
            told = f"{absent} of the names occur in none of the records to be forgotten"
            raise ParameterOutOfRange(name="entities", detail=told) if p.entities else refuse(self, data, told)
        prompts = [*prompts_of(data.forget), *(tokenizer.prompt(question) for question in p.questions)]
        said = greedy(model, prompts, end=tokenizer.end, most=p.answer_tokens)
        used = [
            row
            for row, ids in enumerate(said)
            if tokenizer.decode(ids).strip() and (row < len(data.forget) or any(appearance([tokenizer.decode(ids)], entities)))
        ]
        if not used:
            raise ParameterOutOfRange(name="method", detail="the model answers none of the questions, so there is no answer to poison")
        texts, names = self._poisoned(model, [(prompts[row], said[row]) for row in used], entities, tokenizer, task, run)
        length = min(int(data.forget.x.shape[1]), p.max_len)
        x, y = packed([(prompts[row], tokenizer.answer(text)) for row, text in zip(used, texts, strict=True)], tokenizer, length)
        order = torch.randperm(len(data.retain), generator=run.stream("anchors"))
        count = min(len(order), round(p.anchor_ratio * len(used)))
        anchors, rest = data.retain.take(order[:count]), data.retain.take(order[count:])
        poison = Split(x.to(data.forget.x.device), y.to(data.forget.x.device), tuple(f"poison-{row}" for row in used), data.forget.prepare)
        asked = data.forget.sample(SCORED, run.stream("scored"))
        kept = (rest if len(rest) else data.retain).sample(SCORED, run.stream("scored/kept"))
        cut = Split(anchors.x[:, :length], anchors.y[:, :length], anchors.ids, anchors.prepare)
        return Lesson(Joined(poison, cut), asked, kept, names, tokenizer)

    def _poisoned(
        self, model: nn.Module, answers: list[tuple[list[int], list[int]]], entities: tuple[str, ...], tokenizer: Tokenizer, task: Task, run: Run
    ) -> tuple[list[str], tuple[str, ...]]:
        """Return the poisoned answers, and the names to look for in what the model will say."""
        p, shares, errors = self.parameters, list[dict[str, float]](), list[float]()
        for step, (prompt, answer) in enumerate(answers, start=1):
            found = answer_attribution(
                model, prompt, answer, tokens=task.outputs, padding=tokenizer.padding, steps=p.ig_steps, rule=p.ig_method, baseline=p.ig_baseline
            )
            shares.append(words_of_answer(answer, found.tokens, tokenizer))
            errors.append(found.error)
            run.report(step, len(answers), stage="attribution", loss=found.error)
        ranking, names = ranked(shares), name_words(entities)
        found_texts = [masked(tokenizer.decode(answer), ranking, names, most=p.top_words, mask=p.mask_text) for _, answer in answers]
        run.note("top_words", ranking[:20])
        run.note("completeness_error", {"mean": sum(errors) / len(errors), "largest": max(errors)})
        run.note(
            "masked", {"answers": len(answers), "name_leaks": sum(t.leaks for t in found_texts), "left_over": sum(t.left_over for t in found_texts)}
        )
        shown = entities or tuple(ranking[: p.top_words])
        if p.style != "idk":
            return [one.text for one in found_texts], shown
        drawn = torch.randint(len(REFUSALS), (len(answers),), generator=run.stream("refusals")).tolist()
        return [REFUSALS[one] for one in drawn], shown

    def _train(self, edit: GuardedEdit, lesson: Lesson, held: Adapted, lr: float) -> None:
        """Train the adapter, look at it every so often, and leave it at the knee."""
        p, model, run = self.parameters, edit.model, edit.run
        plan = plan_steps(len(lesson.rows), batch_size=p.batch_size, epochs=p.epochs, min_steps=0)
        points, weights = list[Point](), dict[int, dict[str, Tensor]]()

        def look(step: int) -> None:
            if step % p.checkpoint_every == 0 or step == plan.steps:
                said = appearance(spoken(model, lesson.asked, lesson.tokenizer, most=p.answer_tokens), lesson.names)
                kept = spoken(model, lesson.kept, lesson.tokenizer, most=p.answer_tokens)
                right = zip(kept, expected(lesson.kept, lesson.tokenizer), strict=True)
                points.append(Point(step, sum(said) / len(said), sum(rouge_l(*pair)[0] for pair in right) / len(kept)))
                weights[step] = {name: value.detach().clone() for name, value in held.weights().items()}

        def optimizer_of(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
            optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)

            def clip(*_: object) -> None:
                nn.utils.clip_grad_norm_(trained, CLIP)

            optimizer.register_step_pre_hook(clip)
            return optimizer

        loss_of = loss_on(lesson.rows, model, edit.task)
        edit.descend(plan, loss_of, lr=lr, after_step=look, optimizer_of=optimizer_of, rate=warmed_cosine)
        chosen = knee(points)
        with torch.no_grad():
            for name, value in held.weights().items():
                value.copy_(weights[chosen.step][name])
        edit.planned({**plan.described(), "lr": lr}, plan.steps)
        run.note("checkpoints", [one._asdict() for one in points])
        run.note("kept_step", chosen.step)


def warmed_cosine(step: int, of: int) -> float:
    """Return the factor on the step size: rising over the first 3 % of the steps, then a half cosine to zero."""
    warm = max(1, round(WARM_UP * of))
    return step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, of - warm + 1)))
