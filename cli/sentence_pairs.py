"""`lethe import stsb`: the Semantic Textual Similarity Benchmark becomes Parquet, two texts and a score a record.

Source: Cer et al., "SemEval-2017 Task 1: Semantic Textual Similarity", 2017. Two forms of it are about, and both are read: the benchmark's own
(sts-train.csv, sts-dev.csv, sts-test.csv: tabs, no header, no quotes) and GLUE's STS-B (train.tsv, dev.tsv: tabs and a header; its test.tsv has no
scores). Nothing is downloaded.
"""

from pathlib import Path
from typing import Any

from cli.importers import Imported, NotImportable

PARTS = {
    "sts-train.csv": ("train", None),
    "sts-dev.csv": ("train", None),
    "sts-test.csv": ("test", None),
    "train.tsv": ("train", "header"),
    "dev.tsv": ("test", "header"),
}
"""Files, whose records are learned from or held out; what the benchmark has for choosing a model by is learned from here."""
SCORE, FIRST, SECOND = 4, 5, 6
GLUE = ("score", "sentence1", "sentence2")
WORDS = 32
"""Of each text; the longest are about twice as long and lose their end."""


def import_stsb(source: Path, target: Path, *, max_length: int = WORDS) -> Imported:
    """Write the pairs of a folder with their scores, 0 (of nothing alike) to 5 (of the same meaning). Raises NotImportable."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [name for name in PARTS if (source / name).is_file()]
    if not found:
        raise NotImportable(f"{source} holds none of {', '.join(PARTS)}")
    columns: dict[str, list[Any]] = {name: [] for name in ("record_id", "split", "label", "first", "second")}
    for name in found:
        split, form = PARTS[name]
        lines = (source / name).read_text(encoding="utf-8").splitlines()
        places = _places(lines[0] if lines else "", name) if form else (SCORE, FIRST, SECOND)
        for number, line in enumerate(lines[1:] if form else lines, start=2 if form else 1):
            score, first, second = _pair(line.split("\t"), places, f"{name}, line {number}")
            for column, value in zip(columns.values(), (f"{Path(name).stem}-{number:05}", split, score, first, second), strict=True):
                column.append(value)
    if not columns["record_id"]:
        raise NotImportable(f"{source} holds no pair")
    pq.write_table(pa.table(columns), target, compression="zstd", row_group_size=65536)
    return Imported(target, len(columns["record_id"]), "text_pair", {"target": "number", "max_length": max_length})


def _places(header: str, name: str) -> tuple[int, int, int]:
    """Return where GLUE's columns stand."""
    names = header.split("\t")
    missing = [column for column in GLUE if column not in names]
    if missing:
        raise NotImportable(f"{name} has no column {', '.join(missing)}")
    score, first, second = (names.index(column) for column in GLUE)
    return score, first, second


def _pair(cells: list[str], places: tuple[int, int, int], where: str) -> tuple[float, str, str]:
    """Return the score and both texts of a line."""
    if len(cells) <= max(places):
        raise NotImportable(f"{where}: {len(cells)} columns are too few")
    score, first, second = (cells[place] for place in places)
    try:
        value = float(score)
    except ValueError as error:
        raise NotImportable(f"{where}: the score {score!r} is no number") from error
    if not (0 <= value <= 5 and first.strip() and second.strip()):
        raise NotImportable(f"{where}: a score is between 0 and 5, and no text is empty")
    return value, first.strip(), second.strip()
