"""What a job takes, by hand; and beside what a process really took, for the soak."""

import pytest

from services import memory
from services.memory import Capacity, Need

ADAM, SGD = {"optimizer": "adam", "batch_size": 64}, {"optimizer": "sgd", "batch_size": 64}
PAIRED = {"copies": 2.0, "trained": 1.0, "states": 2.0, "batches": 2.0, "adapter": "lora", "more": {"retain_loss=kl": 1.0}}


def test_a_job_takes_its_copies_of_the_weights_its_records_and_one_step() -> None:
    need = Need(1000, 8.0, records_bytes=50, batch_bytes=7)

    assert need.total_bytes == 8057
    assert (need.on(2), need.on(3)) == (4057, 2667 + 57)


@pytest.mark.parametrize(
    ("fact", "params", "copies"),
    [
        ({}, {}, 5.0),  # model, original for a second attempt, gradient, two moments of Adam
        (PAIRED, {}, 5.0),
        (PAIRED, {"retain_loss": "kl"}, 6.0),  # and the frozen original
        (PAIRED, {"lora": True}, 2.0),  # an adapter in place of gradient and moments
        ({"copies": 4.0, "states": 0.0}, {}, 5.0),
        ({"trained": 0.0}, {}, 2.0),
    ],
)
def test_the_copies_of_a_method_follow_from_its_facts_and_parameters(fact: dict, params: dict, copies: float) -> None:
    assert memory.method_copies(fact, params) == copies


def test_a_job_takes_the_most_of_its_method_and_of_its_judging() -> None:
    assert memory.job_copies(PAIRED, {}, ADAM, retrained=True) == 8.0  # original, unlearned, reference, base; twin, gradient, two moments
    assert memory.job_copies(PAIRED, {}, SGD, retrained=True) == 7.0
    assert memory.job_copies(PAIRED, {}, ADAM, retrained=False) == 5.0
    assert memory.job_copies({"trained": 0.0}, {}, None, retrained=True) == 4.0
    assert memory.job_copies({"copies": 7.0}, {}, ADAM, retrained=True) == 10.0


def test_a_step_of_a_language_model_leaves_its_logits_and_its_blocks() -> None:
    architecture = {"outputs": 1000, "max_length": 10, "width": 8, "layers": 2}

    assert memory.batch_bytes("classification", architecture, 4) == 4 * 40 * 8 * 2 * 18
    assert memory.batch_bytes("language_model", architecture, 4) == 4 * max(40 * 8 * 2 * 18 + 40 * 1000 * 3, 64 * 10 * 1000 * 2)
    assert memory.batch_bytes("classification", {"hidden": [64]}, 4) == 0
    assert memory.largest_batch(PAIRED, {"batch_size": 48}, ADAM) == 96
    assert memory.largest_batch({}, {"batch_size": 8}, ADAM) == 64


def test_a_job_goes_to_as_few_devices_as_it_fits_on_and_to_none_where_it_cannot_be_shared() -> None:
    worker, need = Capacity(1000, devices=4), Need(300, 8.0, records_bytes=100)

    assert worker.devices_for(need, sharded=True) == 3  # 2400 / 3 + 100
    assert worker.devices_for(need, sharded=False) is None
    assert worker.devices_for(Need(100, 8.0), sharded=True) == 1
    assert worker.devices_for(Need(1000, 8.0), sharded=True) is None


def test_a_method_shares_weights_by_its_fact_and_never_with_an_adapter_or_many_networks() -> None:
    facts = {"sharded": True, "memory": PAIRED}

    assert memory.shared(facts, {}, "language_model")
    assert not memory.shared(facts, {"lora": {"r": 4}}, "language_model")
    assert not memory.shared(facts, {}, "image_generation")
    assert not memory.shared({"memory": PAIRED}, {}, "language_model")
    assert not memory.shared({}, {}, "language_model")


def test_bytes_are_told_in_the_larger_unit_where_they_are_many() -> None:
    assert [memory.told(count) for count in (1, 5 * 1024**2, 10 * 1024**3, 25 * 1024**3)] == ["1 MiB", "5 MiB", "10.0 GiB", "25.0 GiB"]
