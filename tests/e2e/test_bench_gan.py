"""The bench for image generators: as many records as are asked for, its lines and its sheet."""

import json
from pathlib import Path

import pytest

from bench import gan
from bench.__main__ import main

KEYS = {"bench", "data", "kind", "method", "seed", "before", "after", "retrained", "method_seconds", "retrain_seconds", "verdict", "parameters"}


@pytest.mark.soak
def test_it_trains_on_as_many_records_as_it_is_asked_to_or_refuses(tmp_path: Path):
    asked = [gan.load(gan.parse(["--data", "digits", "--kind", kind, *more])) for kind, more in (("item", ["--records", "900"]), ("item", []))]

    assert [len(held.train) for held in asked] == [900, 500]
    assert len(gan.load(gan.parse(["--data", "digits", "--kind", "item", "--quick", "--records", "900"])).train) == 500
    with pytest.raises(SystemExit, match="digits has 1200 records to train on"):
        gan.load(gan.parse(["--data", "digits", "--records", "60000"]))


@pytest.mark.soak
def test_a_small_run_leaves_lines_with_the_numbers_of_all_three_models_and_a_sheet(tmp_path: Path):
    lines = tmp_path / "rows.jsonl"
    options = ["--data", "digits", "--quick", "--epochs", "3", "--methods", "fine_tune", "--json", str(lines)]

    assert main(["gan", *options, "--plots", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 0

    (row,) = (json.loads(line) for line in lines.read_text().splitlines())
    assert set(row) >= KEYS
    assert (row["bench"], row["data"], row["kind"], row["method"], row["records"]) == ("gan", "digits", "class", "fine_tune", 1200)
    for column in ("before", "after", "retrained"):
        assert set(gan.READINGS["class"]) <= set(row[column])
    assert (tmp_path / "gan-digits-class-seed-1.png").read_bytes().startswith(b"\x89PNG")
