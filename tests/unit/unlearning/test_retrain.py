import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from services.errors import IntegrityBroken, MethodNotApplicable
from services.learning.architecture import Architecture
from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.unlearning.methods.retrain import Retrain, assert_fresh

torch.set_num_threads(1)


class StemmedResNet18(Architecture):
    """ResNet18 with a 3 x 3 stem and no first pooling."""

    name, modality, tasks, head = "stemmed_resnet18", "image", frozenset({"classification"}), "fc"

    def build(self) -> nn.Module:
        model = resnet18(num_classes=self.parameters.outputs)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return model


def trained_resnet(architecture: Architecture) -> nn.Module:
    """A network after three steps: every parameter and every buffer has moved."""
    model = architecture.fresh(3)
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(24, 3, 8, 8, generator=generator), torch.arange(24) % 10, tuple(str(row) for row in range(24)))
    fit(model, split, Classification(10), Recipe(epochs=3, batch_size=24), Run(seed=0))
    return model


@pytest.fixture(scope="module")
def resnet() -> tuple[Architecture, nn.Module]:
    architecture = StemmedResNet18(Architecture.Parameters(outputs=10))
    return architecture, trained_resnet(architecture)


def test_a_fresh_resnet_differs_in_62_of_62_tensors_and_equals_a_fresh_build_of_its_seed(resnet):
    architecture, original = resnet
    run = Run(seed=4, architecture=architecture)
    fresh = run.fresh_model("retrain")

    assert assert_fresh(fresh, original, run.fresh_model("retrain/witness")) == 62
    assert len(list(fresh.parameters())) == 62
    again = architecture.fresh(derived_seed(4, "retrain")).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in fresh.state_dict().items())
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, torch.ones_like(buffer) if name.endswith("running_var") else torch.zeros_like(buffer))
        assert not torch.equal(buffer, dict(original.named_buffers())[name])


def test_resetting_only_direct_children_is_refused_as_a_warm_start(resnet):
    architecture, original = resnet
    warm = architecture.fresh(1)
    warm.load_state_dict(original.state_dict())
    for child in warm.children():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()

    with pytest.raises(IntegrityBroken, match="kept"):
        assert_fresh(warm, original, architecture.fresh(2))


def test_kept_batch_norm_statistics_alone_are_refused(resnet):
    architecture, original = resnet
    warm = architecture.fresh(1)
    for name, buffer in warm.named_buffers():
        buffer.copy_(dict(original.named_buffers())[name])

    with pytest.raises(IntegrityBroken, match="running_mean"):
        assert_fresh(warm, original, architecture.fresh(2))


def test_retraining_forgets_a_class_and_keeps_the_others(mlp_lab):
    splits, run = mlp_lab.splits(), mlp_lab.run()

    model = Retrain(Retrain.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, run)

    forget, forget_test, retain_test = mlp_lab.scores(model, splits)
    assert (forget, forget_test) == (0.0, 0.0)
    assert retain_test > 0.94
    assert run.notes["parameter_tensors_changed"] == run.notes["parameter_tensors"] == 6
    assert run.notes["steps"] == {"retrain": 20 * 17}


def test_the_result_does_not_depend_on_the_weights_of_the_original(mlp_lab, digest_of):
    stranger = mlp_lab.architecture.fresh(1234)
    results = [
        digest_of(Retrain(Retrain.Parameters()).unlearn(model, mlp_lab.without_forget(), mlp_lab.task, mlp_lab.run()))
        for model in (mlp_lab.copy(), stranger)
    ]

    assert results[0] == results[1]


def test_two_seeds_give_two_models(mlp_lab, digest_of):
    results = {
        digest_of(Retrain(Retrain.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, mlp_lab.run(seed=seed)))
        for seed in (1, 2)
    }

    assert len(results) == 2


def test_without_a_recipe_it_says_so(mlp_lab):
    run = Run(seed=1, architecture=mlp_lab.architecture)

    with pytest.raises(MethodNotApplicable, match="no training recipe"):
        Retrain(Retrain.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, run)


def test_a_model_never_trained_is_no_warm_start(mlp_lab):
    run = Run(seed=1, architecture=mlp_lab.architecture, recipe=Recipe(epochs=1))
    splits: Splits = mlp_lab.without_forget()

    Retrain(Retrain.Parameters()).unlearn(mlp_lab.architecture.fresh(0), splits, mlp_lab.task, run)

    assert run.notes["parameter_tensors_changed"] == 6
