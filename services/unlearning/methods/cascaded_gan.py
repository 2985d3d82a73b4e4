"""Cascaded unlearning of a GAN, in the manner of Sun et al.: an unlearning stage and a learning stage take turns on generator and discriminator.

Source: Sun, Zhu, Chang, Zhou, "Generative Adversarial Networks Unlearning", 2023 (arXiv 2308.09881), of which the abstract alone was at hand.
Differs: a reconstruction. Losses, weights, substitutes, fake label and stop rule are ours; whether they are the authors' is not known. For items the
calibrated label is corrected at each look by how far the discriminator still tells them from held-out records: fixed, it left an over-fitted one at .70;
and other latents are held to the images that they make, without which a generator that few items concern drifted by a fifth of its distance or more.
"""

import copy
import math

import torch
from pydantic import Field
from torch import nn

from services.errors import Diverged, IntegrityBroken, ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.gan import GAN, NO_DISCRIMINATOR, as_gan
from services.learning.judge import Judge, train_judge
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.cascade import Cascade, Weights
from services.unlearning.mechanisms.fake_label import FakeLabel, Kind, calibrated
from services.unlearning.mechanisms.fingerprint import raw_bytes
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.sample_quality import Kept, Look, Watch
from services.unlearning.mechanisms.substitution import Lessons, Search, of_class, of_items, reach
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod

LEAST_RETAINED = 256
LEAST_BESIDE_ITEMS = 1024
"""Of items the discriminator is over-fitted to all it learned from: what it is no longer shown it forgets beside them, and the samples suffer."""
PLANNED = {True: 50, False: 150}
"""Rounds for a class and for items (docs/benchmarks/gan.md): for a class 150 forgot more than retraining does, and cost a point of downstream accuracy more."""
JUDGE_RECORDS = 12_000
MOST_JUDGE_EPOCHS = 20
UNSEEN_ITEMS = 128


@METHODS.register("cascaded_gan")
class CascadedGAN(UnlearningMethod):
    """Cascaded unlearning in the manner of Sun et al.: substitute images for the generator, a fake label for the discriminator, then learning again."""

    tasks = frozenset({"image_generation"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True, parts=frozenset({"discriminator"}), instead={"retain_set": "retain_part"})
    cost = Cost(fixed=150 * 64 * 24 + 30_000)
    version = "4"

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `cascaded_gan`."""

        rounds_planned: int | None = Field(
            None,
            ge=10,
            le=10_000,
            description="Rounds after which the fake label stands and the targets are first looked at; null: 50 for a class, 150 for items.",
        )
        rounds_cap: int = Field(500, ge=10, le=10_000, description="Rounds after which the run fails where the targets are not met.")
        lr: float = Field(2e-4, ge=1e-6, le=1e-2, description="Step size of Adam on both sides.")
        batch_size: int = Field(64, ge=8, le=1024, description="Records per step.")
        lambda_s: float = Field(10.0, ge=0, le=1000, description="Weight of the substitution.")
        lambda_a: float = Field(0.1, ge=0, le=1000, description="Weight of looking real to the discriminator during substitution.")
        lambda_k: float = Field(10.0, ge=0, le=1000, description="Items: weight of other latents' images staying what they were.")
        real_label: float = Field(0.9, ge=0.5, le=1, description="What the discriminator is taught to say of retained records.")
        fake_label: Kind = Field("anneal", description="Label of forgotten records: calibrated on unseen ones, zero, or from zero to calibrated.")
        learn_ratio: int = Field(2, ge=0, le=10, description="Learning steps for each unlearning step; 0 breaks the generator and is for tests.")
        jitter_copies: int = Field(16, ge=0, le=256, description="Items: jittered copies of each latent found.")
        jitter_sd: float = Field(0.1, ge=0, le=1, description="Items: standard deviation of the jitter.")
        inv_lr: float = Field(0.05, ge=1e-4, le=1, description="Items: step size of the inversion.")
        inv_steps: int = Field(300, ge=10, le=5000, description="Items: steps of the inversion.")
        inv_restarts: int = Field(4, ge=1, le=64, description="Items: starts of the inversion, of which the best is kept.")
        n_latent_draws: int = Field(10_000, ge=500, le=1_000_000, description="Latents drawn to find substitutes among.")
        check_every: int = Field(25, ge=1, le=500, description="Rounds between looks at the targets.")
        n_check: int = Field(2000, ge=200, le=50_000, description="Samples of each look.")
        fid_ratio_max: float = Field(2.0, ge=1, le=10, description="Target: distance to retained records over that of the original.")
        rate_target: float = Field(0.05, ge=0, le=1, description="Target: share of samples of the forgotten classes.")
        area_margin: float = Field(0.05, ge=0, le=0.5, description="Items, target: the discriminator's area on them may lie so far from a half.")
        looks_after: int = Field(4, ge=0, le=100, description="Items: looks after the one that first met the targets; the best of all is kept.")
        retain_share: float = Field(
            0.1, ge=0.001, le=1, description="Share of the retained records that is used, at least 256 of them, of items 1,024."
        )
        drop_d: bool = Field(default=False, description="Return the generator without its discriminator, which gives membership away.")
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model`, a GAN, in place and return it in eval mode. Images (B, ch, H, W) in [-1, 1], y (B,) int64.

        Raises:
            MethodNotApplicable: it holds no discriminator. Diverged: a loss did, or the targets were not met; `model` is then as it came.
        """
        admit(self, data, task, run)
        p, gan = self.parameters, as_gan(model)
        if gan.discriminator is None:
            raise refuse(self, data, NO_DISCRIMINATOR)
        planned = p.rounds_planned or PLANNED[data.kind == "class"]
        if p.rounds_cap < planned:
            raise ParameterOutOfRange(name="rounds_cap", detail="it is below rounds_planned")
        retain = retained(data, p.retain_share, run)
        edit = GuardedEdit.of(self, gan, retain, task, run, stage="cascade")
        original = copy.deepcopy(gan).eval()
        judge = self._judge(data, retain, task, run)
        unseen = data.analysis.with_labels(data.classes, keep=True) if data.kind == "class" else data.analysis
        value = calibrated(original, unseen, task, run)
        lessons = self._lessons(original, judge, data, retain, run)
        watch = Watch(judge, judge.look_at_records(retain).features, data.forget, unseen, data.classes, p.n_check, task, run)
        before = watch.look(original)
        looks: list[tuple[int, Look]] = []
        kept: list[Kept] = []

        def attempt(scale: float) -> None:
            looks.clear()
            kept[:] = [Kept(further=0 if data.kind == "class" else p.looks_after)]
            recipe = Recipe.model_validate({"learning_rate": p.lr * scale, "batch_size": p.batch_size})
            weights = Weights(p.lambda_s, p.lambda_a, 0.0 if data.kind == "class" else p.lambda_k, p.learn_ratio)
            label = FakeLabel(p.fake_label, value, planned)
            cascade = Cascade(data.forget, retain, lessons, label, weights, recipe, p.real_label)

            def done(turn: int) -> bool:
                if turn != planned and (turn % p.check_every or not label.final(turn)):
                    return False
                look = watch.look(gan)
                looks.append((turn, look))
                if data.kind != "class" and look.area is not None:
                    label.correct(look.area)
                return kept[0].done(turn, look, gan, met=self.met(look, before))

            rounds = cascade.carry_out(gan, run, edit.guard, cap=p.rounds_cap, done=done)
            if kept[0].look is not None:
                gan.load_state_dict(kept[0].weights)
            edit.planned({"label": value, "last_label": label.value, "retain_records": len(retain)}, rounds)

        edit.carry_out(attempt, ended_by=None)
        run.note("looks", [{"round": 0, **before.described()}, *({"round": turn, **look.described()} for turn, look in looks)])
        if kept[0].look is None:
            gan.load_state_dict(original.state_dict())
            told = looks[-1][1].described() if looks else {}
            raise Diverged(
                method=self.name, stage="cascade", detail=f"the targets were not met in {p.rounds_cap} rounds: {told}, before {before.described()}"
            )
        run.note("ended_by", "target")
        run.note("kept_round", kept[0].turn)
        return self._handed_back(gan, run)

    def _handed_back(self, gan: GAN, run: Run) -> GAN:
        run.note("manner", "cascaded unlearning in the manner of Sun et al.; a reconstruction from the abstract")
        if self.parameters.drop_d:
            gan.discriminator = None
            run.note("architecture_parameters_changed", {"discriminator": False})
        return gan.eval()

    def met(self, look: Look, before: Look) -> bool:
        """Say whether `look` meets the targets, `before` being the original's."""
        p = self.parameters
        forgotten = look.rate <= p.rate_target if look.rate is not None else look.area is None or abs(look.area - 0.5) <= p.area_margin
        return forgotten and math.isfinite(look.distance) and look.distance <= p.fid_ratio_max * before.distance

    def _judge(self, data: Splits, retain: Split, task: Task, run: Run) -> Judge:
        """Return the classifier that labels latents and measures; a class to be forgotten is shown to it as often as another."""
        rows = retain
        if data.kind == "class":
            each = max(1, round(len(retain) / max(1, task.outputs - len(data.classes))) * len(data.classes))
            shown = data.forget.sample(each, run.stream("judge/forget"))
            rows = Split(torch.cat([retain.x, shown.x]), torch.cat([retain.y, shown.y]), retain.ids + shown.ids, retain.prepare)
        epochs = min(MOST_JUDGE_EPOCHS, max(2, math.ceil(JUDGE_RECORDS / len(rows))))
        return train_judge(rows, task.outputs, run, "judge", epochs=epochs)

    def _lessons(self, original: GAN, judge: Judge, data: Splits, retain: Split, run: Run) -> Lessons:
        p = self.parameters
        if data.kind == "class":
            found = of_class(original, judge, data.classes, p.n_latent_draws, run)
        else:
            search = Search(p.inv_steps, p.inv_restarts, p.inv_lr, p.jitter_copies, p.jitter_sd)
            reached = reach(original, data.forget, data.analysis.sample(UNSEEN_ITEMS, run.stream("unseen")), search, run)
            run.note("reach", reached.described(data.forget.ids))
            found = of_items(original, data.forget, retain, reached, search, p.n_latent_draws, run)
        run.note("latents_to_forget", 0 if found.forgotten is None else len(found.forgotten))
        return found


def retained(data: Splits, share: float, run: Run) -> Split:
    """Return the sample of retained records that a run sees: no id and no image of the forget set is among them. Raises IntegrityBroken on an id."""
    if not set(data.retain.ids).isdisjoint(data.forget.ids):
        raise IntegrityBroken(detail="records to be forgotten are among those to be kept")
    least = LEAST_RETAINED if data.kind == "class" else LEAST_BESIDE_ITEMS
    sample = data.retain.sample(max(least, round(share * len(data.retain))), run.stream("retain"))
    forgotten = {raw_bytes(row) for row in data.forget.x}
    kept = [row for row, x in enumerate(sample.x) if raw_bytes(x) not in forgotten]
    return sample.take(torch.tensor(kept, dtype=torch.int64))
