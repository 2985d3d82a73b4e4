"""The byte-wise gate of finite values agrees with numpy's on any number."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_store import finite
from models_store.errors import Refused
from models_store.finite import refuse_non_finite
from models_store.header import regular_file, spans
from models_store.sandbox import check_header_apart

KINDS = {"F64": ("<u8", 8), "F32": ("<u4", 4), "F16": ("<u2", 2), "BF16": ("<u2", 2)}


def written(path: Path, dtype: str, data: bytes, *, before: bytes = b"") -> Path:
    size = {**{name: size for name, (_, size) in KINDS.items()}, "U8": 1}[dtype]
    header: dict[str, Any] = {"pad": {"dtype": "U8", "shape": [len(before)], "data_offsets": [0, len(before)]}} if before else {}
    header["w"] = {"dtype": dtype, "shape": [len(data) // size], "data_offsets": [len(before), len(before) + len(data)]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + before + data)
    return path


def refused(path: Path) -> bool:
    gates: list[str] = []
    with regular_file(path) as file:
        try:
            for span in spans(file):
                refuse_non_finite(span)
        except Refused as error:
            gates.append(error.gate)
    assert gates in ([], ["non-finite"])
    return bool(gates)


def is_finite(dtype: str, data: bytes) -> bool:
    if dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return bool(np.isfinite(wide.view("<f4")).all())
    return bool(np.isfinite(np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])).all())


@pytest.mark.parametrize("dtype", list(KINDS))
@given(numbers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_any_numbers_are_judged_as_numpy_judges_them(tmp_path_factory: pytest.TempPathFactory, dtype: str, numbers: list[int]) -> None:
    form, size = KINDS[dtype]
    data = np.array([number % 2 ** (8 * size) for number in numbers], "<u8").astype(form).tobytes()
    assert refused(written(tmp_path_factory.getbasetemp() / f"{dtype}.safetensors", dtype, data)) is not is_finite(dtype, data)


@pytest.mark.parametrize(("dtype", "numbers"), [("F16", 2**16), ("BF16", 2**16)])
def test_every_number_of_sixteen_bits_is_judged_as_numpy_judges_it(tmp_path: Path, dtype: str, numbers: int) -> None:
    for high in range(0, numbers, 0x80):
        data = np.arange(high, high + 0x80, dtype="<u2").tobytes()
        assert refused(written(tmp_path / "a", dtype, data)) is not is_finite(dtype, data)


def test_one_bad_number_is_found_in_any_piece_of_a_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "PIECE_BYTES", 64)
    values = np.ones(1000, "<f4")
    assert not refused(written(tmp_path / "good", "F32", values.tobytes(), before=b"\xff" * 5))
    for place in (0, 15, 16, 500, 999):
        bad = values.copy()
        bad[place] = np.nan
        assert refused(written(tmp_path / "bad", "F32", bad.tobytes(), before=b"\xff" * 5))


def test_whole_numbers_are_never_refused(tmp_path: Path) -> None:
    assert not refused(written(tmp_path / "a", "U8", b"\xff" * 64))


def test_the_gate_runs_in_the_limited_process_only_when_it_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "F32", struct.pack("<f", float("inf")))
    assert [spec.name for spec in check_header_apart(path, None)] == ["w"]
    with pytest.raises(Refused) as caught:
        check_header_apart(path, None, values=True)
    assert caught.value.gate == "non-finite"
