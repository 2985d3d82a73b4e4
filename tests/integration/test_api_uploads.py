"""What comes in by presigned URL, and what control's checks make of it: each bad file ends as a failed version with a code, and nothing else."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models_store.objects import blob_key
from tests.integration.api_world import Gateway, gateways, parquet, populate, safetensors, sha256

SHAPES = {"0.weight": [8, 2], "0.bias": [8]}
GOOD = safetensors(SHAPES, values=0.25)


@pytest.fixture(scope="module")
def gateway(postgres: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateways(postgres, object_store_server, tmp_path_factory.mktemp("api")) as made:
        populate(made)
        yield made


def bare(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"a": 1}))
    return sink.getvalue()


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BOMB = b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % index for index in range(90_000)) + b"}"
CHECKPOINTS = {
    "a pickle": (pickle.dumps({"0.weight": [1.0] * 100}), "header-too-large"),
    "a zip archive as torch.save writes": (zipped(), "header-too-large"),
    "a header bomb": (bare(BOMB), "header-too-large"),
    "a header of many empty tensors": (bare(BOMB[: BOMB.index(b',"t21000"')] + b"}"), "tensor-refused"),
    "a header length beyond the file": (struct.pack("<Q", 2**40) + b"{}", "header-too-large"),
    "a name twice in the header": (bare(b'{"a":%(t)s,"a":%(t)s}' % {b"t": json.dumps(F32).encode()}, bytes(8)), "header-malformed"),
    "a shape that cannot be": (bare({"a": {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}}), "tensor-refused"),
    "overlapping tensors": (bare({"a": F32, "b": F32}, bytes(8)), "layout-refused"),
    "trailing bytes": (GOOD + b"x", "layout-refused"),
    "a wrong shape": (safetensors({"0.weight": [2, 8], "0.bias": [8]}), "architecture-mismatch"),
    "a wrong dtype": (safetensors(SHAPES, dtype="F64"), "architecture-mismatch"),
    "NaN among the weights": (safetensors(SHAPES, values=float("nan")), "non-finite"),
    "infinity among the weights": (safetensors(SHAPES, values=float("-inf")), "non-finite"),
    "a missing tensor": (safetensors({"0.weight": [8, 2]}), "architecture-mismatch"),
    "a tensor too many": (safetensors({**SHAPES, "1.bias": [1]}), "architecture-mismatch"),
}


@pytest.mark.parametrize(("content", "gate"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_bad_checkpoint_fails_with_its_gate_and_the_current_version_stays(gateway: Gateway, content: bytes, gate: str) -> None:
    version = gateway.model_version("reader", content)
    assert (version["status"], version["error"]["code"], version["error"]["gate"]) == ("failed", "unsafe-checkpoint", gate), version["error"]
    assert version["error"]["detail"]
    assert gateway.call("GET", "models/reader").json()["current_version"] == 1
    assert gateway.store.head(blob_key(sha256(content))) is None
    download = gateway.call("GET", f"models/reader/versions/{version['number']}/files/model.safetensors")
    assert (download.status_code, download.json()["code"]) == (409, "version-not-ready")


def test_a_flipped_byte_is_refused_by_the_store_and_by_the_check(gateway: Gateway) -> None:
    content = safetensors(SHAPES, values=0.75)
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    file = {"path": "model.safetensors", "size_bytes": len(content), "sha256": sha256(content)}
    made = gateway.call("POST", "models/reader/versions", {"files": [file]}).json()
    refused = httpx2.put(made["uploads"][0]["url"], content=flipped, headers=made["uploads"][0]["headers"])
    assert refused.status_code >= 400
    version = gateway.model_version("reader", content, sent=flipped)
    assert (version["status"], version["error"]["code"]) == ("failed", "digest-mismatch")
    assert gateway.store.head(blob_key(sha256(flipped))) is None


def test_a_file_larger_than_declared_is_refused(gateway: Gateway) -> None:
    version = gateway.model_version("reader", GOOD, sent=GOOD + bytes(100))
    assert (version["status"], version["error"]["gate"]) == ("failed", "file-too-large")


def test_a_version_without_its_file_fails_and_says_so(gateway: Gateway) -> None:
    file = {"path": "model.safetensors", "size_bytes": 8, "sha256": sha256(b"12345678")}
    made = gateway.call("POST", "models/reader/versions", {"files": [file]}).json()
    assert gateway.call("POST", f"models/reader/versions/{made['number']}/complete").status_code == 202
    from uuid import UUID

    gateway.ingest().model_version(gateway.tenant, UUID(made["id"].removeprefix("mv_")))
    version = gateway.call("GET", f"models/reader/versions/{made['number']}").json()
    assert (version["status"], version["error"]["code"]) == ("failed", "validation-error")


def test_an_upload_url_takes_only_the_declared_bytes_and_expires(gateway: Gateway) -> None:
    file = {"path": "model.safetensors", "size_bytes": len(GOOD), "sha256": sha256(GOOD)}
    target = gateway.call("POST", "models/reader/versions", {"files": [file]}).json()["uploads"][0]
    assert httpx2.put(target["url"], content=b"other").status_code >= 400
    assert httpx2.get(target["url"]).status_code >= 400
    assert httpx2.put(target["url"].replace("uploads/", "blobs/"), content=GOOD).status_code >= 400
    assert target["expires_at"].endswith("Z")


@pytest.mark.parametrize("path", ["../up", "/abs", "a//b", "a/./b", ".hidden", "a\\b", "a b", "a\x7fb"])
def test_a_path_that_could_leave_its_folder_is_refused_before_anything_is_issued(gateway: Gateway, path: str) -> None:
    file = {"path": path, "size_bytes": 1, "sha256": "0" * 64}
    for place in ("models/reader/versions", "datasets/digits/versions"):
        assert gateway.call("POST", place, {"files": [file]}).status_code == 422


def table(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


DATASETS = {
    "not parquet at all": b"record_id,label\nr1,3\n",
    "parquet cut short": parquet([("r1", "0"), ("r2", "1")])[:-20],
    "no column record_id": table(label=["1", "2"], x=[1.0, 2.0]),
    "no column with labels": table(record_id=["a", "b"], x=[1.0, 2.0]),
    "the same record twice": parquet([("a", "0"), ("a", "1")]),
    "an empty record id": parquet([("", "0"), ("b", "1")]),
    "a record without an id": table(record_id=["a", None], label=["1", "2"]),
}


@pytest.mark.parametrize("content", DATASETS.values(), ids=DATASETS.keys())
def test_a_bad_dataset_fails_and_the_version_before_stays(gateway: Gateway, content: bytes) -> None:
    version = gateway.dataset_version("digits", content)
    assert version["status"] == "failed", version
    assert version["error"]["code"] == "validation-error"
    assert version["error"]["detail"]
    assert gateway.call("GET", "datasets/digits").json()["latest_version"] == 1
    refused = gateway.call("POST", "models/reader/training-runs", {"dataset": "digits", "dataset_version": version["version"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "version-not-ready")


def test_a_dataset_without_labels_cannot_train_a_classifier(gateway: Gateway) -> None:
    unlabelled = gateway.dataset("plain", table(record_id=["a", "b"], x=[1.0, 2.0]), label_column=None)
    assert unlabelled["status"] == "ready", unlabelled["error"]
    answer = gateway.call("POST", "models/reader/training-runs", {"dataset": "plain", "dataset_version": 1})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation-error"), answer.text
    assert "label" in answer.json()["detail"]


WINDOWS = {"record_id": ["a", "b"], "past": [[1.0, 2.0], [2.0, 3.0]], "target": [[3.0, 4.0], [4.0, 5.0]], "at": [[1, 2, 3, 4], [2, 3, 4, 5]]}
GAPS = {
    "a step left out": ({"at": [[1, 2, 3, 4], [2, 3, 5, 6]]}, "the times of 1 records do not rise evenly"),
    "a number left out": ({"past": [[1.0, 2.0], [2.0, None]]}, "'past' has gaps: 1 numbers are missing"),
    "a target left out": ({"target": [[3.0, None], [4.0, 5.0]]}, "1 targets that are missing"),
    "a window cut short": ({"past": [[1.0, 2.0], [2.0]]}, "must be 2 numbers: the series has gaps"),
}


def test_a_series_with_gaps_is_refused_where_it_is_uploaded(gateway: Gateway) -> None:
    asked = {"length": 2, "horizon": 2, "time_column": "at"}
    good = gateway.dataset("meters", table(**WINDOWS), adapter="series", adapter_params=asked, label_column=None)
    assert good["status"] == "ready", good["error"]
    for odd, told in GAPS.values():
        version = gateway.dataset_version("meters", table(**{**WINDOWS, **odd}))
        assert (version["status"], version["error"]["code"]) == ("failed", "validation-error")
        assert told in version["error"]["detail"]
    named = {"scope": {"kind": "target_range", "dataset": "meters", "below": 4}, "policy": "gdpr-default"}
    refused = gateway.call("POST", "deletion-requests", named)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation-error")
    assert "no real-valued targets" in refused.json()["detail"]


def test_a_completed_version_cannot_be_completed_again_once_it_is_settled(gateway: Gateway) -> None:
    assert gateway.call("POST", "datasets/digits/versions/1/complete").json()["code"] == "version-not-ready"
    assert gateway.call("POST", "models/reader/versions/1/complete").json()["code"] == "version-not-ready"


def test_a_second_good_version_with_the_current_one_as_parent_becomes_current(gateway: Gateway) -> None:
    version = gateway.model_version("reader", GOOD, parent=1)
    assert version["status"] == "ready", version["error"]
    assert gateway.call("GET", "models/reader").json()["current_version"] == version["number"]
    assert not list(gateway.store.list_versions(f"uploads/{version['id'].removeprefix('mv_')}"))
