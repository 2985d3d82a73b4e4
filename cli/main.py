"""The command `lethe`."""

import hashlib
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.import_commands import app as import_app

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Right-to-be-forgotten requests answered by machine unlearning.")
app.add_typer(import_app, name="import")

Url = Annotated[str, typer.Option(envvar="LETHE_URL", help="Address of the gateway.")]
Key = Annotated[str, typer.Option(envvar="LETHE_KEY", help="API key.", show_default=False)]


class ReportForm(StrEnum):
    """The forms of an audit report."""

    JSON = "json"
    HTML = "html"
    PDF = "pdf"


MEDIA_TYPES = {ReportForm.JSON: "application/json", ReportForm.HTML: "text/html", ReportForm.PDF: "application/pdf"}
Home = Annotated[Path, typer.Option(envvar="LETHE_HOME", help="Folder of data, logs and secrets.")]


def _leave_when_asked() -> None:
    """End in order on SIGTERM and on SIGINT, which a shell without job control has its background processes ignore."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@app.command()
def up(
    home: Home = Path(".lethe"),
    host: Annotated[str, typer.Option(help="Address to bind; only the loopback interface is allowed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.")] = 0,
) -> None:
    """Start the embedded stack: database, queue, object store, gateway, worker, control, signer. Ctrl-C stops all of it."""
    from cli.embedded.processes import NotReady
    from cli.embedded.stack import AlreadyRunning, Stack

    if host not in {"127.0.0.1", "localhost"}:
        typer.secho(f"lethe up binds the loopback interface only, not {host}: it is for trying out, not for production.", err=True)
        raise typer.Exit(2)
    _leave_when_asked()
    stack = Stack(home, gateway_port=port)
    try:
        stack.start()
        print(f"gateway       {stack.url}/v1    (docs: {stack.url}/v1/openapi.json)")
        print(f"database      127.0.0.1:{stack.postgres.port}")
        print(f"queue         127.0.0.1:{stack.redis.port}")
        print(f"object store  {stack.store.endpoint}")
        print(f"logs          {stack.home / 'logs'}")
        print(f"API key       {stack.api_key}    (kept in {stack.home / 'api-key'})")
        print(f"\n  export LETHE_URL={stack.url} LETHE_KEY={stack.api_key}\n\nCtrl-C stops everything; the data stays.", flush=True)
        stack.watch()
    except (AlreadyRunning, NotReady) as error:
        typer.secho(str(error), err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print("\nstopping", file=sys.stderr)
    finally:
        stack.stop()


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("demo-output"),
    home: Annotated[Path, typer.Option(help="Folder of the demo's own stack; it is emptied first.")] = Path(".lethe-demo"),
    task: Annotated[str, typer.Option(help="What the model is for: classification, gan, regression, language.")] = "classification",
) -> None:
    """Two deletion requests on real data over HTTP; of a classifier: one data subject, one whole class."""
    from cli.demo import run
    from cli.demos import DEMOS

    if task not in DEMOS:
        typer.secho(f"there is no demo of task {task}; there are {', '.join(DEMOS)}", err=True)
        raise typer.Exit(2)
    _leave_when_asked()
    raise typer.Exit(run(output, home, DEMOS[task]))


@app.command()
def forget(
    body: Annotated[Path, typer.Argument(help="A JSON file with the deletion request, or - for standard input.")],
    url: Url = "http://127.0.0.1:8000",
    key: Key = "",
    dry_run: Annotated[bool, typer.Option(help="Validate and estimate; record nothing.")] = False,  # noqa: FBT002  a command-line switch
) -> None:
    """Send a deletion request and print the answer."""
    import json

    text = sys.stdin.read() if str(body) == "-" else body.read_text()
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError as error:
        typer.secho(f"{body} is not JSON: {error}", err=True)
        raise typer.Exit(2) from error
    _print(_call(url, key, lambda client: client.post("/deletion-requests", document, **({"dry_run": "true"} if dry_run else {}))))


@app.command()
def watch(
    request: Annotated[str, typer.Argument(help="Id of the deletion request (dr_…).")],
    url: Url = "http://127.0.0.1:8000",
    key: Key = "",
    timeout_s: Annotated[float, typer.Option(help="Give up after so many seconds.")] = 3600,
) -> None:
    """Follow a request until it is done."""

    def shown(document: dict[str, Any]) -> None:
        print(document.get("status"), flush=True)

    _print(_call(url, key, lambda c: c.wait(f"/deletion-requests/{request}", lambda d: bool(d["done"]), timeout_s=timeout_s, every_s=2, seen=shown)))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="Name or id of the model.")],
    version: Annotated[int, typer.Argument(help="Version number.")],
    to: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
    url: Url = "http://127.0.0.1:8000",
    key: Key = "",
) -> None:
    """Download every file of a model version and check its SHA-256."""

    def fetch(client: Any) -> dict[str, Any]:
        document = client.get(f"/models/{model}/versions/{version}")
        files = {}
        for file in document["manifest"]["files"]:
            target = to / Path(file["path"]).name
            files[str(target)] = client.download(f"/models/{model}/versions/{version}/files/{file['path']}", target, sha256=file["sha256"])
        return files

    _print(_call(url, key, fetch))


@app.command()
def report(
    request: Annotated[str, typer.Argument(help="Id of the deletion request (dr_…).")],
    url: Url = "http://127.0.0.1:8000",
    key: Key = "",
    form: Annotated[ReportForm, typer.Option("--format", help="The report itself (json), or the page made of it.")] = ReportForm.JSON,
    output: Annotated[
        Path | None, typer.Option(help="File to write; the JSON byte for byte as it is stored. Without it the report is printed.")
    ] = None,
) -> None:
    """Print the audit report of a request as it is signed (`lethe verify` reads it), or write it to a file as JSON, HTML or PDF."""
    if form is ReportForm.PDF and output is None:
        typer.secho("A PDF goes to a file: give --output.", err=True)
        raise typer.Exit(2)
    path = f"/deletion-requests/{request}/audit-report"
    body: bytes = _call(url, key, lambda client: client.form_of(path, MEDIA_TYPES[form]))
    if output is None:
        print(body.decode())
    else:
        output.write_bytes(body)
        _print({"file": str(output), "format": form.value, "sha256": hashlib.sha256(body).hexdigest()})


@app.command()
def verify(
    report: Annotated[Path, typer.Argument(help="report.json as it was handed out.")],
    log_key: Annotated[Path | None, typer.Option(help="File with the log's verifier key(s), one a line.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder with the version's files and manifest.json, to be re-hashed.")] = None,
    previous: Annotated[Path | None, typer.Option(help="A checkpoint that you kept from before.")] = None,
    consistency: Annotated[Path | None, typer.Option(help="The answer of /v1/audit/consistency between that one and the report's.")] = None,
    witness: Annotated[str | None, typer.Option(help="A witness's verifier key, or a file with it.")] = None,
    plan: Annotated[Path | None, typer.Option(help="The verification plan that you were given before.")] = None,
) -> None:
    """Check an audit report offline. Exit 0: valid; 1: invalid; 2: cannot be decided with what is here."""
    from cli import verifier

    raise typer.Exit(verifier.verify(verifier.Given(report, log_key, model, previous, consistency, witness, plan)))


def _call(url: str, key: str, work: Any) -> Any:
    """Run `work` with a client; print refusals and network errors as one line and exit 1."""
    import httpx2

    from cli.client import Client, DigestWrong, Refused, TookTooLong

    if not key:
        typer.secho("No API key: set LETHE_KEY or give --key. `lethe up` prints one.", err=True)
        raise typer.Exit(2)
    client = Client(url, key)
    try:
        return work(client)
    except (Refused, DigestWrong, TookTooLong, httpx2.HTTPError, OSError) as error:
        typer.secho(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error
    finally:
        client.close()


def _print(document: dict[str, Any]) -> None:
    import json

    print(json.dumps(document, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    app()
