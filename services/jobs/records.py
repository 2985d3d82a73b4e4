# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of its compute module at import
"""Parquet to columns, and the role of every record in a job.

Roles are given in the pool child, which holds the tenant's key; the runner reads them as the column `_role` and learns no key.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.errors import ForgetSetIsEverything, InvalidInput, RecordsNotFound
from services.series import Windowed, lists

ROLE = "_role"
NAMED = "_named"
DIGEST = "_record_digest"
RECORD_ID = "record_id"
SPLIT = "split"
PIXELS = "pixels"
NEVER_READ = frozenset({"subject_id"})
HELD_OUT_ROLES = ("analysis", "verification", "attack")
FIXED_MAX_DIGESTS = 2**64
WINDOWS_AT_ONCE = 8192
LARGEST = float(np.finfo(np.float32).max)

Kind = Literal["class", "records"]
Table = Any
"""A pyarrow table."""


def draw(key: bytes, purpose: str, record_id: str) -> float:
    """Return a number in [0, 1) that depends on `key`, `purpose` and the record alone."""
    digest = hmac.new(key, purpose.encode() + b"\x00" + record_id.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / FIXED_MAX_DIGESTS


def held_out_role(key: bytes, record_id: str) -> str:
    """Return `analysis`, `verification` or `attack`: HMAC(K_dataset, record_id) mod 3, stable across requests and versions."""
    digest = hmac.new(key, record_id.encode(), hashlib.sha256).digest()
    return HELD_OUT_ROLES[int.from_bytes(digest, "big") % 3]


def role_of(
    record_id: str, split: str | None, *, forgotten: bool, kind: Kind, key: bytes, holdout: float = 0.2, drawn_before_training: bool = True
) -> str:
    """Return the role of one record.

    A training record is `forget` or `retain`. A held-out record has its drawn role; one that a record request names is `excluded`, one of a
    forgotten class keeps its role, so that forgetting can be measured on it. Without a column `split`, a record is held out by a keyed draw;
    a model that was trained elsewhere knows nothing of that draw (`drawn_before_training` false), so what a record request names counts as
    learned.
    """
    if split is None and not drawn_before_training and forgotten and kind == "records":
        return "forget"
    held_out = split == "test" if split is not None else draw(key, "holdout", record_id) < holdout
    if not held_out:
        return "forget" if forgotten else "retain"
    if forgotten and kind == "records":
        return "excluded"
    return held_out_role(key, record_id)


def read_table(paths: Sequence[Path]) -> Table:
    """Return the rows of the parquet files, in order, without the columns that the service never reads. Raises InvalidInput."""
    tables: list[Any] = []
    for path in paths:
        try:
            schema = pq.read_schema(path)
            columns = [name for name in schema.names if name not in NEVER_READ]
            tables.append(pq.ParquetFile(path).read(columns=columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInput(detail=f"{path.name} is not a readable parquet file") from error
    table = pa.concat_tables(tables, promote_options="default") if len(tables) != 1 else tables[0]
    if RECORD_ID not in table.column_names:
        raise InvalidInput(detail="the column record_id is missing")
    return table


def record_ids(table: Table) -> list[str]:
    """Return the record ids, row by row, as strings."""
    return [str(value) for value in table.column(RECORD_ID).to_pylist()]


def nobody(record_id: str) -> bool:  # noqa: ARG001
    """Say of no record that it is meant."""
    return False


def with_roles(
    table: Table,
    *,
    forgotten: Callable[[str], bool],
    kind: Kind,
    key: bytes,
    drawn_before_training: bool = True,
    ranged: Callable[[str], bool] = nobody,
) -> Table:
    """Return the table with the column `_role`; see `role_of`. What is held out of a range of targets (`ranged`) is judged on, as what is of a class."""
    ids = record_ids(table)
    splits = table.column(SPLIT).to_pylist() if SPLIT in table.column_names else [None] * len(ids)
    roles = [
        role_of(rid, split, forgotten=forgotten(rid), kind="class" if ranged(rid) else kind, key=key, drawn_before_training=drawn_before_training)
        for rid, split in zip(ids, splits, strict=True)
    ]
    return table.append_column(ROLE, pa.array(roles, pa.string()))


def with_held_out_roles(table: Table, *, key: bytes) -> Table:
    """Return the table with the column `_role` where no record was trained on: each has its drawn role."""
    return table.append_column(ROLE, pa.array([held_out_role(key, rid) for rid in record_ids(table)], pa.string()))


def with_named(table: Table, forgotten: Callable[[str], bool]) -> Table:
    """Return the table with the column `_named`, true for the forgotten whatever their role."""
    return table.append_column(NAMED, pa.array([forgotten(rid) for rid in record_ids(table)], pa.bool_()))


def of_labels(table: Table, column: str | None, labels: Collection[str]) -> Callable[[str], bool]:
    """Return the test whether a record has one of the labels. Raises InvalidInput without a label column."""
    if column is None or column not in table.column_names:
        raise InvalidInput(detail="the evaluation set has no column with labels")
    pairs = zip(record_ids(table), table.column(column).to_pylist(), strict=True)
    return {rid for rid, label in pairs if str(label) in labels}.__contains__


def with_digests(table: Table, digest_of: Callable[[str], str]) -> Table:
    """Return the table with the column `_record_digest`: the keyed digest of each record, by which the runner may name it in what it keeps."""
    return table.append_column(DIGEST, pa.array([digest_of(rid) for rid in record_ids(table)], pa.string()))


def digests(path: Path) -> dict[str, str]:
    """Return the keyed digest of each record of a job; empty where they were not given."""
    file = pq.ParquetFile(path)
    if DIGEST not in file.schema_arrow.names:
        return {}
    table = file.read(columns=[RECORD_ID, DIGEST])
    return dict(zip(record_ids(table), (str(digest) for digest in table.column(DIGEST).to_pylist()), strict=True))


def role_counts(table: Table, *, forgotten: Callable[[str], bool]) -> dict[str, int]:
    """Return how many records have each role; `named` are the forgotten whatever their role.

    Of class requests `forget_test` and `forget_attack` are the forgotten of roles verification and attack.
    """
    roles = [str(role) for role in table.column(ROLE).to_pylist()]
    named = [role for role, rid in zip(roles, record_ids(table), strict=True) if forgotten(rid)]
    return {**Counter(roles), "named": len(named), "forget_test": named.count("verification"), "forget_attack": named.count("attack")}


def without(table: Table, forgotten: Callable[[str], bool]) -> Table:
    """Return the table without the forgotten records."""
    keep = pa.array([not forgotten(rid) for rid in record_ids(table)], pa.bool_())
    return table.filter(keep)


def write_table(table: Table, path: Path) -> None:
    """Write the table as parquet, the same bytes for the same rows."""
    pq.write_table(table, path, compression="zstd", write_statistics=False, store_schema=True)


def columns(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], list[str], list[str], np.ndarray[Any, Any]]:
    """Return the columns of a job's records as arrays, the record ids, the roles, and which are to be forgotten, row by row.

    A list column of equal lengths becomes a matrix (n, k); an image column of the form {bytes, path} gives its bytes.
    """
    table = pq.ParquetFile(path).read()
    roles = [str(role) for role in table.column(ROLE).to_pylist()]
    ids = record_ids(table)
    named = np.asarray(table.column(NAMED).to_pylist(), dtype=bool)
    names = [name for name in table.column_names if name not in {ROLE, NAMED, DIGEST, RECORD_ID, SPLIT}]
    return {name: _array(table.column(name)) for name in names}, ids, roles, named


def _array(column: Any) -> np.ndarray[Any, Any]:
    kind = column.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _matrix(column)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return np.asarray([row["bytes"] if row is not None else None for row in column.to_pylist()], dtype=object)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return np.asarray(column.to_pylist(), dtype=object)
    return column.to_numpy()


def _matrix(column: Any) -> np.ndarray[Any, Any]:
    """Return a list column as (n, *shape) when every row has one shape, else as an object array of rows."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    depth, inner = [], column.combine_chunks()
    rows = len(inner)
    if len(lengths) != 1 or inner.null_count:
        return np.asarray([np.asarray(row) for row in column.to_pylist()], dtype=object)
    while pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type) or pa.types.is_fixed_size_list(inner.type):
        widths = pc.unique(pc.list_value_length(inner)).to_pylist()
        if len(widths) != 1:
            return np.asarray([np.asarray(row) for row in column.to_pylist()], dtype=object)
        depth.append(int(widths[0]))
        inner = inner.flatten()
    return inner.to_numpy(zero_copy_only=False).reshape(rows, *depth)


def check_roles(counts: Mapping[str, int], *, kind: str, dataset: object, zero_shot: bool = False) -> None:
    """Raise RecordsNotFound when none of the records that a job must forget is there, and ForgetSetIsEverything when none would be left."""
    if kind == "unlearn" and not counts["named"]:
        raise RecordsNotFound(count="all", dataset=dataset)
    others = sum(counts.get(role, 0) for role in HELD_OUT_ROLES) - counts["named"] if zero_shot else counts.get("retain", 0)
    if not others:
        raise ForgetSetIsEverything(dataset=dataset)


def inspect(
    path: Path, *, label_column: str | None, numbers: bool = False, pixels: int | None = None, series: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the records and labels of an uploaded parquet file, after bounds on footer, row groups and column types. Raises InvalidInput.

    Keys: `record_ids` (list of str), `labels` (list of str or None), `columns` (name -> type). With `numbers` the labels are targets of a regression,
    and each must be a finite number; `pixels` is how many bytes every record of the column `pixels` must have; `series` are the members of
    `Windowed`: every window must be whole and even.
    """
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    if RECORD_ID not in schema.names:
        raise InvalidInput(detail="the column record_id is missing")
    if label_column is not None and label_column not in schema.names:
        raise InvalidInput(detail=f"the label column {label_column} is missing")
    wanted = [RECORD_ID] + ([label_column] if label_column else [])
    table = file.read(columns=wanted)
    ids = table.column(RECORD_ID)
    if ids.null_count or len(pc.unique(ids)) != len(ids):
        raise InvalidInput(detail="record_id must be unique and never null")
    if label_column and numbers:
        check_numbers(table.column(label_column), label_column)
    if pixels is not None:
        check_pixels(file, pixels)
    if series is not None:
        check_windows(file, Windowed(**series))
    if label_column and table.column(label_column).null_count:
        raise InvalidInput(detail=f"the label column {label_column} holds nulls")
    labels = [str(value) for value in table.column(label_column).to_pylist()] if label_column else [None] * len(ids)
    return {"record_ids": record_ids(table), "labels": labels, "columns": {field.name: str(field.type) for field in schema}}


def check_numbers(column: Any, name: str) -> None:
    """Raise InvalidInput unless every target is a number that training can hold: there, finite, and within the range of float32."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InvalidInput(detail=f"the column {name} must hold a number for every record, and holds {column.type}")
    values = column.cast(pa.float64(), safe=False).to_numpy()  # what is missing becomes NaN
    bad = int(np.sum(~(np.abs(values) <= LARGEST)))
    if bad:
        raise InvalidInput(detail=f"the column {name} holds {bad} targets that are missing, not finite, or beyond {LARGEST:.1e}; mend or drop them")


def check_pixels(file: Any, size: int) -> None:
    """Raise InvalidInput where an image has another number of bytes than its dataset says; what is stored in nested lists is checked by the runner."""
    if PIXELS not in file.schema_arrow.names:
        raise InvalidInput(detail=f"the column {PIXELS} is missing")
    kind = file.schema_arrow.field(PIXELS).type
    if pa.types.is_fixed_size_binary(kind):
        sizes = {int(kind.byte_width)}
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        sizes = _lengths(file, pc.binary_length)
    elif pa.types.is_list(kind) and pa.types.is_integer(kind.value_type):
        sizes = _lengths(file, pc.list_value_length)
    else:
        return
    odd = sorted(sizes - {size})
    if odd:
        told = f"{odd[0]} bytes" if len(sizes) == 1 else f"between {min(sizes)} and {max(sizes)} bytes"
        raise InvalidInput(detail=f"images have {told}, and the dataset says height * width * channels = {size}: all must be of one size")


def check_windows(file: Any, held: Windowed) -> None:
    """Raise InvalidInput where a window of a series lacks a number or a step, read batch by batch; all windows rise by the step of the first ones."""
    missing = [name for name in held.columns if name not in file.schema_arrow.names]
    if missing:
        raise InvalidInput(detail=f"the column {missing[0]} is missing")
    step = None
    for batch in file.iter_batches(columns=held.columns, batch_size=WINDOWS_AT_ONCE):
        rows = {name: _array(pa.chunked_array([batch.column(name)])) for name in held.columns}
        held.past_of(rows)
        target = lists(rows[held.target], held.horizon, held.target).astype(np.float64)
        bad = int(np.sum(~(np.abs(target) <= LARGEST)))
        if bad:
            raise InvalidInput(detail=f"the column {held.target} holds {bad} targets that are missing, not finite, or beyond {LARGEST:.1e}")
        step = held.refuse_gaps(rows, step=step)


def _lengths(file: Any, length_of: Callable[[Any], Any]) -> set[int]:
    """Return the lengths that occur in the column of pixels, read batch by batch; an empty value has length 0."""
    found: set[int] = set()
    for batch in file.iter_batches(columns=[PIXELS]):
        found |= {int(length or 0) for length in pc.unique(length_of(batch.column(0))).to_pylist()}
    return found
