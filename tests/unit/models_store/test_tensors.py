import hashlib
import os
import pickle

import pytest
import torch
from torch import nn

from models_store import tensors
from models_store.errors import Refused
from models_store.header import TensorSpec

torch.set_num_threads(1)


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(7)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    return network


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def gate_of(path, expected=None):
    with pytest.raises(Refused) as caught:
        tensors.load(path, expected)
    return caught.value.gate


def test_a_state_dict_comes_back_bit_for_bit(network, path):
    tensors.save(network.state_dict(), path)

    back = tensors.load(path, tensors.specs(network.state_dict()))

    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in network.state_dict().items())


def test_equal_tensors_give_equal_bytes_in_whatever_order_they_are_named(network, tmp_path):
    state_dict = network.state_dict()

    tensors.save(state_dict, tmp_path / "a")
    tensors.save(dict(reversed(state_dict.items())), tmp_path / "b")

    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a", "b")}
    assert len(digests) == 1


def test_tied_strided_and_half_precision_tensors_are_saved_as_plain_ones(path):
    weight = torch.arange(6.0).reshape(2, 3)
    tensors.save({"tied": weight, "again": weight, "turned": weight.T, "half": weight.to(torch.bfloat16), "flag": weight > 2}, path)

    back = tensors.load(path)

    assert torch.equal(back["tied"], back["again"])
    assert torch.equal(back["turned"], weight.T)
    assert back["half"].dtype == torch.bfloat16
    assert back["flag"].dtype == torch.bool


def test_the_loaded_tensors_are_ours_to_change_and_the_file_is_not(network, path):
    tensors.save(network.state_dict(), path)
    before = path.read_bytes()

    back = tensors.load(path)
    for tensor in back.values():
        tensor.zero_()

    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_on_the_way_in_and_out(network, path, value):
    tensors.save(network.state_dict(), path)
    data = bytearray(path.read_bytes())
    bad = network.state_dict()
    bad["0.weight"][0, 0, 0, 0] = value
    at = data.index(torch.tensor(tensors.load(path)["0.weight"][0, 0, 0, 0].item()).numpy().tobytes())
    data[at : at + 4] = torch.tensor(value).numpy().tobytes()
    path.write_bytes(data)

    assert gate_of(path) == "non-finite"
    with pytest.raises(Refused) as caught:
        tensors.save(bad, path.with_name("other"))
    assert caught.value.gate == "non-finite"
    assert not path.with_name("other").exists()


def test_not_a_number_in_half_precision_is_found_too(path):
    tensors.save({"a": torch.zeros(4, dtype=torch.bfloat16)}, path)
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xc0\x7f"
    path.write_bytes(data)

    assert gate_of(path) == "non-finite"


def test_a_file_with_wrong_shapes_is_refused_before_a_tensor_is_read(network, path):
    tensors.save(network.state_dict(), path)
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))

    assert gate_of(path, tensors.specs(other.state_dict())) == "architecture-mismatch"


def test_a_file_with_a_wrong_dtype_is_refused(network, path):
    wanted = tensors.specs(network.state_dict())
    tensors.save(network.half().state_dict(), path)

    assert gate_of(path, wanted) == "architecture-mismatch"


def test_the_specs_of_a_network_on_the_meta_device_are_those_of_the_real_one(network):
    with torch.device("meta"):
        planned = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))

    assert tensors.specs(planned.state_dict()) == tensors.specs(network.state_dict())
    assert TensorSpec("1.num_batches_tracked", "I64", ()) in tensors.specs(planned.state_dict())


def test_what_torch_save_writes_is_refused_in_both_its_forms(network, path):
    torch.save(network.state_dict(), path)
    assert gate_of(path) == "header-too-large"

    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert gate_of(path) in {"header-too-large", "header-malformed"}


def test_a_pickle_that_would_run_code_runs_none(path, tmp_path):
    witness = tmp_path / "witness"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    path.write_bytes(pickle.dumps(Harmful()))

    assert gate_of(path) in {"header-too-large", "header-malformed"}
    assert not witness.exists()


def test_a_name_that_no_file_may_hold_is_refused_on_the_way_in(path):
    with pytest.raises(Refused) as caught:
        tensors.save({"a b": torch.zeros(1)}, path)

    assert caught.value.gate == "tensor-refused"
    assert list(path.parent.iterdir()) == []


def test_a_dtype_that_no_file_may_hold_is_refused_on_the_way_in(path):
    with pytest.raises(Refused) as caught:
        tensors.save({"a": torch.zeros(1, dtype=torch.complex64)}, path)

    assert caught.value.gate == "tensor-refused"
