"""A method whose parameters decide what a run may claim: the catalogue says both, the run's file one, and the verdict goes by that."""

import json
from pathlib import Path

import pytest
import torch

from services.jobs.compute.plugins import catalogue, load
from services.jobs.compute.unlearn import unlearn
from services.jobs.compute.verify import facts_of
from services.jobs.messages import RUN_FILE
from services.learning.data import Splits
from tests.unit.jobs.test_bench_cache import bench_of, rows

torch.set_num_threads(1)


@pytest.mark.parametrize(("trainable", "claimed"), [("head", "suppression"), ("all", "approximate")])
def test_the_verdict_goes_by_what_the_run_of_concept_poisoning_claims(trainable: str, claimed: str, tmp_path: Path) -> None:
    whole, numbers = rows(), torch.arange(569)
    trained, held_out = whole.take(numbers[:400]), whole.take(numbers[400:])
    forget, retain = (trained.with_labels((1,), keep=keep) for keep in (True, False))
    splits = Splits(forget, retain, held_out, held_out, held_out, "class", (1,))
    bench = bench_of(tmp_path, splits, method="concept_poisoning", params={"trainable": trainable, "max_epochs": 1, "min_steps": 0})
    bench.spec = bench.spec.model_copy(update={"request_kind": "class"})

    unlearn(bench)

    assert json.loads((tmp_path / RUN_FILE).read_text())["guarantee"] == claimed
    assert facts_of(bench).guarantee == claimed


def test_the_catalogue_names_every_guarantee_that_a_run_may_claim() -> None:
    load([])
    methods = {item.name: item for item in catalogue() if item.kind == "method"}

    assert methods["concept_poisoning"].guarantee == "suppression"
    assert methods["concept_poisoning"].facts["guarantees"] == ["approximate", "suppression"]
    assert "`suppression` with the head alone" in methods["concept_poisoning"].facts["summary"]
    assert "guarantees" not in methods["retrain"].facts  # one that claims the same in every run says so once
