"""What a runner drew, as rows: only closed forms come through."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.audit.figure_forms import data_digest
from services.jobs.steps.figures import figure_rows

AXIS = {"label": "x", "scale": "linear", "low": None, "high": None}
HISTOGRAM = {
    "kind": "histogram", "title": "T", "caption": "C.", "note": "", "x": AXIS, "y": AXIS, "edges": ["0", "0.5", "1"],
    "panels": [{"title": "forgotten", "n": 20, "series": [{"name": "original", "role": "original", "counts": [5, 15]}]}],
}  # fmt: skip


def rows(tmp_path: Path, content: Any) -> list[dict[str, Any]]:
    path = tmp_path / "figures.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return figure_rows(path)


def test_a_figure_becomes_a_row_with_the_digest_of_its_canonical_json(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, [{"name": "loss_histogram", "document": HISTOGRAM}])
    assert row == {"name": "loss_histogram", "data": HISTOGRAM, "digest": data_digest(HISTOGRAM), "reason": None}


def test_a_figure_that_was_left_out_keeps_its_reason(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, [{"name": "roc", "reason": "too_few_nonmembers"}])
    assert row == {"name": "roc", "data": None, "digest": None, "reason": "too_few_nonmembers"}


def changed(**members: Any) -> dict[str, Any]:
    return {**HISTOGRAM, **members}


PANEL = HISTOGRAM["panels"][0]


@pytest.mark.parametrize(
    "document",
    [
        changed(kind="pie"),
        changed(secret="x"),
        changed(edges=["0", "1"]),
        changed(edges=["0", "0", "1"]),
        changed(edges=[0.0, 0.5, 1.0]),
        changed(edges=["0", "nan", "1"]),
        changed(panels=[{**PANEL, "n": 15, "series": [{"name": "o", "role": "original", "counts": [5, 10]}]}]),
        changed(panels=[{**PANEL, "series": [{"name": "o", "role": "original", "counts": [5, 5]}]}]),
        changed(panels=[]),
        changed(title="x" * 300),
        {"kind": "images", "title": "T", "caption": "C.", "sheets": [{"title": "a", "role": "original", "png": "bm8gcG5n"}]},
        None,
        [],
    ],
)  # fmt: skip
def test_what_is_of_no_closed_form_is_left_out(tmp_path: Path, document: Any) -> None:
    assert rows(tmp_path, [{"name": "roc", "document": document}])[0]["reason"] == "malformed"


@pytest.mark.parametrize("content", ["", "{", "{}", "null", "[1]", '[{"name": 3}]', '[{"name": "../x", "reason": "r"}]'])
def test_a_file_that_is_none_gives_no_row(tmp_path: Path, content: str) -> None:
    assert rows(tmp_path, content) == []
    assert figure_rows(tmp_path / "missing.json") == []


def test_a_name_that_comes_twice_counts_once(tmp_path: Path) -> None:
    assert len(rows(tmp_path, [{"name": "roc", "reason": "a"}, {"name": "roc", "reason": "b"}])) == 1
