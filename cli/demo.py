"""A demo: deletion requests on real data, as one entry of `cli.demos` says, through the public HTTP API of a stack of its own."""

import base64
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli import verifier
from cli.client import Client, DigestWrong, Refused, TookTooLong, sha256_of, statement_of
from cli.demos import CLASSIFICATION, SUBJECT_TYPE, Demo
from cli.embedded.processes import NotReady
from cli.embedded.stack import AlreadyRunning, Stack

PAGES = {".html": "text/html", ".pdf": "application/pdf"}


def run(output: Path, home: Path, demo: Demo = CLASSIFICATION) -> int:
    """Run a demo; return 0 when its requests completed with verdict passed, else 1."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    stack = Stack(home)
    client: Client | None = None
    try:
        with console.status("starting PostgreSQL, Redis, SeaweedFS, gateway, worker, control, signer"):
            stack.start()
        console.print(f"stack ready after {time.monotonic() - started:.1f} s at {stack.url}")
        client = Client(stack.url, stack.api_key)
        parquet = output / f"{demo.dataset}.parquet"
        demo.source.write(parquet)
        register_dataset(
            client, demo.dataset, parquet, adapter=demo.source.adapter, adapter_params=demo.source.adapter_params, entities=demo.entities
        )
        console.print(f"dataset registered: {demo.source.told}")
        train(client, console, demo)
        rows = [serve(client, console, output, demo, kind=kind, scope=scope) for kind, scope in demo.requests.items()]
        console.print(check_reports(client, output))
        (output / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
        console.print(table_of(rows, demo))
        console.print(f"results in {output}/; all of it took {time.monotonic() - started:.0f} s")
        return 0 if all(row["status"] == "completed" and row["verdict"] == "passed" for row in rows) else 1
    except (AlreadyRunning, NotReady, Refused, DigestWrong, TookTooLong) as error:
        console.print(f"[red]{type(error).__name__}:[/red] {error}", markup=True, highlight=False)
        for name in ("gateway", "control", "worker", "signer"):
            child = stack.children.get(name)
            if child is not None:
                print(f"--- end of the log of {name}\n{child.tail()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if client is not None:
            client.close()
        stack.stop()


def register_dataset(
    client: Client,
    name: str,
    parquet: Path,
    *,
    adapter: str,
    adapter_params: Mapping[str, Any],
    entities: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Register a dataset with one version from a parquet file, and index its subjects from the column `subject_id`.

    `entities` are the names that a record speaks of, by record id; they go into the same index.
    """
    import pyarrow.parquet as pq

    types = [SUBJECT_TYPE, *(["entity"] if entities else [])]
    client.post("/datasets", {"name": name, "adapter": adapter, "adapter_params": dict(adapter_params), "subject_types": types})
    declared = [{"path": parquet.name, "size_bytes": parquet.stat().st_size, "sha256": sha256_of(parquet)}]
    version = client.post(f"/datasets/{name}/versions", {"files": declared})
    for upload in version["uploads"]:
        client.upload(upload["url"], parquet, upload.get("headers"))
    client.post(f"/datasets/{name}/versions/{version['version']}/complete", {})
    client.wait(f"/datasets/{name}/versions/{version['version']}", settled, timeout_s=60)

    def named(record: str) -> list[dict[str, str]]:
        return [{"type": "entity", "value": name} for name in (entities or {}).get(record, ())]

    columns = pq.read_table(parquet, columns=["record_id", "subject_id"]).to_pydict()
    rows = [
        {"record_id": record, "identifiers": [{"type": SUBJECT_TYPE, "value": subject}, *named(record)]}
        for record, subject in zip(columns["record_id"], columns["subject_id"], strict=True)
    ]
    for start in range(0, len(rows), 5000):
        client.post(f"/datasets/{name}/versions/{version['version']}/subjects", {"rows": rows[start : start + 5000]})


def settled(document: Mapping[str, Any]) -> bool:
    """Say whether a version is ready; raise Refused where it failed its checks."""
    if document["status"] == "failed":
        raise Refused(422, document.get("error") or {"code": "failed", "detail": "the version failed its checks"})
    return document["status"] == "ready"


def train(client: Client, console: Console, demo: Demo) -> dict[str, Any]:
    """Register the model and train version 1 by a job."""
    client.post("/models", {"name": demo.model, **demo.network})
    body = {"dataset": demo.dataset, "dataset_version": 1, "recipe": dict(demo.recipe), "seed": demo.seed}
    job = client.post(f"/models/{demo.model}/training-runs", body)
    return follow_job(client, console, job["id"], f"training {demo.model} version 1")


def follow_job(client: Client, console: Console, job: str, title: str) -> dict[str, Any]:
    """Follow a job with a progress bar. Raises Refused where it does not succeed."""
    with Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task(title, total=None, step="queued")

        def shown(document: Mapping[str, Any]) -> None:
            progress = document.get("progress") or {}
            total = progress.get("total")
            bars.update(bar, total=total, completed=progress.get("done") or 0, step=document.get("step") or document["state"])

        document = client.wait(f"/jobs/{job}", lambda d: bool(d["done"]) or d["state"] == "needs_attention", timeout_s=600, seen=shown)
        bars.update(bar, total=1, completed=1, step=document["state"])
    if document["state"] != "succeeded":
        raise Refused(500, document.get("error") or {"code": document["state"], "detail": f"job {job} ended {document['state']}"})
    return document


def serve(client: Client, console: Console, output: Path, demo: Demo, *, kind: str, scope: Mapping[str, Any]) -> dict[str, Any]:
    """POST one deletion request, follow it, download the checkpoint and the report, check both, and return the summary row."""
    started = time.monotonic()
    body = {"regulation": "gdpr", "policy": "demo", "scope": dict(scope), "identity": {"mode": "asserted_by_controller"}, "method": "auto"}
    created = client.post("/deletion-requests", body)
    request = created["id"]
    with Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task(f"forgetting by {kind}", total=None, step=created["status"])

        def shown(document: Mapping[str, Any]) -> None:
            jobs = client.get("/jobs", request=request, limit=1, sort="-created_at")["items"]
            progress = (jobs[0].get("progress") or {}) if jobs else {}
            step = f"{jobs[0]['method']}: {jobs[0].get('step') or jobs[0]['state']}" if jobs else document["status"]
            bars.update(bar, total=progress.get("total"), completed=progress.get("done") or 0, step=step)

        settled_states = {"needs_attention", "awaiting_release"}
        done = client.wait(f"/deletion-requests/{request}", lambda d: bool(d["done"]) or d["status"] in settled_states, timeout_s=600, seen=shown)
        bars.update(bar, total=1, completed=1, step=done["status"])
    total_s = time.monotonic() - started
    if done["status"] != "completed":
        raise Refused(500, {"code": done["status"], "detail": json.dumps(done.get("attention") or done.get("error"))})
    jobs = client.get("/jobs", request=request, limit=50, sort="-created_at")["items"]
    newest = client.get(f"/jobs/{jobs[0]['id']}")
    for rung in reversed(jobs):
        console.print(told_of(rung), highlight=False)
    version = done["result"]["versions"][0]["version"]
    manifest = client.get(f"/models/{demo.model}/versions/{version}")
    checkpoint = next(file for file in manifest["manifest"]["files"] if file["path"].endswith(".safetensors"))
    path = output / f"{demo.model}-v{version}.safetensors"
    client.download(f"/models/{demo.model}/versions/{version}/files/{checkpoint['path']}", path, sha256=checkpoint["sha256"])
    report = fetch_report(client, request, output / f"audit-report-{kind}.json", digest=done["result"]["audit_report"]["digest"])
    for name, document in (("request", done), ("job", newest), ("version", manifest)):
        (output / f"{name}-{kind}.json").write_text(json.dumps(document, indent=2) + "\n")
    return {**summary_of(report, demo), "request_id": request, "kind": kind, "status": done["status"], "method": newest["method"]} | {
        "base_version": newest["base_version"],
        "published_version": version,
        "checkpoint_sha256": sha256_of(path),
        "total_seconds": round(total_s, 2),
    }


def told_of(rung: Mapping[str, Any]) -> str:
    """Return the line on one rung: the method, what became of it (a verdict, where one ended it), and why it was chosen."""
    error = rung.get("error") or {}
    codes = ", ".join(error.get("codes") or ())
    ended = error.get("verdict") or rung["state"]
    return f"  rung {rung['rung']}: {rung['method']} {ended}{f' ({codes})' if codes else ''}. Chosen because: {(rung.get('choice') or {}).get('reason', '')}"


def fetch_report(client: Client, request: str, path: Path, *, digest: str) -> dict[str, Any]:
    """Download the signed report, compare the digest of its statement with the one the request shows, and lay its HTML and PDF beside it."""
    answer = client.http.get(f"/deletion-requests/{request}/audit-report", headers={"Accept": "application/json"})
    path.write_bytes(answer.content)
    payload = base64.b64decode(answer.json()["envelope"]["payload"])
    if hashlib.sha256(payload).hexdigest() != digest.removeprefix("sha256:"):
        raise DigestWrong(f"the statement of {request} has sha256 {hashlib.sha256(payload).hexdigest()}, the request names {digest}")
    for suffix, media_type in PAGES.items():
        path.with_suffix(suffix).write_bytes(client.form_of(f"/deletion-requests/{request}/audit-report", media_type))
    return statement_of(answer.json())


def check_reports(client: Client, output: Path) -> str:
    """Leave the log's key as log.vkey, check every report offline against it, and return the line to tell; raise DigestWrong where one is invalid."""
    key = output / "log.vkey"
    key.write_text(client.log_keys())
    for report in sorted(output.glob("audit-report-*.json")):
        said: list[str] = []
        if verifier.verify(verifier.Given(report, key), said.append) != verifier.HOLDS:
            raise DigestWrong(f"{report.name} does not verify:\n" + "\n".join(said))
    return f"reports verified offline; once more: lethe verify {output}/audit-report-subject.json --log-key {key}"


def summary_of(report: Mapping[str, Any], demo: Demo) -> dict[str, Any]:
    """Take the numbers of the summary from the audit report."""
    predicate = report["predicate"]
    verification = predicate["verification"][-1]
    processing = predicate["processing"][-1]
    retrained = [run["retrain_seconds"] for run in predicate["processing"] if run.get("retrain_seconds") is not None]  # once, then out of the cache

    def numbers(found: list[Mapping[str, Any]], name: str, split: str) -> dict[str, float | None]:
        for reading in found:
            if reading["name"] == name and reading["split"] == split:
                values = (reading.get("before"), reading.get("after"), reading.get("reference"))
                return dict(zip(("before", "after", "retrained"), (None if value is None else float(value) for value in values), strict=True))
        return {"before": None, "after": None, "retrained": None}

    return {
        **{one.name: numbers(verification[one.kind], one.reading, one.split) for one in demo.shown},
        "verdict": predicate["verdict"],
        "sentence": predicate["sentence"],
        "method_seconds": float(processing["method_seconds"]),
        "retrain_seconds": float(retrained[-1]) if retrained else None,
    }


def table_of(rows: list[dict[str, Any]], demo: Demo) -> Table:
    """Return the summary as a table a person can read."""
    table = Table(title=demo.title)
    for column in ("request", "method", "version", *(one.heading for one in demo.shown), "verdict", "method s (retraining)", "total s"):
        whole = max(len(row["method"]) for row in rows) if column == "method" else None
        table.add_column(column, overflow="fold", min_width=whole)

    def triple(values: Mapping[str, float | None]) -> str:
        if all(value is None for value in values.values()):
            return "-"  # the report has no such reading for this kind of request
        before, after, retrained = ("-" if value is None else f"{value:.3f}" for value in values.values())
        return f"{before} -> {after} ({retrained})"

    for row in rows:
        table.add_row(
            row["kind"],
            row["method"],
            f"{row['base_version']} -> {row['published_version']}",
            *(triple(row[one.name]) for one in demo.shown),
            row["verdict"],
            f"{row['method_seconds']:.2f} ({'-' if row['retrain_seconds'] is None else format(row['retrain_seconds'], '.2f')})",
            f"{row['total_seconds']:.1f}",
        )
    return table
