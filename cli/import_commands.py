"""`lethe import KIND ...`: write a Parquet file and print what to register it with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cli import importers, questions, sentence_pairs

app = typer.Typer(no_args_is_help=True, help="Turn data into the Parquet file that a dataset version takes.")

Source = Annotated[Path, typer.Argument(exists=True, help="What to read.")]
Target = Annotated[Path, typer.Argument(help="The Parquet file to write.")]


@app.command("sklearn")
def sklearn_set(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(importers.SKLEARN_SETS)}.")],
    target: Target,
    records_per_subject: Annotated[int | None, typer.Option(min=1, help="Give blocks of so many rows to made-up data subjects.")] = None,
) -> None:
    """Write one of scikit-learn's bundled sets."""
    show(lambda: importers.import_sklearn(name, target, records_per_subject=records_per_subject))


@app.command("torchvision")
def torchvision_set(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(importers.TORCHVISION_SETS)}.")],
    root: Annotated[Path, typer.Argument(exists=True, help="The folder in which torchvision keeps its sets; nothing is downloaded.")],
    target: Target,
) -> None:
    """Write a set of torchvision that already lies on this machine."""
    show(lambda: importers.import_torchvision(name, root, target))


@app.command()
def npz(source: Source, target: Target) -> None:
    """Write the arrays x and y, or x_train ... y_test, or train_images ... test_labels of an npz file."""
    show(lambda: importers.import_npz(source, target))


@app.command("images")
def image_folder(
    source: Source,
    target: Target,
    height: Annotated[int, typer.Option(min=1, max=4096, help="Height to resize to, in pixels.")],
    width: Annotated[int, typer.Option(min=1, max=4096, help="Width to resize to, in pixels.")],
    grey: Annotated[bool, typer.Option(help="One channel instead of three.")] = False,  # noqa: FBT002  a command-line switch
) -> None:
    """Write a folder of pictures, CLASS/FILE, or train/CLASS/FILE and test/CLASS/FILE."""
    show(lambda: importers.import_image_folder(source, target, height=height, width=width, grey=grey))


@app.command()
def csv(
    source: Source,
    target: Target,
    label: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    text: Annotated[str | None, typer.Option(help="Column of the texts; without it the other columns are numbers and names.")] = None,
    record_id: Annotated[str | None, typer.Option(help="Column of unique record ids; without it rows are numbered.")] = None,
    subject: Annotated[str | None, typer.Option(help="Column that names the data subject.")] = None,
    split: Annotated[str | None, typer.Option(help="Column that says train or test.")] = None,
) -> None:
    """Write a CSV file with a header."""
    show(lambda: importers.import_csv(source, target, label=label, text=text, record_id=record_id, subject=subject, split=split))


@app.command("questions")
def question_file(
    source: Source,
    target: Target,
    question: Annotated[str, typer.Option(help="Column of what is asked.")] = "question",
    answer: Annotated[str, typer.Option(help="Column of what is answered.")] = "answer",
    subject: Annotated[str | None, typer.Option(help="Column that names the data subject, as an author.")] = None,
    record_id: Annotated[str | None, typer.Option(help="Column of unique record ids; without it rows are numbered.")] = None,
    split: Annotated[str | None, typer.Option(help="Column that says train or test.")] = None,
    words: Annotated[int, typer.Option(min=0, max=200_000, help="Most words of the vocabulary; others are spelled in bytes.")] = 4000,
    max_length: Annotated[int, typer.Option(min=4, max=4096, help="Tokens of a record; a longer answer loses its end.")] = 128,
) -> None:
    """Write questions and answers from a CSV file or JSON lines, for a language model."""
    show(
        lambda: questions.import_questions(
            source, target, question=question, answer=answer, subject=subject, record_id=record_id, split=split, words=words, max_length=max_length
        )
    )


@app.command("stsb")
def similarity_benchmark(
    source: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="The folder with sts-train.csv and its like, or with GLUE's train.tsv.")
    ],
    target: Target,
    max_length: Annotated[int, typer.Option(min=1, max=2048, help="Words of each text; longer ones lose their end.")] = sentence_pairs.WORDS,
) -> None:
    """Write the pairs and scores of the Semantic Textual Similarity Benchmark that already lies on this machine, for a regression."""
    show(lambda: sentence_pairs.import_stsb(source, target, max_length=max_length))


def show(work: Callable[[], importers.Imported]) -> None:
    """Print what was written as JSON, or the reason for a refusal with exit code 1."""
    try:
        done = work()
    except importers.NotImportable as error:
        typer.secho(str(error), err=True)
        raise typer.Exit(1) from error
    print(json.dumps({"path": str(done.path), "records": done.records, "adapter": done.adapter, "adapter_params": done.adapter_params}))
