import pytest
import torch
from pydantic import ValidationError

from services.unlearning.methods.fine_tune import FineTune

torch.set_num_threads(1)


def test_fine_tuning_keeps_the_others_and_forgets_a_little(mlp_lab):
    splits, run = mlp_lab.splits(), mlp_lab.run()
    before = mlp_lab.scores(mlp_lab.original, splits)

    model = FineTune(FineTune.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, run)

    after = mlp_lab.scores(model, splits)
    assert after[0] < before[0]
    assert after[2] >= before[2] - 0.01
    assert run.notes["effective"] == {
        "optimizer": "sgd", "learning_rate": 0.01, "epochs": 10, "batch_size": 64, "schedule": "constant",
    }  # fmt: skip
    assert run.notes["retain_loss"]["after"] <= run.notes["retain_loss"]["before"]


def test_given_values_replace_the_defaults_of_the_task(mlp_lab):
    method = FineTune(FineTune.Parameters(optimizer="adam", epochs=2, batch_size=32))

    recipe = method.recipe(mlp_lab.task, 0.1)

    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs, recipe.batch_size) == ("adam", 1e-4, 2, 32)


@pytest.mark.parametrize(("chosen", "kept"), [("none", "constant"), ("cosine", "cosine"), ("onecycle", "onecycle")])
def test_the_step_size_follows_the_schedule_that_is_asked_for(chosen, kept, mlp_lab):
    assert FineTune(FineTune.Parameters(schedule=chosen)).recipe(mlp_lab.task, 1.0).schedule == kept


@pytest.mark.parametrize(("name", "least", "most"), [("lr", 1e-6, 1.0), ("epochs", 1, 500), ("momentum", 0.0, 0.999), ("weight_decay", 0.0, 0.1),
                                                     ("batch_size", 4, 8192)])  # fmt: skip
def test_the_bounds_are_those_of_the_specification(name, least, most):
    assert [getattr(FineTune.Parameters(**{name: value}), name) for value in (least, most)] == [least, most]
    with pytest.raises(ValidationError):
        FineTune.Parameters(**{name: most * 1.01 if isinstance(most, float) else most + 1})
