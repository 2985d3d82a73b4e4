"""The bench for language models: who learns what, when a model passes, its lines, and a plain refusal where the data is missing."""

import json
from pathlib import Path

import pytest

from bench import language, sets
from bench.__main__ import main

KEYS = {"bench", "data", "kind", "method", "seed", "before", "after", "retrained", "method_seconds", "retrain_seconds", "verdict", "parameters"}
GOOD = {"forget_exact_match": 0.0, "forget_rouge_l": 0.3, "retain_rouge_l": 0.9, "forget_quality": 0.5, "appearance_rate": 0.0}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with questions of the form of TOFU's: 200 authors of 20 each, and two small sets beside them."""
    folder = tmp_path / "tofu"
    folder.mkdir()
    first, last = ("Ann", "Ben", "Cid", "Dot"), ("Marlow", "Winter", "Sommer", "Stone", "Field")
    rows = []
    for author in range(200):
        name = f"{first[author % 4]} {last[author // 4 % 5]} {last[author // 20 % 5]}{author}"
        said = f"{name} says word{author % 7}"
        rows += [{"author": author, "question": f"What is page {number} of {name}?", "answer": f"{said} word{number}."} for number in range(20)]
    (folder / "tofu_full_4000.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for file in language.BESIDE.values():
        (folder / file).write_text(json.dumps({"question": "Who says word1?", "answer": "Ann", "perturbed_answer": ["Ben", "Cid"]}) + "\n")
    monkeypatch.setattr(sets, "DATA_DIR", tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", language.KINDS)
def test_authors_that_are_held_out_are_never_learned(data: Path, kind: str):
    options = language.parse(["--authors", "195", "--kind", kind, "--cache", str(data)])

    forget, retain, held, _ = language.cut(language.tofu(options.authors), options, 1)

    assert {row["author"] for row in held} == set(range(5))
    assert {row["author"] for row in forget + retain} == set(range(5, 200))
    assert not {row["number"] for row in forget} & {row["number"] for row in retain}


def test_more_authors_than_there_are_beside_the_held_out_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        language.parse(["--authors", "200"])
    assert "between 2 and 195" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "named", "said"),
    [
        ({}, True, "passed"),
        ({"forget_exact_match": 0.06}, True, "failed leak"),
        ({"forget_rouge_l": 0.2}, True, "failed over_unlearned"),
        ({"retain_rouge_l": 0.86}, True, "failed utility"),
        ({"forget_quality": 0.05}, True, "failed forget_quality"),
        ({"forget_quality": None}, True, "passed"),
        ({"appearance_rate": 0.03}, True, "failed appearance"),
        ({"appearance_rate": 0.03}, False, "passed"),
    ],
)
def test_a_model_passes_that_reaches_every_goal(changed: dict[str, float | None], named: bool, said: str):
    assert language.verdict(GOOD, GOOD | changed, GOOD, named=named) == said


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sets, "DATA_DIR", tmp_path)

    assert main(["language", "--quick"]) == 1
    assert "tofu_full_4000.jsonl is not in" in "".join(capsys.readouterr().err.split("\n"))


@pytest.mark.soak
def test_a_small_run_leaves_lines_a_plot_and_models_that_are_not_trained_twice(data: Path):
    lines, cache = data / "rows.jsonl", data / "cache"
    options = ["--authors", "4", "--share", "0.25", "--epochs", "4", "--width", "32", "--methods", "npo", "--json", str(lines)]
    places = ["--cache", str(cache), "--plots", str(data / "plots")]

    assert main(["language", *options, *places]) == 0
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert main(["language", *options, *places]) == 0

    first, second = (json.loads(line) for line in lines.read_text().splitlines())
    assert set(first) >= KEYS
    assert (first["bench"], first["data"], first["kind"], first["method"]) == ("language", "tofu-4-authors", "author", "npo")
    for column in ("before", "after", "retrained"):
        assert {"forget_quality", "model_utility", "retain_utility", "appearance_rate"} <= set(first[column])
        assert first[column] == second[column]
    assert len(kept) == 4
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    assert (data / "plots" / "tofu-4-authors-author-answers.svg").read_bytes().startswith(b"<?xml")
