"""The original is what it was, the readings are of the weights that the run put out, and the time of a method is the method's alone."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from services.errors import IntegrityBroken
from services.jobs.compute import unlearn as unlearning
from services.jobs.compute.context import Bench
from services.jobs.compute.evaluate import evaluate
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE, READINGS_FILE, RUN_FILE
from services.jobs.pipeline import Pipeline
from services.unlearning.method import METHODS
from tests.unit.jobs.test_bench_cache import bench_of, splits_of

torch.set_num_threads(1)


def test_an_evaluation_notes_the_digest_of_the_weights_that_it_judged(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, splits_of(range(20), 20))
    reading = {"kind": "metric", "name": "accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
    plan = {"reference": "none", "readings": [reading], "seeds": {"evaluate": 3}, "level": 0.9, "alpha": 0.05}
    bench.spec = bench.spec.model_copy(update={"plan": plan})
    bench.save(bench.architecture.fresh(4), CANDIDATE_FILE)
    bench.note(notes={})

    evaluate(bench)

    assert json.loads((tmp_path / RUN_FILE).read_text())["judged"] == hashlib.sha256((tmp_path / CANDIDATE_FILE).read_bytes()).hexdigest()
    assert json.loads((tmp_path / READINGS_FILE).read_text())[0]["split"] == "forget_train"


class Judging(Pipeline):
    """A pipeline that stands before its step `evaluate`; what the runner noted is given."""

    def __init__(self, folder: Path, judged: str) -> None:
        (folder / READINGS_FILE).write_text("[]")
        (folder / RUN_FILE).write_text(json.dumps({"judged": judged}))
        kept = SimpleNamespace(step=lambda _name: 1.0)
        self.shop = cast("Any", SimpleNamespace(folder=folder, compute=kept, keep=lambda _path: {"digest": "cc"}))
        self.done = {"unlearn": {"candidate": {"digest": "aa"}}}
        self.finished: list[str] = []

    def _open(self) -> None: ...

    def _start(self, name: str) -> None: ...

    def _finish(self, name: str, *_output: Any, **_more: Any) -> None:
        self.finished.append(name)


@pytest.mark.parametrize("judged", ["aa", "bb"])
def test_readings_of_other_weights_than_the_runs_are_refused(judged: str, tmp_path: Path) -> None:
    pipeline = Judging(tmp_path, judged)

    if judged == "aa":
        pipeline._compute("evaluate")
        assert pipeline.finished == ["evaluate"]
        return
    with pytest.raises(IntegrityBroken, match="not of the weights"):
        pipeline._compute("evaluate")
    assert not pipeline.finished


def test_the_time_of_a_method_holds_neither_loading_nor_saving_nor_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Slow(Bench):
        """Loading takes 100 s and saving 1,000 s of the clock."""

        def model(self, file: str) -> Any:
            now[0] += 100
            return super().model(file)

        def save(self, model: Any, file: str) -> None:
            now[0] += 1000
            super().save(model, file)

    plain = bench_of(tmp_path, splits_of(range(20), 20), method="fine_tune")
    bench = Slow(**{name: getattr(plain, name) for name in Bench.__dataclass_fields__})
    monkeypatch.setattr(unlearning, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    family = METHODS["fine_tune"]
    real = family.unlearn
    monkeypatch.setattr(family, "unlearn", lambda *given: (now.__setitem__(0, now[0] + 7), real(*given))[1])

    unlearning.unlearn(bench)

    assert json.loads((tmp_path / RUN_FILE).read_text())["method_seconds"] == 7
    assert now[0] >= 1107


@pytest.mark.parametrize("touched", [False, True])
def test_a_method_that_changes_the_weights_of_the_original_puts_out_no_candidate(
    touched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path, splits_of(range(20), 20), method="fine_tune")
    family = METHODS["fine_tune"]
    real = family.unlearn

    def reaching_out(*given: Any) -> Any:
        unlearned = real(*given)
        bench.save(unlearned if touched else bench.model(BASE_FILE), BASE_FILE)
        return unlearned

    monkeypatch.setattr(family, "unlearn", reaching_out)

    if not touched:  # the same weights written again are the same weights
        unlearning.unlearn(bench)
        assert (tmp_path / CANDIDATE_FILE).exists()
        return
    with pytest.raises(IntegrityBroken, match="the weights of the original changed while the method ran"):
        unlearning.unlearn(bench)
    assert not (tmp_path / CANDIDATE_FILE).exists()
