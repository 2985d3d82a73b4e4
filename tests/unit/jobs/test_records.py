from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import ForgetSetIsEverything, InvalidInput, RecordsNotFound
from services.jobs import records

KEY = b"k" * 32


def table(count: int = 30) -> pa.Table:
    return pa.table({"record_id": [f"r{i}" for i in range(count)], "split": ["test" if i % 3 == 0 else "train" for i in range(count)]})


def test_training_records_are_forget_or_retain_and_a_named_held_out_record_is_excluded() -> None:
    named = {"r0", "r1"}
    roles = records.with_roles(table(), forgotten=named.__contains__, kind="records", key=KEY).column("_role").to_pylist()
    assert roles[0] == "excluded"
    assert roles[1] == "forget"
    assert roles[2] == "retain"
    assert set(roles[3::3]) <= set(records.HELD_OUT_ROLES)


def test_a_held_out_record_of_a_forgotten_class_keeps_its_role() -> None:
    roles = records.with_roles(table(), forgotten={"r0"}.__contains__, kind="class", key=KEY).column("_role").to_pylist()
    assert roles[0] == records.held_out_role(KEY, "r0")


def test_a_model_trained_elsewhere_may_have_learned_from_every_record_that_a_person_names() -> None:
    ids = [f"r{i}" for i in range(400)]
    drawn = {records.role_of(rid, None, forgotten=True, kind="records", key=KEY) for rid in ids}
    elsewhere = {records.role_of(rid, None, forgotten=True, kind="records", key=KEY, drawn_before_training=False) for rid in ids}
    assert drawn == {"forget", "excluded"}
    assert elsewhere == {"forget"}
    assert records.role_of("r0", "test", forgotten=True, kind="records", key=KEY, drawn_before_training=False) == "excluded"


def test_a_job_with_none_of_its_records_or_none_to_keep_is_refused() -> None:
    counts = records.role_counts(records.with_roles(table(), forgotten={"r0"}.__contains__, kind="records", key=KEY), forgotten={"r0"}.__contains__)
    assert (counts["named"], counts.get("forget", 0)) == (1, 0)
    records.check_roles(counts, kind="unlearn", dataset="digits")
    with pytest.raises(RecordsNotFound):
        records.check_roles({**counts, "named": 0}, kind="unlearn", dataset="digits")
    with pytest.raises(ForgetSetIsEverything):
        records.check_roles({**counts, "retain": 0}, kind="unlearn", dataset="digits")


@given(st.text(min_size=1, max_size=20))
def test_a_held_out_role_depends_on_key_and_record_alone(record_id: str) -> None:
    assert records.held_out_role(KEY, record_id) == records.held_out_role(KEY, record_id)


def test_without_a_split_column_a_fifth_is_held_out_and_the_three_roles_are_balanced() -> None:
    roles = Counter(records.role_of(f"r{i}", None, forgotten=False, kind="records", key=KEY) for i in range(6000))
    assert 4700 < roles["retain"] < 4900
    assert all(330 < roles[role] < 470 for role in records.HELD_OUT_ROLES)


def test_the_next_version_has_the_same_bytes_when_written_twice(tmp_path: Path) -> None:
    rest = records.without(table(), {"r4"}.__contains__)
    for name in ("a", "b"):
        records.write_table(rest, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "r4" not in records.record_ids(records.read_table([tmp_path / "a"]))


def test_the_column_of_persons_is_never_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"record_id": ["a"], "subject_id": ["p"]}), tmp_path / "x.parquet")
    assert "subject_id" not in records.read_table([tmp_path / "x.parquet"]).column_names


def test_list_columns_of_one_shape_become_a_matrix(tmp_path: Path) -> None:
    pixels = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    whole = pa.table({"record_id": ["a", "b"], "pixels": pa.array(pixels, pa.list_(pa.list_(pa.uint8()))), "_role": ["retain", "forget"]})
    records.write_table(records.with_named(whole, {"b"}.__contains__), tmp_path / "x.parquet")
    found, ids, roles, named = records.columns(tmp_path / "x.parquet")
    assert found["pixels"].shape == (2, 2, 2)
    assert found["pixels"].dtype == np.uint8
    assert (ids, roles) == (["a", "b"], ["retain", "forget"])
    assert named.tolist() == [False, True]


def test_keyed_digests_reach_the_runner_beside_the_columns_and_never_among_them(tmp_path: Path) -> None:
    whole = records.with_named(pa.table({"record_id": ["a", "b"], "x": [1.0, 2.0], "_role": ["retain", "forget"]}), {"b"}.__contains__)
    records.write_table(whole, tmp_path / "without.parquet")
    records.write_table(records.with_digests(whole, lambda rid: f"keyed-{rid}"), tmp_path / "with.parquet")
    assert records.digests(tmp_path / "with.parquet") == {"a": "keyed-a", "b": "keyed-b"}
    assert records.digests(tmp_path / "without.parquet") == {}
    assert [set(records.columns(tmp_path / f"{name}.parquet")[0]) for name in ("with", "without")] == [{"x"}, {"x"}]


@pytest.mark.parametrize("columns", [{"x": [1]}, {"record_id": ["a", "a"]}, {"record_id": ["a", None]}])
def test_an_upload_without_unique_record_ids_is_refused(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InvalidInput):
        records.inspect(tmp_path / "x.parquet", label_column=None)


def test_an_upload_without_its_label_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"record_id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InvalidInput, match="label"):
        records.inspect(tmp_path / "x.parquet", label_column="label")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pa.array([1.0, float("nan"), 2.0]), "1 targets that are missing, not finite"),
        (pa.array([1.0, None, float("inf")]), "2 targets that are missing, not finite"),
        (pa.array([1.0, -1e39, 2.0]), "1 targets that are missing, not finite, or beyond 3.4e\\+38"),
        (pa.array(["1", "1e999", "2"]), "must hold a number for every record, and holds string"),
    ],
)
def test_an_upload_with_a_target_that_no_model_can_learn_is_refused(tmp_path: Path, values: pa.Array, told: str) -> None:
    pq.write_table(pa.table({"record_id": ["a", "b", "c"], "price": values}), tmp_path / "x.parquet")
    with pytest.raises(InvalidInput, match=told):
        records.inspect(tmp_path / "x.parquet", label_column="price", numbers=True)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64()])
def test_an_upload_of_numbers_is_taken_as_it_is(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"record_id": ["a", "b"], "price": pa.array([3, -4], kind)}), tmp_path / "x.parquet")
    found = records.inspect(tmp_path / "x.parquet", label_column="price", numbers=True)
    assert [float(label) for label in found["labels"]] == [3, -4]


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (pa.array([b"1234", b"12345"], pa.binary()), "between 4 and 5 bytes"),
        (pa.array([b"1234", None], pa.binary()), "between 0 and 4 bytes"),
        (pa.array([b"12345", b"12345"], pa.binary(5)), "have 5 bytes"),
        (pa.array([[1, 2, 3], [1, 2, 3, 4]], pa.list_(pa.uint8())), "between 3 and 4 bytes"),
    ],
)
def test_an_upload_with_images_of_another_size_than_the_dataset_says_is_refused(tmp_path: Path, pixels: pa.Array, told: str) -> None:
    pq.write_table(pa.table({"record_id": ["a", "b"], "pixels": pixels}), tmp_path / "x.parquet")
    with pytest.raises(InvalidInput, match=told):
        records.inspect(tmp_path / "x.parquet", label_column=None, pixels=4)


SERIES = {"length": 2, "channels": 1, "horizon": 2, "past": "past", "target": "target", "times": "times"}
WINDOWS = {"past": [[1.0, 2.0], [2.0, 3.0]], "target": [[3.0, 4.0], [4.0, 5.0]], "times": [[1, 2, 3, 4], [2, 3, 4, 5]]}


def test_an_upload_of_even_windows_is_taken_and_their_targets_are_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"record_id": ["a", "b"], **WINDOWS}), tmp_path / "x.parquet", row_group_size=1)
    found = records.inspect(tmp_path / "x.parquet", label_column=None, series=SERIES)
    assert found["labels"] == [None, None]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"past": [[1.0, 2.0], [2.0, None]]}, "'past' has gaps: 1 numbers are missing"),
        ({"past": [[1.0, 2.0], [2.0]]}, "'past' must be 2 numbers: the series has gaps"),
        ({"past": [[1.0, 2.0], None]}, "'past' must be 2 numbers: the series has gaps"),
        ({"past": [["1", "2"], ["2", "x"]]}, "'past' must hold numbers"),
        ({"target": [[3.0, float("nan")], [4.0, 5.0]]}, "target holds 1 targets that are missing"),
        ({"times": [[1, 2, 3, 4], [2, 3, 5, 6]]}, "the times of 1 records do not rise evenly"),
        ({"times": [[1, 2, 3, 4], [2, 4, 6, 8]]}, "do not rise evenly"),
        ({"times": [[4, 3, 2, 1], [4, 3, 2, 1]]}, "do not rise evenly"),
    ],
)
def test_an_upload_of_a_series_with_gaps_is_refused(tmp_path: Path, odd: dict[str, object], told: str) -> None:
    pq.write_table(pa.table({"record_id": ["a", "b"], **WINDOWS, **odd}), tmp_path / "x.parquet", row_group_size=1)
    with pytest.raises(InvalidInput, match=told):
        records.inspect(tmp_path / "x.parquet", label_column=None, series=SERIES)


def test_an_upload_of_a_series_without_its_times_is_refused(tmp_path: Path) -> None:
    held = {name: column for name, column in WINDOWS.items() if name != "times"}
    pq.write_table(pa.table({"record_id": ["a", "b"], **held}), tmp_path / "x.parquet")
    with pytest.raises(InvalidInput, match="the column times is missing"):
        records.inspect(tmp_path / "x.parquet", label_column=None, series=SERIES)


def test_what_is_held_out_of_a_range_is_judged_on_also_where_records_are_named_beside_it() -> None:
    named = {"r0", "r3", "r1"}
    roles = records.with_roles(table(), forgotten=named.__contains__, kind="records", key=KEY, ranged={"r0"}.__contains__).column("_role").to_pylist()
    assert roles[0] == records.held_out_role(KEY, "r0")
    assert (roles[3], roles[1]) == ("excluded", "forget")
