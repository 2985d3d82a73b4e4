"""The speed bench at its smallest, and the eager recipes that it compares with."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import eager, sets, speed
from services.unlearning.mechanisms.importance import Measure, importance
from services.unlearning.method import METHODS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> speed.Scene:
    METHODS.discover("services.unlearning.methods")
    return speed.Scene.of(sets.load("digits", records=600), 4)


@pytest.mark.soak
def test_lines_against_retraining_say_what_they_were_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = tmp_path / "speed.jsonl"

    code = speed.main(["--data", "digits", "--records", "300", "--repeats", "1", "--json", str(lines)])

    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert code == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row["detail"]["method"] for row in rows] == ["lra_npp", "ssd", "ssd", "unsir", "bad_teacher"]
    assert all(row["ratio"] > 0 and row["detail"]["records"] == 300 for row in rows)
    assert all(row["detail"]["reached"] == (row["ratio"] >= row["goal"]) for row in rows)


def test_what_is_cached_before_a_run_is_found_by_it_in_every_form_that_it_tries(scene: speed.Scene):
    for parameters in ({}, speed.PAPER_SSD, {"importance": "per_sample", "alpha": 2.0}):
        cache = speed.filled(scene, parameters, 200)
        run = scene.run()

        speed.method_of("ssd", parameters, cache).unlearn(copy.deepcopy(scene.original), scene.splits.for_method(), scene.task, run)

        assert run.notes["rows"]["importance_all"] == 0


@pytest.mark.soak
def test_lines_against_the_released_recipes_part_arithmetic_from_overhead(scene: speed.Scene):
    rows = list(speed.against_released(scene, repeats=1))

    assert [row.detail["method"] for row in rows] == ["unsir", "bad_teacher", "ssd", "gkt"]
    assert all(abs(row.detail["saved_arithmetic"] * row.detail["removed_overhead"] / row.ratio - 1) < 0.05 for row in rows)


@pytest.mark.soak
def test_growth_runs_to_the_most_that_is_asked_for(scene: speed.Scene, tmp_path: Path):
    from bench.plots import draw_growth

    points = speed.growth(scene, (1, 9), (1, 4), 1)

    assert {(point["method"], point["kind"]) for point in points} == {
        ("bad_teacher", "classes"), ("bad_teacher", "subjects"), ("ssd", "classes"), ("ssd", "subjects"), ("unsir", "classes"),
    }  # fmt: skip
    assert [row.detail["points"][-1]["count"] for row in speed.growth_rows(scene, points)] == [9, 4, 9, 4, 9]
    assert draw_growth(points, "digits", tmp_path).read_text().startswith("<?xml")


def test_the_seconds_of_a_refusal_are_no_cost_of_forgetting(capsys: pytest.CaptureFixture[str]):
    made = [{"method": "ssd", "kind": "classes", "count": count, "cpu_s": 1.0} for count in (1, 2)]
    refused = [{"method": "unsir", "kind": "classes", "count": count, "cpu_s": 0.01, "ended": "noise needs real numbers"} for count in (1, 2)]

    assert speed.finished([*made, *refused]) == made
    assert capsys.readouterr().err == "no row for unsir, classes: noise needs real numbers\n"


def test_the_eager_importance_is_that_of_the_product(scene: speed.Scene):
    part = scene.bench.train.take(torch.arange(128))
    ours = importance(scene.original, part, scene.task, scene.run(), Measure("loss", "batch", 64), stage="test")

    theirs = eager.importances(scene.original, speed.records_of(part), batch=64)

    assert all(torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-10) for name, value in ours.items())


def test_the_eager_teachers_bring_the_class_near_to_knowing_nothing(scene: speed.Scene):
    model: nn.Module = scene.run().fresh_model("student")
    model.load_state_dict(scene.original.state_dict())
    forget, retain = (speed.records_of(part) for part in (scene.splits.forget, scene.splits.retain))
    incompetent = scene.run().fresh_model("incompetent")

    eager.bad_teacher(model, incompetent, forget, retain, lr=1e-3, epochs=10, batch=64)

    shown = scene.splits.forget.batch(torch.arange(len(scene.splits.forget)))
    with torch.no_grad():
        target = incompetent(shown.x).softmax(dim=1)
        before, after = (float((each.eval()(shown.x).softmax(dim=1) - target).norm(dim=1).mean()) for each in (scene.original, model))
    assert after < 0.5 * before
