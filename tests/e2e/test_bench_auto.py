"""The bench of requests that leave the method to the service: drawn from a seed, routed, judged, and taken up the ladder."""

import json
from pathlib import Path

import pytest
import torch

from bench import auto
from bench.__main__ import main

torch.set_num_threads(1)


def test_requests_are_drawn_from_the_seed_and_of_every_kind():
    held = {name: auto.small(name) for name in ("digits", "breast_cancer")}
    drawn = auto.draw(held, 8, seed=1)
    assert drawn == auto.draw(held, 8, seed=1) != auto.draw(held, 8, seed=2)
    assert {(one.data, one.kind) for one in drawn[:6]} == {(data, kind) for data in held for kind in ("class", "subset", "subject")}
    assert {one.seed for one in drawn[:6]} == {100}
    assert {one.seed for one in drawn[6:]} == {101}
    assert all((one.label is None) == (one.count is not None) == (one.kind != "class") for one in drawn)


@pytest.mark.soak
def test_a_run_prints_every_rung_and_both_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = tmp_path / "rows.jsonl"
    options = ["--requests", "2", "--seed", "1", "--data", "digits,breast_cancer", "--threads", "1", "--json", str(lines), "--cache", str(tmp_path)]

    assert main(["auto", *options]) == 0

    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [row["request"] for row in rows] == [1, 2]
    assert all(row["tries"][0]["method"] == row["rungs"][0] for row in rows)
    assert all(row["reason"] and row["verdict"] == row["tries"][-1]["verdict"] == "passed" for row in rows)
    assert (found["requests"], found["passed_end"]) == (2, {"share": 1.0, "goal": 1.0, "reached": True})
    assert found["first_exact"]["requests"] + found["first_not_exact"]["requests"] == 2
    assert "rungs with their verdicts" in printed.err


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"verdict": "passed"}, False),
        ({"verdict": "inconclusive"}, True),
        ({"verdict": "failed leak"}, True),
        ({"verdict": "failed integrity"}, False),
        ({"verdict": "stopped", "code": "diverged"}, True),
        ({"verdict": "stopped", "code": "withheld"}, False),
    ],
)
def test_the_next_rung_follows_where_the_service_would_go_on(row: dict[str, str], expected: bool):
    assert auto.goes_on(row) is expected


def test_a_set_that_is_not_measured_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["auto", "--data", "digits,tofu"])
    assert "not measured here: tofu" in capsys.readouterr().err
