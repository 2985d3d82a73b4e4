"""The runner's side of a generator's job: a candidate that is handed back without its discriminator is another network than the base."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import torch

from models_store import tensors
from models_store.manifest import canonical
from services.errors import UnsafeCheckpoint
from services.jobs.compute import evaluate as evaluation
from services.jobs.compute.context import Bench
from services.jobs.compute.unlearn import unlearn
from services.jobs.compute.verify import facts_of
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE, READINGS_FILE, RUN_FILE, JobSpec, Seeds
from services.jobs.steps import materialize, publish
from services.learning.architecture import Architecture
from services.learning.architectures.mlp_gan import MLPGAN
from services.learning.cache import NoCache
from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.tasks.image_generation import ImageGeneration
from services.model_versions import architecture as networks
from services.unlearning.method import METHODS

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")

SMALL = {"outputs": 3, "width": 16, "latent": 4}
RECIPE = Recipe(learning_rate=2e-3, epochs=3, batch_size=30)
PARAMETERS = {
    "rounds_planned": 10,
    "rounds_cap": 10,
    "n_latent_draws": 500,
    "n_check": 200,
    "fid_ratio_max": 10.0,
    "rate_target": 1.0,
    "drop_d": True,
}
READINGS = [
    {"kind": "attack", "name": "gan_attack", "split": "forget_train", "parameters": {"inv_steps": 10, "inv_restarts": 1, "inverted": 20}},
    {"kind": "metric", "name": "class_rate", "split": "forget_train", "parameters": {"samples": 200}},
]


def images(count: int, seed: int, prefix: str) -> Split:
    centres = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    y = torch.arange(count) % 3
    x = (centres[y] + torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) * 0.25).clamp(-1, 1)
    return Split(x, y, tuple(f"{prefix}-{row:04}" for row in range(count)))


def bench_of(folder: Path, network: Architecture, *, method: str = "cascaded_gan", params: dict[str, Any] | None = None) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = images(180, 1, "train"), images(90, 2, "held-out")
    parts = [train.with_labels((2,), keep=keep) for keep in (True, False)]
    splits = Splits(*parts, *(held_out.take(rows) for rows in torch.arange(90).chunk(3)), "class", (2,))
    spec = JobSpec(
        job_id=UUID(int=1), kind="unlearn", round=1, task="image_generation", architecture="mlp_gan", architecture_params=SMALL, adapter="image",
        adapter_params={}, recipe=RECIPE.model_dump(), method=method, params=params or {}, request_kind="class",
        plan={"reference": "retrained", "readings": READINGS, "seeds": {"evaluate": 2}, "utility": None}, seeds=Seeds(unlearn=1, evaluate=2),
        device="cpu", deadline_s=100,
    )  # fmt: skip
    bench = Bench(folder, spec, torch.device("cpu"), network, RECIPE, ImageGeneration(3), splits, lambda _: None, lambda: False, NoCache())
    bench.save(network.fresh(0), BASE_FILE)
    return bench


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench on which a cascade has handed back a generator alone."""
    bench = bench_of(tmp_path_factory.mktemp("job"), MLPGAN(MLPGAN.Parameters(**SMALL)), params=PARAMETERS)
    unlearn(bench)
    return bench


def test_the_candidate_holds_no_discriminator_and_is_built_by_what_the_run_noted(dropped: Bench) -> None:
    assert {name.split(".")[0] for name in tensors.load(dropped.folder / CANDIDATE_FILE)} == {"generator"}
    assert dropped.model(CANDIDATE_FILE).discriminator is None
    assert dropped.model(BASE_FILE).discriminator is not None
    assert facts_of(dropped).differs_from_parent


def test_it_is_evaluated_beside_an_original_and_a_reference_that_have_one(dropped: Bench) -> None:
    evaluation.evaluate(dropped)

    found = {reading["name"]: reading for reading in json.loads((dropped.folder / READINGS_FILE).read_text())}
    assert [found["gan_attack"][column]["detail"]["score"] for column in ("before", "after", "reference")] == [
        "discriminator",
        "inversion",
        "discriminator",
    ]
    assert found["class_rate"]["after"]["value"] is not None


def test_a_file_that_does_not_say_so_is_refused(dropped: Bench, tmp_path: Path) -> None:
    other = bench_of(tmp_path, MLPGAN(MLPGAN.Parameters(**SMALL)))
    (tmp_path / CANDIDATE_FILE).write_bytes((dropped.folder / CANDIDATE_FILE).read_bytes())

    with pytest.raises(UnsafeCheckpoint, match="tensors missing"):
        other.model(CANDIDATE_FILE)


def test_the_manifest_says_what_network_it_is_and_the_next_job_builds_that_one(dropped: Bench) -> None:
    run = json.loads((dropped.folder / RUN_FILE).read_text())
    base = SimpleNamespace(number=1, manifest_digest=None, manifest=None, recipe=RECIPE.model_dump())
    work: Any = SimpleNamespace(
        job=SimpleNamespace(kind="unlearn", method="cascaded_gan", seeds={"unlearn": 1}, params={}),
        model=SimpleNamespace(name="painter", task="image_generation", architecture="mlp_gan", architecture_params=SMALL),
        dataset=SimpleNamespace(name="drawn"), dataset_version=SimpleNamespace(number=1), base=base, zero_shot=False,
    )  # fmt: skip
    made = {"run": run, "candidate": {"digest": "ab" * 32, "size_bytes": 1}}

    manifest = publish.compose(work, made, next_digest=None)
    work.base = SimpleNamespace(manifest=json.loads(canonical(manifest)))

    assert manifest.architecture.parameters == {**SMALL, "discriminator": False}
    assert materialize.architecture_of(work) == {**SMALL, "discriminator": False}
    work.job.kind = "train"
    assert materialize.architecture_of(work) == SMALL
    assert networks.after(SMALL, {"steps": {}}) == SMALL


def test_a_first_version_without_a_discriminator_is_measured_without_a_loss(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, MLPGAN(MLPGAN.Parameters(**SMALL, discriminator=False)))
    bench.save(bench.architecture.fresh(1), CANDIDATE_FILE)

    evaluation.measure(bench)

    assert json.loads((tmp_path / READINGS_FILE).read_text())["train"] == {"n": 120, "loss": None}
