"""Methods for language models on facts learned by heart: what is forgotten, what is kept, and at what drift."""

import pytest
import torch
from torch import nn

from services.catalogue.schema import problems
from services.errors import IntegrityBroken, MethodNotApplicable, ParameterOutOfRange
from services.learning.run import Run
from services.learning.training import fit
from services.unlearning.mechanisms.adapter import Adapted, Lora, adapted, targets_of
from services.unlearning.mechanisms.guard import mean_loss
from services.unlearning.method import METHODS
from tests.unit.unlearning.language_world import Facts, facts

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")
STUDY = {"lr": 3e-4, "epochs": 100, "max_steps": 200, "min_steps": 0, "forget_target": 0.0, "guard_factor": 100.0}
GUARD = 10.0


def unlearned(world: Facts, name: str, run: Run | None = None, *, analysis: bool = False, **parameters: object) -> nn.Module:
    family = METHODS[name]
    method = family(family.Parameters.model_validate({**STUDY, **parameters}))
    given = world.splits(analysis=analysis or not family.needs.retain_set, retain=family.needs.retain_set)
    return method.unlearn(world.copy(), given, world.task, run or world.run())


@pytest.fixture(scope="module")
def world() -> Facts:
    return facts()


@pytest.fixture(scope="module")
def short() -> Facts:
    return facts(people=20, epochs=40)


def test_7_the_original_knows_all_facts(world):
    assert world.exact(world.original, world.forget) >= 0.95
    assert world.exact(world.original, world.retain) >= 0.95


@pytest.mark.parametrize("name", ["npo", *(pytest.param(name, marks=pytest.mark.soak) for name in ("simnpo", "idk"))])
def test_7_with_a_retain_term_facts_are_forgotten_and_the_others_kept(name, world):
    model = unlearned(world, name, guard_factor=GUARD)

    assert world.exact(model, world.forget) <= 0.10
    assert world.exact(model, world.retain) >= 0.95


@pytest.mark.soak
def test_7_gradient_difference_keeps_nine_tenths(world):
    assert world.exact(unlearned(world, "grad_diff", guard_factor=GUARD), world.retain) >= 0.90


@pytest.mark.soak
def test_8_ascent_without_retain_records_does_worse_on_them_than_gradient_difference(world):
    ascended, paired = (unlearned(world, name, max_steps=50) for name in ("grad_ascent", "grad_diff"))

    assert world.exact(ascended, world.retain) < world.exact(paired, world.retain) - 0.3


def test_9_simnpo_drifts_less_than_ascent(world):
    def alone(name: str) -> nn.Module:
        """Fifty steps without a retain term, and without a guard, which would stop either."""
        model, order = world.copy(), torch.Generator().manual_seed(2)
        loss_of = METHODS[name](METHODS[name].Parameters()).forgetting(model, world.splits(), world.task, world.run())
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
        for _ in range(50):
            optimizer.zero_grad()
            loss_of(torch.randperm(len(world.forget), generator=order)[:32]).backward()
            optimizer.step()
        return model

    def drift(model: nn.Module) -> float:
        pairs = zip(model.state_dict().values(), world.original.state_dict().values(), strict=True)
        return float(sum((one - other).square().sum() for one, other in pairs).sqrt())

    simple, ascended = alone("simnpo"), alone("grad_ascent")

    assert drift(simple) < drift(ascended)
    assert mean_loss(simple, world.retain, world.task) < mean_loss(ascended, world.retain, world.task)


def test_ascent_is_stopped_by_the_guard_where_retained_records_are_shown(world):
    run, family = world.run(), METHODS["grad_ascent"]
    method = family(family.Parameters.model_validate({**STUDY, "max_steps": 50}))

    method.unlearn(world.copy(), world.splits(), world.task, run)

    assert [entry["ended_by"] for entry in run.notes["attempts"]] == ["guard", "completed"]


@pytest.mark.parametrize("lora", [Lora(r=4, dropout=0.0), Lora(r=2, alpha=8)])
def test_14_a_merged_adapter_says_what_it_said_unmerged(lora, short):
    model, run = short.copy(), short.run()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with adapted(model, lora, short.forget.x, run) as held:
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == set(held.weights())
        optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            short.task.loss(model, short.forget.batch(torch.arange(4))).backward()
            optimizer.step()
        base = {name.replace("base_layer.", ""): value for name, value in model.state_dict().items() if "lora_" not in name}
        assert all(torch.equal(base[name], value) for name, value in before.items())
        unmerged = held.answers()

    with torch.no_grad():
        merged = model.eval()(short.forget.x)
    assert torch.allclose(merged, unmerged, atol=1e-5)
    assert run.notes["adapter"]["off_restores_base"] is True
    assert run.notes["adapter"]["tensors_moved"] == run.notes["adapter"]["tensors"]
    assert set(model.state_dict()) == set(before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_that_did_not_move_is_refused(short):
    with pytest.raises(IntegrityBroken, match="0 tensors moved"), adapted(short.copy(), Lora(), short.forget.x, short.run()):
        pass


def test_a_merged_model_that_says_something_else_is_refused(short):
    def spoilt() -> None:
        with adapted(short.copy(), Lora(r=2), short.forget.x, short.run()) as held:
            assert isinstance(held, Adapted)
            merge, model = held.tuner.merge_and_unload, held.model
            for value in held.weights().values():
                value.data += 0.01

            def elsewhere(**given: bool) -> None:
                merge(**given)
                model.head.weight.data += 1e-2

            held.tuner.merge_and_unload = elsewhere

    with pytest.raises(IntegrityBroken, match="merged away from unmerged"):
        spoilt()


def test_an_adapter_is_taken_off_where_training_fails(short):
    model = short.copy()

    def lost() -> None:
        with adapted(model, Lora(), short.forget.x, short.run()) as held:
            assert isinstance(held, Adapted)
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        lost()

    assert all(torch.equal(value, short.original.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_adapter_names_layers_that_there_are(short):
    assert targets_of(short.original, Lora()) == ["q_proj", "v_proj"]
    with pytest.raises(ParameterOutOfRange, match="nowhere"):
        targets_of(short.original, Lora(targets=("nowhere",)))
    with pytest.raises(ParameterOutOfRange, match="targets"):
        targets_of(nn.Linear(2, 2), Lora())


def test_with_an_adapter_only_the_adapted_layers_end_up_changed(short):
    model = unlearned(short, "npo", lora={"r": 4}, lr=1e-2, max_steps=10)

    state = short.original.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("q_proj", "v_proj")}


def test_it_ends_when_forgotten_answers_are_no_likelier_than_the_target(short):
    run = short.run()

    model = unlearned(short, "npo", run, forget_target=0.3, retain_floor=0.0, check_every=1, lr=1e-3)

    assert run.notes["ended_by"] == "target"
    assert run.notes["steps"]["forget"] < 200
    assert short.exact(model, short.forget) < 1


def test_without_a_target_held_out_answers_set_it(short):
    run = short.run()

    unlearned(short, "grad_diff", run, analysis=True, forget_target=None, max_steps=3)

    assert 0 < run.notes["watched"]["forget_target"] <= 1
    assert run.notes["ended_by"] in {"target", "steps"}


def test_the_divergence_from_the_original_can_take_the_place_of_the_retain_loss(short):
    found = [unlearned(short, "npo", retain_loss=kind, max_steps=5) for kind in ("nll", "kl")]

    assert not torch.equal(found[0].head.weight, found[1].head.weight)


def test_ascent_needs_somewhere_to_watch_its_damage(short):
    family = METHODS["grad_ascent"]
    nobody = short.splits()
    nobody = type(nobody)(nobody.forget, nobody.retain.take(torch.zeros(0, dtype=torch.int64)), nobody.analysis)

    with pytest.raises(MethodNotApplicable, match="held-out"):
        family(family.Parameters()).unlearn(short.copy(), nobody, short.task, short.run())


def test_refusals_need_a_tokenizer(short):
    with pytest.raises(MethodNotApplicable, match="tokenizer"):
        unlearned(short, "idk", Run(seed=1))


def test_rmu_steers_the_block_it_is_told_and_trains_only_what_it_is_told(short):
    run = short.run()
    model = unlearned(short, "rmu", run, rmu_layer=1, rmu_trainable=(1,), max_steps=5, rmu_c=4.0, defaults_confirmed=True)

    state = short.original.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {"blocks.1.down_proj.weight"}
    assert run.notes["chosen_by_nobody"] == ["alpha"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    for wrong in ({"rmu_layer": 9}, {"rmu_trainable": (5,)}, {"rmu_trainable": (0,), "lora": True}):
        with pytest.raises(ParameterOutOfRange):
            unlearned(short, "rmu", defaults_confirmed=True, **wrong)


def test_rmu_does_not_run_by_defaults_that_nobody_chose_or_confirmed(short):
    with pytest.raises(ParameterOutOfRange, match="defaults_confirmed"):
        unlearned(short, "rmu", rmu_layer=1, rmu_c=4.0)
    schema = METHODS["rmu"].Parameters.model_json_schema()
    assert list(problems(schema, {"rmu_layer": 1, "rmu_c": 4.0}))
    assert not list(problems(schema, {"rmu_layer": 1, "rmu_c": 4.0, "alpha": 1.0}))
    assert not list(problems(schema, {"defaults_confirmed": True}))


def test_6_a_task_vector_of_weight_zero_gives_the_original(short):
    model = unlearned(short, "task_vector", task_lambda=0.0, max_steps=3)

    assert all(torch.equal(value, short.original.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_task_vector_can_be_weighed_on_retained_answers(short):
    run = short.run()

    unlearned(short, "task_vector", run, task_lambda=None, retain_floor=0.0, max_steps=3)

    assert run.notes["task_lambda"] == 1.0


@pytest.mark.parametrize("name", ["retrain", "fine_tune"])
def test_the_baselines_serve_language_models(name, short):
    family = METHODS[name]

    model = family(family.Parameters()).unlearn(short.copy(), short.splits(), short.task, short.run())

    assert short.exact(model, short.retain) >= 0.9


@pytest.mark.soak
def test_a_retrained_model_guesses_what_it_never_saw(world):
    run = Run(seed=9, architecture=world.architecture, recipe=world.recipe)
    model = run.fresh_model("reference")
    fit(model, world.retain, world.task, world.recipe, run)

    assert world.exact(model, world.forget) <= 0.2
    assert world.exact(model, world.retain) >= 0.95
