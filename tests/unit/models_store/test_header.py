import json
import os
import pickle
import struct
import zipfile
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from models_store.errors import Refused
from models_store.header import HEADER_BYTES, ITEM_BYTES, TENSORS, TensorSpec, check_header
from models_store.sandbox import check_header_apart

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(path, header, data=bytes(8), *, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def gate_of(path, expected=None):
    with pytest.raises(Refused) as caught:
        check_header(path, expected)
    return caught.value.gate


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_a_plain_file_is_read_by_name(path):
    file_of(path, {"b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}, "__metadata__": {"format": "pt"}, "a": F32}, bytes(16))

    assert check_header(path, None) == [TensorSpec("a", "F32", (2,)), TensorSpec("b", "I64", ())]


def test_a_file_without_tensors_is_a_file(path):
    assert check_header(file_of(path, {}, b""), None) == []


def test_a_tensor_of_no_elements_takes_no_bytes(path):
    header = {"none": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}, "a": F32}

    assert [spec.name for spec in check_header(file_of(path, header), None)] == ["a", "none"]


@pytest.mark.parametrize("raw", [b"", b"\x01", bytes(7)])
def test_a_file_too_short_for_a_length_is_refused(path, raw):
    path.write_bytes(raw)

    assert gate_of(path) == "header-too-large"


@pytest.mark.parametrize("length", [HEADER_BYTES + 1, 2**40, 2**64 - 1, 200])
def test_a_header_longer_than_the_limit_or_the_file_is_refused_before_it_is_read(path, length):
    assert gate_of(file_of(path, {"a": F32}, length=length)) == "header-too-large"


def test_a_header_bomb_of_many_empty_tensors_is_refused(path):
    bomb = {f"{number:07}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(90_000)}

    assert gate_of(file_of(path, bomb, b"")) == "header-too-large"


def test_more_tensors_than_allowed_are_refused(path):
    bomb = {f"{number}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(TENSORS + 1)}

    assert gate_of(file_of(path, bomb, b"")) == "tensor-refused"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', id="double name"
        ),
        pytest.param(b'{"a":{"dtype":"F32","dtype":"I64","shape":[2],"data_offsets":[0,8]}}', id="double member"),
        pytest.param(b'{"__metadata__":{"k":"1","k":"2"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', id="double metadata"),
        pytest.param(b'[{"a":1}]', id="a list"),
        pytest.param(b'"a"', id="a text"),
        pytest.param(b' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', id="space before"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte-order mark"),
        pytest.param(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', id="not UTF-8"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} {}', id="something behind"),
        pytest.param(b'{"a":', id="cut"),
        pytest.param(b'{"a":' * 100_000, id="depth bomb of objects"),
        pytest.param(b'{"a":' + b"[" * 1_000_000, id="depth bomb of lists"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[[[2]]],"data_offsets":[0,8]}}', id="nested shape"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', id="fraction"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', id="NaN"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[true,true],"data_offsets":[0,8]}}', id="booleans"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', id="negative dimension"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}', id="negative offset"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}}', id="three offsets"),
        pytest.param(b'{"a":{"dtype":"F32","shape":"2","data_offsets":[0,8]}}', id="shape as text"),
        pytest.param(b'{"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}}', id="dtype as number"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}}', id="extra member"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[2]}}', id="missing member"),
        pytest.param(b'{"a":null}', id="null"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,8]}}', id="integer of 100,000 digits"),
        pytest.param(b'{"__metadata__":{"a":{"b":"c"}}}', id="nested metadata"),
        pytest.param(b'{"__metadata__":["a"]}', id="metadata as list"),
        pytest.param(b'{"__metadata__":{"a":"\\ud800"}}', id="lone surrogate"),
    ],
)
def test_a_header_that_is_not_strict_json_of_the_one_form_is_refused(path, raw):
    assert gate_of(file_of(path, raw)) == "header-malformed"


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        pytest.param("a", {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, id="span too short"),
        pytest.param("a", {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}, id="span too long"),
        pytest.param("a", {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, id="span backwards"),
        pytest.param("a", {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}, id="empty with a huge dimension"),
        pytest.param("a", {"dtype": "F32", "shape": [2**31, 2**31, 2**31], "data_offsets": [0, 8]}, id="product overflow"),
        pytest.param("a", {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, id="rank 9"),
        pytest.param("a", {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, id="dtype not on the list"),
        pytest.param("a", {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 8]}, id="unknown dtype"),
        pytest.param("", F32, id="no name"),
        pytest.param("a" * 257, F32, id="long name"),
        pytest.param("a/../b", F32, id="path as name"),
        pytest.param("a\nb", F32, id="line break in a name"),
        pytest.param("a\n", F32, id="line break behind a name"),
        pytest.param("é", F32, id="letter outside ASCII"),
    ],
)
def test_a_tensor_that_cannot_be_what_it_says_is_refused(path, name, entry):
    assert gate_of(file_of(path, {name: entry})) == "tensor-refused"


@pytest.mark.parametrize(
    ("spans", "data_bytes"),
    [
        pytest.param([(0, 8), (4, 12)], 12, id="overlap"),
        pytest.param([(0, 8), (0, 8)], 8, id="the same span twice"),
        pytest.param([(0, 8), (12, 20)], 20, id="hole"),
        pytest.param([(4, 12)], 12, id="does not start at 0"),
        pytest.param([(0, 8)], 9, id="bytes behind"),
        pytest.param([(0, 8), (8, 16)], 15, id="file cut"),
        pytest.param([], 1, id="data without tensors"),
    ],
)
def test_spans_that_do_not_tile_the_file_are_refused(path, spans, data_bytes):
    header = {f"t{number}": {"dtype": "F32", "shape": [2], "data_offsets": span} for number, span in enumerate(spans)}

    assert gate_of(file_of(path, header, bytes(data_bytes))) == "layout-refused"


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param([TensorSpec("a", "F32", (1, 2))], id="shape"),
        pytest.param([TensorSpec("a", "F16", (2,))], id="dtype"),
        pytest.param([TensorSpec("b", "F32", (2,))], id="name"),
        pytest.param([TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (2,))], id="missing tensor"),
        pytest.param([], id="extra tensor"),
    ],
)
def test_a_file_of_another_architecture_is_refused(path, expected):
    assert gate_of(file_of(path, {"a": F32}), expected) == "architecture-mismatch"


def test_the_refusal_says_which_tensor_is_how_different(path):
    file_of(path, {"a": F32})

    with pytest.raises(Refused, match=r"a is F32\[2\], not F32\[3\]"):
        check_header(path, [TensorSpec("a", "F32", (3,))])


def test_a_file_of_the_architecture_passes_in_any_order(path):
    specs = [TensorSpec("b", "F32", (2,)), TensorSpec("a", "F32", (2,))]
    file_of(path, {"a": F32, "b": {**F32, "data_offsets": [8, 16]}}, bytes(16))

    assert check_header(path, specs) == sorted(specs)


class Harmful:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused(path, protocol):
    path.write_bytes(pickle.dumps({"weights": Harmful()}, protocol=protocol) + bytes(200))

    assert gate_of(path) in {"header-too-large", "header-malformed"}


def test_a_zip_archive_is_refused_and_told_how_to_be_converted(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))

    with pytest.raises(Refused, match=r"zip archive.*safetensors") as caught:
        check_header(path, None)
    assert caught.value.gate == "header-too-large"


def test_a_pickle_behind_a_valid_length_is_refused(path):
    file_of(path, pickle.dumps({"weights": Harmful()}))

    assert gate_of(path) == "header-malformed"


def test_a_symbolic_link_is_refused(path, tmp_path):
    path.symlink_to(file_of(tmp_path / "real", {"a": F32}))

    assert gate_of(path) == "file-refused"


def test_a_sparse_file_is_refused_whatever_its_claimed_size(path):
    file_of(path, {"a": {"dtype": "U8", "shape": [2**31], "data_offsets": [0, 2**31]}}, b"")
    os.truncate(path, 2**40)

    assert gate_of(path) == "file-refused"


def test_a_pipe_a_folder_and_nothing_are_refused_without_waiting(path, tmp_path):
    os.mkfifo(path)

    assert gate_of(path) == gate_of(tmp_path) == gate_of(tmp_path / "nothing") == "file-refused"


def test_the_gate_in_a_process_apart_gives_the_same_answers(path):
    file_of(path, {"a": F32})
    spec = TensorSpec("a", "F32", (2,))

    assert check_header_apart(path, [spec]) == [spec]
    with pytest.raises(Refused) as caught:
        check_header_apart(path, [])
    assert caught.value.gate == "architecture-mismatch"


def test_the_process_apart_survives_the_worst_header_it_reads(path):
    file_of(path, b'{"a":' + b"[" + b"[]," * ((HEADER_BYTES - 10) // 3) + b"[]]}", b"")

    with pytest.raises(Refused) as caught:
        check_header_apart(path, None)
    assert caught.value.gate == "header-malformed"


dimensions = st.lists(st.integers(0, 4), max_size=4)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "U8", "BOOL", "F99"]),
        "shape": dimensions,
        "data_offsets": st.tuples(st.integers(0, 64), st.integers(0, 64)).map(list),
    }
)
headers = st.one_of(
    st.binary(max_size=80),
    st.dictionaries(st.text(max_size=4), entries, max_size=3).map(lambda header: json.dumps(header).encode()),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner))
    .map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(header=headers, data=st.binary(max_size=64))
def test_any_bytes_are_either_refused_or_read_as_the_library_reads_them(path, header, data):
    file_of(path, header, data)

    try:
        specs = check_header(path, None)
    except Refused:
        return
    try:
        with safe_open(path, "numpy") as library:
            read = [TensorSpec(name, library.get_slice(name).get_dtype(), tuple(library.get_slice(name).get_shape())) for name in library.keys()]  # noqa: SIM118
    except SafetensorError:
        pytest.fail("our gate let a file through that the library refuses")
    assert specs == sorted(read)


@st.composite
def tiling_headers(draw):
    """Headers whose spans tile the data, the entries in any order."""
    named = draw(
        st.dictionaries(st.from_regex(r"[A-Za-z0-9_.-]{1,6}", fullmatch=True), st.tuples(st.sampled_from(sorted(ITEM_BYTES)), dimensions), max_size=5)
    )
    header, at = {}, 0
    for name, (dtype, shape) in named.items():
        end = at + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return dict(draw(st.permutations(list(header.items())))), at


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(tiling=tiling_headers(), surplus=st.integers(-1, 1))
def test_a_header_that_tiles_its_file_is_read_and_one_byte_more_or_less_is_refused(path, tiling, surplus):
    header, data_bytes = tiling
    file_of(path, header, bytes(max(0, data_bytes + surplus)))

    if surplus and data_bytes + surplus >= 0:
        assert gate_of(path) == "layout-refused"
        return
    assert check_header(path, None) == sorted(TensorSpec(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items())
    with safe_open(path, "numpy") as library:
        assert sorted(library.keys()) == sorted(header)
