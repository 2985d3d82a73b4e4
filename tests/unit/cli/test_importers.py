import json
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_wine
from typer.testing import CliRunner

from cli.import_commands import app
from cli.importers import SKLEARN_SETS, NotImportable, import_csv, import_image_folder, import_npz, import_sklearn, import_torchvision


def pixels_of(path, shape):
    return np.frombuffer(b"".join(pq.read_table(path)["pixels"].to_pylist()), np.uint8).reshape(shape)


def test_digits_are_written_with_blocks_of_records_per_subject(tmp_path):
    done = import_sklearn("digits", tmp_path / "digits.parquet", records_per_subject=10)
    table = pq.read_table(done.path)
    assert (done.records, done.adapter, done.adapter_params) == (1797, "image", {"height": 8, "width": 8, "channels": 1})
    assert table.column_names == ["record_id", "subject_id", "label", "pixels"]
    assert len(set(table["record_id"].to_pylist())) == 1797
    assert [row for row, subject in enumerate(table["subject_id"].to_pylist()) if subject == "writer-007"] == list(range(70, 80))
    assert table["label"].to_pylist() == load_digits().target.tolist()
    assert np.abs(pixels_of(done.path, (-1, 8, 8)) / 255 - load_digits().images / 16).max() < 0.5 / 255 + 1e-9


@pytest.mark.parametrize("name", SKLEARN_SETS)
def test_every_bundled_set_is_written(name, tmp_path):
    done = import_sklearn(name, tmp_path / "set.parquet")
    assert pq.read_metadata(done.path).num_rows == done.records > 100
    assert "subject_id" not in pq.read_schema(done.path).names


def test_a_table_keeps_its_numbers_and_names_its_columns(tmp_path):
    done = import_sklearn("wine", tmp_path / "wine.parquet")
    table = pq.read_table(done.path)
    assert [entry["name"] for entry in done.adapter_params["numeric"]] == table.column_names[2:]
    assert table["alcohol"].to_pylist() == load_wine().data[:, 0].tolist()


def test_the_same_source_gives_the_same_bytes(tmp_path):
    first, second = (import_sklearn("digits", tmp_path / f"{n}.parquet").path.read_bytes() for n in "ab")
    assert first == second


def test_npz_parts_become_splits(tmp_path):
    x = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    np.savez(tmp_path / "set.npz", x_train=x[:2], y_train=[[1], [0]], x_test=x[2:], y_test=[[1]])
    done = import_npz(tmp_path / "set.npz", tmp_path / "set.parquet")
    table = pq.read_table(done.path)
    assert done.adapter_params == {"height": 2, "width": 2, "channels": 3}
    assert table["split"].to_pylist() == ["train", "train", "test"]
    assert table["label"].to_pylist() == [1, 0, 1]
    assert np.array_equal(pixels_of(done.path, x.shape), x)


def test_an_npz_of_two_axes_is_a_table_without_split(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.array([[1.5, 2], [3, 4]]), y=[0, 1])
    done = import_npz(tmp_path / "set.npz", tmp_path / "set.parquet")
    assert done.adapter == "tabular"
    assert pq.read_table(done.path).to_pydict()["x0"] == [1.5, 3]
    assert "split" not in pq.read_schema(done.path).names


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((2, 3))},
        {"x": np.array([{}, {}], dtype=object), "y": [0, 1]},
        {"z": np.zeros(3)},
        {"x": np.zeros((2, 3)), "y": [1]},
        {"x": np.zeros((2, 3, 3)), "y": [0, 1]},
    ],
)
def test_npz_files_that_are_no_dataset_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(NotImportable):
        import_npz(tmp_path / "set.npz", tmp_path / "set.parquet")
    assert not (tmp_path / "set.parquet").exists()


def test_a_folder_of_pictures_takes_ids_from_paths_and_labels_from_folders(tmp_path):
    for part, kind, shade in [("train", "cat", 10), ("train", "dog", 200), ("test", "cat", 30)]:
        (tmp_path / "pets" / part / kind).mkdir(parents=True)
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / "pets" / part / kind / "1.png")
    done = import_image_folder(tmp_path / "pets", tmp_path / "pets.parquet", height=2, width=3)
    table = pq.read_table(done.path)
    assert done.adapter_params == {"height": 2, "width": 3, "channels": 3, "classes": ["cat", "dog"]}
    assert table["record_id"].to_pylist() == ["test/cat/1.png", "train/cat/1.png", "train/dog/1.png"]
    assert table["split"].to_pylist() == ["test", "train", "train"]
    assert table["label"].to_pylist() == ["cat", "cat", "dog"]
    assert pixels_of(done.path, (3, 2, 3, 3))[:, 0, 0, 0].tolist() == [30, 10, 200]


def test_a_folder_of_another_form_is_refused(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    with pytest.raises(NotImportable, match="CLASS/FILE"):
        import_image_folder(tmp_path, tmp_path / "set.parquet", height=2, width=2)


def test_a_csv_file_becomes_a_table_with_its_vocabularies(tmp_path):
    (tmp_path / "people.csv").write_text("id,age,work,bought\n7,31,nurse,yes\n9,45,cook,no\n")
    done = import_csv(tmp_path / "people.csv", tmp_path / "people.parquet", label="bought", record_id="id", subject="id")
    assert done.adapter == "tabular"
    assert done.adapter_params == {
        "numeric": [{"name": "age"}],
        "categorical": [{"name": "work", "values": ["cook", "nurse"]}],
        "classes": ["no", "yes"],
    }
    assert pq.read_table(done.path).to_pylist()[0] == {"record_id": "7", "subject_id": "7", "label": "yes", "age": 31, "work": "nurse"}


def test_a_csv_file_with_texts_keeps_nothing_else(tmp_path):
    (tmp_path / "banking.csv").write_text('text,category,note\n"where is, my card",card,a\nwhat rate,rate,b\n')
    done = import_csv(tmp_path / "banking.csv", tmp_path / "banking.parquet", label="category", text="text")
    assert (done.adapter, done.adapter_params) == ("text", {"classes": ["card", "rate"]})
    assert pq.read_table(done.path).to_pylist()[0] == {"record_id": "banking-000000", "label": "card", "text": "where is, my card"}


@pytest.mark.parametrize("body", ["", "label,x\n1,2\n,3\n", "label,x\n1,\n1,3\n", "other,x\n1,2\n", "id,label,x\n1,0,2\n1,0,3\n"])
def test_csv_files_with_holes_or_double_ids_are_refused(body, tmp_path):
    (tmp_path / "set.csv").write_text(body)
    with pytest.raises(NotImportable):
        import_csv(tmp_path / "set.csv", tmp_path / "set.parquet", record_id="id" if body.startswith("id") else None)


def test_a_torchvision_set_is_read_from_its_folder(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 2, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 2) + bytes([3, 9]))
    done = import_torchvision("MNIST", tmp_path, tmp_path / "mnist.parquet")
    table = pq.read_table(done.path)
    assert done.adapter_params == {"height": 28, "width": 28, "channels": 1}
    assert table["split"].to_pylist() == ["train", "train", "test", "test"]
    assert table["label"].to_pylist() == [3, 9, 3, 9]
    assert np.array_equal(pixels_of(done.path, (4, 28, 28))[2:], images)


def test_a_set_that_is_not_there_is_refused_without_a_download(tmp_path):
    with pytest.raises(NotImportable, match="does not lie under"):
        import_torchvision("MNIST", tmp_path, tmp_path / "mnist.parquet")
    with pytest.raises(NotImportable, match="there are"):
        import_torchvision("Nonsense", tmp_path, tmp_path / "x.parquet")
    with pytest.raises(NotImportable, match="digits"):
        import_sklearn("nonsense", tmp_path / "x.parquet")


def test_the_command_prints_what_to_register_the_file_with(tmp_path):
    (tmp_path / "set.csv").write_text("kind,x\ncat,1\ndog,2\n")
    done = CliRunner().invoke(app, ["csv", str(tmp_path / "set.csv"), str(tmp_path / "set.parquet"), "--label", "kind"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["adapter_params"] == {"numeric": [{"name": "x"}], "categorical": [], "classes": ["cat", "dog"]}


def test_the_command_says_in_one_line_why_it_refuses(tmp_path):
    done = CliRunner().invoke(app, ["sklearn", "nonsense", str(tmp_path / "set.parquet")])
    assert done.exit_code == 1
    assert "there is no set 'nonsense'" in done.output
