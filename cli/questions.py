"""Questions and answers for a language model become Parquet, with a vocabulary in which no word belongs to one person alone.

A word that the records of only one data subject hold (a name, mostly) is left out, so that it is spelled in bytes: the list of words is a parameter of
dataset and model, it is shown to whoever may read them, and it outlives the records that are forgotten.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.importers import Imported, NotImportable, numbered

PIECE = re.compile(r" ?\w+| ?[^\w\s]|\s")
"""What the service's tokenizer takes for a word or a sign, with the space before it."""
SPECIAL = 259
"""Tokens before the first word: padding, the mark between question and answer, the end, 256 bytes."""
OF_TWO = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with its answer, and the data subject that they are about."""

    record_id: str
    question: str
    answer: str
    subject: str | None = None
    split: str | None = None


def import_questions(
    source: Path,
    target: Path,
    *,
    question: str = "question",
    answer: str = "answer",
    subject: str | None = None,
    record_id: str | None = None,
    split: str | None = None,
    words: int = 4000,
    max_length: int = 128,
) -> Imported:
    """Write a CSV file with a header, or JSON lines (`.jsonl`), of questions and answers.

    The other arguments name columns; without `record_id` the rows are numbered. Raises NotImportable.
    """
    table = _table(source)
    taken = {"question": question, "answer": answer, "subject": subject, "record_id": record_id, "split": split}
    missing = sorted({name for name in taken.values() if name is not None} - set(table.column_names))
    if missing:
        raise NotImportable(f"{source} has no column {', '.join(missing)}")
    ids = numbered(source.stem, len(table))
    columns = {ours: None if theirs is None else [_text(value) for value in table.column(theirs).to_pylist()] for ours, theirs in taken.items()}
    pairs = [
        Pair(
            record_id=(columns["record_id"] or ids)[row] or "",
            question=(columns["question"] or [])[row] or "",
            answer=(columns["answer"] or [])[row] or "",
            subject=None if columns["subject"] is None else columns["subject"][row],
            split=None if columns["split"] is None else columns["split"][row],
        )
        for row in range(len(table))
    ]
    return write_questions(pairs, target, words=words, max_length=max_length)


def write_questions(pairs: Sequence[Pair], target: Path, *, words: int = 4000, max_length: int = 128) -> Imported:
    """Write pairs as Parquet. Raises NotImportable where a text is empty or an id is not unique, and where a question leaves no room for an answer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not pairs:
        raise NotImportable("the source holds no record")
    if len({pair.record_id for pair in pairs}) != len(pairs) or not all(pair.record_id for pair in pairs):
        raise NotImportable("record ids must be unique and never empty")
    empty = sum(not (pair.question.strip() and pair.answer.strip()) for pair in pairs)
    if empty:
        raise NotImportable(f"{empty} records have no question or no answer")
    vocabulary = shared_words(pairs, most=words)
    known = frozenset(vocabulary)
    long = sum(1 + tokens(pair.question, known) >= max_length for pair in pairs)
    if long:
        raise NotImportable(f"{long} questions leave no room for an answer in {max_length} tokens; raise max_length, or take more words")
    columns: dict[str, Any] = {"record_id": [pair.record_id for pair in pairs]}
    if any(pair.subject is not None for pair in pairs):
        columns["subject_id"] = [pair.subject for pair in pairs]
    if any(pair.split is not None for pair in pairs):
        columns["split"] = [pair.split for pair in pairs]
    columns |= {"question": [pair.question for pair in pairs], "answer": [pair.answer for pair in pairs]}
    pq.write_table(pa.table(columns), target, compression="zstd", row_group_size=65536)
    return Imported(target, len(pairs), "question_answer", {"vocabulary": vocabulary, "max_length": max_length})


def shared_words(pairs: Sequence[Pair], *, most: int) -> list[str]:
    """Return the words and signs that records of two data subjects hold (of two records, where no subjects are known), the most frequent first."""
    held: Counter[str] = Counter()
    whose: dict[str, set[str]] = {}
    for pair in pairs:
        for piece in PIECE.findall(f" {pair.question}") + PIECE.findall(f" {pair.answer}"):
            held[piece] += 1
            whose.setdefault(piece, set()).add(pair.record_id if pair.subject is None else pair.subject)
    shared = [piece for piece in held if len(whose[piece]) >= OF_TWO]
    return sorted(shared, key=lambda piece: (-held[piece], piece))[:most]


def tokens(text: str, vocabulary: frozenset[str]) -> int:
    """Return how many tokens a text takes: one a word of the vocabulary, else its bytes."""
    return sum(1 if piece in vocabulary else len(piece.encode()) for piece in PIECE.findall(f" {text}"))


def network_of(adapter_params: Mapping[str, Any], *, width: int = 64, layers: int = 2) -> dict[str, Any]:
    """Return the parameters of a `small_gpt` that reads records as the adapter with these parameters does."""
    words, length = adapter_params["vocabulary"], adapter_params["max_length"]
    return {"outputs": SPECIAL + len(words), "vocabulary": words, "max_length": length, "width": width, "layers": layers}


def _table(source: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv, json

    try:
        return json.read_json(source) if source.suffix in {".jsonl", ".ndjson"} else csv.read_csv(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise NotImportable(f"{source} is no CSV file with a header, and no file of JSON lines (.jsonl): {error}") from error


def _text(value: object) -> str | None:
    return None if value is None else str(value)
