"""One oracle for every registered architecture, and for torchvision's networks by name."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from services.learning.architecture import ARCHITECTURES
from services.learning.architectures.torchvision import NAMES, Torchvision, head_of
from services.learning.data import Split
from services.learning.modes import evaluating, image_layout
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit

torch.set_num_threads(1)
ARCHITECTURES.discover("services.learning.architectures")

SMALL = {
    "tiny_cnn": {"channels": 1, "width": 8},
    "all_cnn": {"channels": 1, "width": 8},
    "cifar_resnet18": {"channels": 1},
    "torchvision": {"model": "resnet18", "channels": 1},
    "sharded": {"base": "mlp", "base_parameters": {"inputs": 64, "hidden": (16,)}, "shards": 2, "slices": 2},
    "mlp": {"inputs": 64, "hidden": (16,), "dropout": 0.1, "input_norm": "batch"},
    "lstm": {"inputs": 2, "width": 8, "layers": 2, "hidden": 8},
    "temporal_transformer": {"inputs": 2, "width": 8, "heads": 2},
    "sentence_pair": {"vocab_size": 50, "inputs": 8, "width": 8},
    "text_transformer": {"vocab_size": 50, "max_length": 12, "width": 16, "layers": 1, "heads": 2},
}


ELSEWHERE = {"dcgan", "conditional_gan", "mlp_gan", "small_gpt", "transformers_lm"}  # in test_generators.py and test_language.py


def build(name: str, outputs: int = 3):
    family = ARCHITECTURES[name]
    return family(family.Parameters(outputs=outputs, **SMALL[name]))


def records(modality: str, count: int = 6) -> Split:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    shapes = {"image": (count, 1, 16, 16), "tabular": (count, 64), "series": (count, 12, 2)}
    x = torch.randint(0, 50, (count, 12), generator=generator) if modality == "text" else torch.randn(shapes[modality], generator=generator)
    return Split(x, y, tuple(map(str, range(count))))


def test_every_architecture_file_registers_and_is_covered_here():
    assert ARCHITECTURES.broken == {}
    assert set(ARCHITECTURES) == set(SMALL) | ELSEWHERE


@pytest.mark.parametrize("name", SMALL)
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(name):
    architecture = build(name)
    before = torch.random.get_rng_state()
    first, again, other = architecture.fresh(1).state_dict(), architecture.fresh(1).state_dict(), architecture.fresh(2).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", SMALL)
def test_the_head_is_the_linear_layer_that_makes_the_logits(name):
    architecture = build(name)
    model = architecture.fresh(1)
    head = model.get_submodule(architecture.head)
    seen = []
    head.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with evaluating(model), torch.no_grad():
        logits = model(records(architecture.modality).x)
    features, output = seen[0]
    assert isinstance(head, nn.Linear)
    assert len(seen) == 1
    assert features.shape == (6, head.in_features)
    assert logits.shape == (6, 3)
    assert torch.equal(logits, output)


@pytest.mark.parametrize("name", SMALL)
def test_fit_moves_every_trainable_tensor_and_repeats_with_its_seed(name):
    architecture = build(name)
    split, recipe = records(architecture.modality, 12), Recipe(epochs=1, batch_size=6)

    def trained():
        model = architecture.fresh(1)
        fit(model, split, Classification(3), recipe, Run(seed=4))
        return model

    start, first, again = architecture.fresh(1).state_dict(), trained(), trained().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
    assert all(not torch.equal(value, start[key]) for key, value in first.named_parameters())


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_contiguous_float32_outside_the_loop(name):
    model = build(name).fresh(1)
    with image_layout(model):
        pass
    assert all(value.is_contiguous() for value in model.state_dict().values())
    assert all(value.dtype == torch.float32 for value in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_parameters_have_bounds_and_descriptions(name):
    schema = ARCHITECTURES[name].Parameters.model_json_schema()
    assert all("description" in field for field in schema["properties"].values())
    with pytest.raises(ValidationError):
        ARCHITECTURES[name].Parameters(outputs=0, **SMALL[name])
    with pytest.raises(ValidationError):
        ARCHITECTURES[name].Parameters(outputs=2, surprise=1, **SMALL[name])


FAMILIES = {
    "alexnet": "alexnet", "convnext": "convnext_tiny", "densenet": "densenet121", "efficientnet": "efficientnet_b0", "maxvit": "maxvit_t",
    "mnasnet": "mnasnet0_5", "mobilenet_v2": "mobilenet_v2", "mobilenet_v3": "mobilenet_v3_small", "regnet": "regnet_y_400mf", "resnet": "resnet18",
    "resnext": "resnext50_32x4d", "shufflenet": "shufflenet_v2_x0_5", "swin": "swin_t", "vgg": "vgg11", "vit": "vit_b_16", "wide": "wide_resnet50_2",
}  # fmt: skip


def test_every_torchvision_name_belongs_to_a_family_tried_here():
    assert [name for name in NAMES if not name.startswith(tuple(FAMILIES))] == []


@pytest.mark.parametrize("name", FAMILIES.values())
def test_the_head_of_a_torchvision_network_is_its_last_linear_layer(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = Torchvision(Torchvision.Parameters(outputs=7, model=name, channels=1)).build()
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert head_of(name) == linear[-1]
    assert network.get_submodule(head_of(name)).out_features == 7
    assert first.in_channels == 1


def test_torchvision_names_its_tensors_as_torchvision_does():
    from torchvision.models import resnet18

    ours = Torchvision(Torchvision.Parameters(outputs=1000, model="resnet18")).fresh(0).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in resnet18(weights=None).state_dict().items()}


def test_an_unknown_torchvision_network_is_refused():
    with pytest.raises(ValidationError, match="no classification network"):
        Torchvision.Parameters(outputs=2, model="fasterrcnn_resnet50_fpn")


def test_an_lstm_reads_token_ids_too():
    family = ARCHITECTURES["lstm"]
    model = family(family.Parameters(outputs=1, reads="text", inputs=4, vocab_size=50, width=8)).fresh(1)

    assert model(torch.tensor([[3, 9, 0], [1, 2, 3]])).shape == (2, 1)
    assert family(family.Parameters(outputs=1, reads="text", vocab_size=50)).modality == "text"
    with pytest.raises(ValidationError, match="vocab_size"):
        family.Parameters(outputs=1, reads="text")


def test_a_step_of_the_temporal_transformer_never_sees_those_after_it():
    model = build("temporal_transformer").fresh(1)
    x = records("series").x
    seen = []
    model.far.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with evaluating(model), torch.no_grad():
        model(x)
        model(torch.cat([x[:, :-1], x[:, -1:] + 1], dim=1))
    assert torch.allclose(seen[0][:, :-1], seen[1][:, :-1], atol=1e-6)
    assert not torch.allclose(seen[0][:, -1], seen[1][:, -1], atol=1e-3)


def test_a_text_of_padding_alone_has_finite_logits():
    model = build("text_transformer").fresh(1)
    with evaluating(model), torch.no_grad():
        assert torch.isfinite(model(torch.zeros(2, 12, dtype=torch.int64))).all()


def test_padding_does_not_change_the_logits_of_a_text():
    model = build("text_transformer").fresh(1)
    short = torch.tensor([[4, 9, 2]])
    padded = torch.cat([short, torch.zeros(1, 5, dtype=torch.int64)], dim=1)
    with evaluating(model), torch.no_grad():
        assert torch.allclose(model(short), model(padded), atol=1e-6)
