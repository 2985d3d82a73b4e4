"""What every registered method keeps to, whatever it does inside."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
import torch
from torch import Tensor, nn

from models_store import tensors
from services.errors import Cancelled, DeadlineExceeded, Diverged, EmptyForgetSet, InvalidInput, MethodNotApplicable, UnsupportedTask
from services.jobs.compute.context import Bench, withheld
from services.jobs.compute.unlearn import unlearn
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE, JobSpec, Seeds
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import Split, Splits, Withheld, by_255
from services.learning.modes import batch_norms
from services.learning.recipe import Recipe
from services.learning.run import Progress, Run
from services.learning.task import TASKS, Task
from services.learning.tasks.classification import Classification
from services.learning.tasks.regression import Regression
from services.learning.training import fit
from services.unlearning.method import METHODS, UnlearningMethod

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")
TASKS.discover("services.learning.tasks")

CLASSES = 4
SEED = 11
KINDS = ("class", "records")
SERVED = [(name, kind) for name in METHODS for kind in KINDS if kind in METHODS[name].granularities and "classification" in METHODS[name].tasks]
SERVED += [(name, "values") for name in METHODS if "regression" in METHODS[name].tasks]  # records with real-valued targets


def cases(fits: Callable[[type[UnlearningMethod]], bool] = lambda _: True) -> list[object]:
    """Every method with every kind it serves. Those of one method share a process, and so their runs; a second kind is for the soak."""
    found: list[object] = []
    for name, kind in SERVED:
        if fits(METHODS[name]):
            second = kind != "class" and (name, "class") in SERVED and name not in {"bad_teacher", "retrain"}
            marks = [pytest.mark.xdist_group(f"method-{name}"), *([pytest.mark.soak] if second else [])]
            found.append(pytest.param(name, kind, marks=marks))
    return found


REFUSED = [(name, kind) for name in METHODS for kind in KINDS if kind not in METHODS[name].granularities and "classification" in METHODS[name].tasks]


def digest(model: nn.Module) -> str:
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


class Marked(TinyCNN):
    """The small network with a buffer that belongs to no batch norm, and that no method has any business with."""

    def build(self) -> nn.Module:
        network = super().build()
        network.register_buffer("constant", torch.tensor([0.5, -2.0, 3.25]))
        return network


@dataclass(frozen=True)
class World:
    """Four classes of 8 x 8 images that a small network with batch norm tells apart, or numbers that it tells from them, and that network."""

    architecture: TinyCNN
    recipe: Recipe
    task: Task
    train: Split
    held_out: Split
    original: nn.Module

    def whole(self, kind: str) -> Splits:
        if kind == "class":
            forget, retain = self.train.with_labels((2,), keep=True), self.train.with_labels((2,), keep=False)
        else:
            forget, retain = self.train.take(torch.arange(24)), self.train.take(torch.arange(24, len(self.train)))
        named = "class" if kind == "class" else "records"
        return Splits(forget, retain, self.held_out, self.held_out, self.held_out, named, (2,) if kind == "class" else ())

    def splits(self, kind: str, *, forget: bool = True, retain: bool = True) -> Splits:
        return withheld(self.whole(kind), forget=forget, retain=retain)

    def given(self, name: str, kind: str) -> Splits:
        """What the service hands the method: nothing that it does not need."""
        needs = METHODS[name].needs
        return self.splits(kind, forget=needs.forget_set, retain=needs.retain_set)

    def run(self, seed: int = SEED, **given: object) -> Run:
        return Run(seed=seed, architecture=self.architecture, recipe=self.recipe, **given)

    def parameters(self, name: str) -> dict[str, object]:
        return {**SHORTER.get(name, {}), **(WIDER.get(name, {}) if self.task.name == "regression" else {})}

    def method(self, name: str) -> UnlearningMethod:
        return METHODS[name](METHODS[name].Parameters(**self.parameters(name)))

    def unlearn(self, name: str, kind: str, run: Run, model: nn.Module | None = None) -> nn.Module:
        return self.method(name).unlearn(copy.deepcopy(self.original) if model is None else model, self.given(name, kind), self.task, run)

    def job(self, name: str, kind: str, folder: Path, cancelled: Callable[[], bool] = lambda: False) -> Bench:
        """A job of the service in `folder`, before its step `unlearn`; the original lies there as a file."""
        spec = JobSpec(
            job_id=UUID(int=1), kind="unlearn", round=1, task=self.task.name, architecture="tiny_cnn", architecture_params={}, adapter="images",
            adapter_params={}, recipe=None, method=name, params=self.parameters(name), request_kind="class" if kind == "class" else "records", plan={},
            seeds=Seeds(unlearn=SEED), device="cpu", deadline_s=100,
        )  # fmt: skip
        return Bench(folder, spec, torch.device("cpu"), self.architecture, self.recipe, self.task, self.whole(kind), lambda _: None, cancelled)


SHORTER: dict[str, dict[str, object]] = {
    "emmn": {"noise_steps": 20, "noise_batch": 16, "impair_lrs": (1e-2,)},
    "gkt": {"n_pseudo_batches": 16},
}
"""Fewer steps where the defaults take longer than the contract needs."""
WIDER: dict[str, dict[str, float]] = {"ssd": {"retain_drop": 0.2}}
"""Of numbers: room for a result where the defaults find none in so small a world."""


@dataclass(frozen=True)
class Done:
    """One finished run: the model, its notes, every report."""

    model: nn.Module
    run: Run
    reports: list[Progress]


def images(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand((CLASSES, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 255
    y = torch.arange(count) % CLASSES
    noise = torch.randn((count, 1, 8, 8), generator=generator) * 60
    return Split((centres[y] + noise).clamp(0, 255).to(torch.uint8), y, tuple(f"{seed}-{row}" for row in range(count)), by_255)


def numbers(count: int, seed: int) -> Split:
    """The images with a real number each: their class, and how bright they are."""
    held = images(count, seed)
    return replace(held, y=held.y + held.x.float().mean(dim=(1, 2, 3)) / 255)


@cache
def world_of(kind: str) -> World:
    """The world of a kind of request: labels, or with `values` numbers."""
    real = kind == "values"
    architecture = Marked(Marked.Parameters(outputs=1 if real else CLASSES, width=4))
    recipe, task, make = (
        Recipe(learning_rate=5e-3, epochs=8, batch_size=33),
        Regression(1) if real else Classification(CLASSES),
        numbers if real else images,
    )
    original = architecture.fresh(1)
    fit(original, make(200, 1), task, recipe, Run(seed=2))
    return World(architecture, recipe, task, make(200, 1), make(60, 2), original.eval())


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """The world that the test's method and kind of request belong to."""
    given = request.node.callspec.params
    real = given.get("kind") == "values" or ("name" in given and "classification" not in METHODS[given["name"]].tasks)
    return world_of("values" if real else "labels")


@cache
def once(name: str, kind: str) -> Done:
    reports: list[Progress] = []
    world = world_of("values" if kind == "values" else "labels")
    run = world.run(on_progress=reports.append, report_every_s=0.0)
    return Done(world.unlearn(name, kind, run), run, reports)


@pytest.fixture
def done() -> Callable[[str, str], Done]:
    """Run a method once, and remember it."""

    return once


@dataclass(frozen=True)
class Resumed:
    """What is left of a job whose step was broken off at its third report and run again: digests of the original's file, and the candidate."""

    original_before: str
    original_after: str
    candidate_of_broken: bool
    candidate: dict[str, Tensor]


@cache
def resumed(name: str, kind: str) -> Resumed:
    """Break a job's step off and run it again, which is all that resuming means to the service: a step has no state of its own between attempts."""
    world = world_of("values" if kind == "values" else "labels")
    with TemporaryDirectory() as place:
        folder = Path(place)
        tensors.save(world.original.state_dict(), folder / BASE_FILE)
        before = (folder / BASE_FILE).read_bytes()
        with pytest.raises(Cancelled):
            unlearn(world.job(name, kind, folder, third()))
        broken = (folder / CANDIDATE_FILE).exists()
        unlearn(world.job(name, kind, folder))
        digests = [hashlib.sha256(raw).hexdigest() for raw in (before, (folder / BASE_FILE).read_bytes())]
        return Resumed(*digests, broken, tensors.load(folder / CANDIDATE_FILE))


def third() -> Callable[[], bool]:
    """Say yes when asked for the third time."""
    asked = iter([False, False])
    return lambda: next(asked, True)


@pytest.fixture(autouse=True)
def _global_generator_is_left_alone() -> Iterator[None]:
    state = torch.random.get_rng_state()
    yield
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was moved"


def test_every_method_of_the_package_imports_and_is_registered():
    assert METHODS.broken == {}
    assert {"bad_teacher", "fine_tune", "retrain", "unsir", "blindspot", "gaussian_amnesiac"} <= set(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_facts_of_a_method_are_complete(name):
    method = METHODS[name]

    assert method.name == name
    assert method.tasks
    assert method.granularities <= {"class", "records", "concept"}
    assert method.guarantee in {"exact", "certified", "approximate", "suppression"}
    if method.guarantee == "exact":  # the verdict of any other would fail for integrity
        assert method.fresh_start
        assert not method.needs.forget_set
    assert method.__doc__


@pytest.mark.parametrize("name", list(METHODS))
def test_every_parameter_has_a_default_and_a_description_and_strangers_are_refused(name):
    schema = METHODS[name].Parameters.model_json_schema()

    METHODS[name].Parameters()
    assert all("description" in body and "default" in body for body in schema["properties"].values()) if "properties" in schema else True
    assert schema["additionalProperties"] is False
    assert "seed" not in schema.get("properties", {})


@pytest.mark.parametrize(("name", "kind"), cases())
def test_one_seed_gives_equal_bytes_and_the_original_is_untouched(name, kind, world, done):
    """A method may change the copy that it is given; the original is the file that the copy was read from."""
    job, model = resumed(name, kind), done(name, kind).model

    assert state_digest(job.candidate) == digest(model)
    assert job.original_after == job.original_before
    assert digest(model) != digest(world.original)


@pytest.mark.parametrize(("name", "kind"), cases())
def test_a_step_that_was_broken_off_and_is_run_again_ends_in_the_same_bytes(name, kind, done):
    job = resumed(name, kind)

    assert not job.candidate_of_broken
    assert state_digest(job.candidate) == digest(done(name, kind).model)


STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""The buffers of batch norm, which alone of all buffers a method may change: by training on, or by starting from a fresh network."""
STILL = frozenset({"boundary_shrink", "certified_removal", "concept_poisoning", "emmn", "lfssd", "lra_npp", "neg_grad_plus", "ssd"})
"""Methods that leave even those as they are, at their defaults: they edit weights without training, or train with batch norm frozen."""


@pytest.mark.parametrize(("name", "kind"), cases())
def test_no_buffer_changes_but_the_statistics_of_batch_norm_and_those_only_where_the_method_trains(name, kind, world, done):
    model = done(name, kind).model
    before, after = dict(world.original.named_buffers()), dict(model.named_buffers())
    norms = batch_norms(model)
    allowed = {place for place, module in model.named_modules() if module in norms} if name not in STILL else set()

    changed = {buffer for buffer, value in before.items() if not torch.equal(value, after[buffer])}

    assert "constant" in before
    assert len(before) == 1 + 3 * len(norms) == 10
    assert changed <= {f"{place}.{statistic}" for place in allowed for statistic in STATISTICS}
    assert bool(changed) == bool(allowed)  # neither list says more than is so


@pytest.mark.parametrize(("name", "kind"), cases())
def test_the_result_fits_the_architecture_is_finite_and_is_in_eval_mode(name, kind, world, done):
    model = done(name, kind).model

    expected = world.original.state_dict()
    state = model.state_dict()
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == {key: (value.shape, value.dtype) for key, value in expected.items()}
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert all(value.is_contiguous() for value in state.values())
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "kind"), cases())
def test_progress_is_reported_stage_by_stage_and_ends_full(name, kind, done):
    reports = done(name, kind).reports

    last = {report.stage: report for report in reports}
    assert reports
    assert all(report.stage and 0 < report.step <= report.of and "loss" in report.values for report in reports)
    assert all(report.step == report.of for report in last.values())


@pytest.mark.parametrize(("name", "kind"), cases())
def test_a_cancelled_run_stops_at_the_next_step(name, kind, world):
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        world.unlearn(name, kind, world.run(cancelled=cancelled))
    assert len(asked) == 3


@pytest.mark.parametrize(("name", "kind"), cases())
def test_a_run_past_its_deadline_stops(name, kind, world):
    with pytest.raises(DeadlineExceeded):
        world.unlearn(name, kind, world.run(deadline_s=-1.0))


@pytest.mark.parametrize(("name", "kind"), cases())
def test_notes_are_json_able_and_say_how_many_steps_were_taken(name, kind, done):
    run = done(name, kind).run

    json.dumps(run.notes, allow_nan=False)
    assert sum(run.notes["steps"].values()) > 0


@pytest.mark.parametrize(("name", "kind"), cases(lambda method: not method.fresh_start or method.name == "sisa"))
def test_a_model_whose_weights_are_not_finite_diverges_and_is_given_back_as_it_came(name, kind, world):
    model = poisoned(world.original)
    before = digest(model)

    with pytest.raises(Diverged):
        world.unlearn(name, kind, world.run(), model)

    assert digest(model) == before


def poisoned(original: nn.Module) -> nn.Module:
    """A copy with a weight that is not a number."""
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_another_kind_of_request_is_refused(name, kind, world):
    with pytest.raises(MethodNotApplicable):
        world.unlearn(name, kind, world.run())


@pytest.mark.parametrize("name", [name for name in METHODS if "records" in METHODS[name].granularities or "class" in METHODS[name].granularities])
def test_another_task_is_refused(name, world):
    class Foreign(Classification):
        name = "foreign"

    kind = min(METHODS[name].granularities & set(KINDS))

    with pytest.raises(UnsupportedTask, match="foreign"):
        world.method(name).unlearn(copy.deepcopy(world.original), world.splits(kind), Foreign(CLASSES), world.run())


@pytest.mark.parametrize(("name", "kind"), cases(lambda method: method.needs.forget_set))
def test_a_method_that_needs_the_forget_set_says_so_where_it_is_gone(name, kind, world):
    with pytest.raises((MethodNotApplicable, EmptyForgetSet)):
        world.method(name).unlearn(copy.deepcopy(world.original), world.splits(kind, forget=False), world.task, world.run())


@pytest.mark.parametrize(("name", "kind"), cases(lambda method: not method.needs.forget_set))
def test_a_method_that_does_not_need_the_forget_set_does_not_look_at_it(name, kind, world, done):
    splits = world.splits(kind, retain=METHODS[name].needs.retain_set)

    shown = world.method(name).unlearn(copy.deepcopy(world.original), splits, world.task, world.run())

    assert digest(shown) == digest(done(name, kind).model)


@pytest.mark.parametrize(("name", "kind"), cases(lambda method: method.needs.retain_set))
def test_a_method_that_needs_retain_records_says_so_where_there_are_none(name, kind, world):
    splits = world.splits(kind)
    empty = replace(splits, retain=splits.retain.take(torch.zeros(0, dtype=torch.int64)))

    with pytest.raises(InvalidInput):
        world.method(name).unlearn(copy.deepcopy(world.original), empty, world.task, world.run())


@pytest.mark.parametrize("part", ["test", "attack"])
def test_what_a_method_is_given_withholds_verification_and_attack(part, world):
    with pytest.raises(Withheld):
        world.splits("class").named(part)


@pytest.mark.parametrize(("name", "kind"), cases(lambda method: method.needs.recipe))
def test_a_method_that_needs_the_recipe_says_so_where_there_is_none(name, kind, world):
    run = Run(seed=1, architecture=world.architecture)

    with pytest.raises(MethodNotApplicable, match="recipe"):
        world.unlearn(name, kind, run)
