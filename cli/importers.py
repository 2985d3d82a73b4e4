"""`lethe import`: npz files, folders of images, CSV and the sets of torchvision and scikit-learn become Parquet, on the client's side.

Every file has the columns `record_id` (unique), `label` and those of its adapter; `split` (`train` or `test`) where the source has one, and
`subject_id` where records are given to data subjects. The service never reads `subject_id`: the client sends the subject index from it.
No scale is computed from the records, for it would outlive those that are forgotten; let the network learn it (`mlp`, `input_norm`).
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SKLEARN_SETS = ("digits", "breast_cancer", "wine", "iris", "diabetes")
TORCHVISION_SETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100", "SVHN", "STL10")
NPZ_PARTS = (("x", "y", None), ("x_train", "y_train", "train"), ("train_images", "train_labels", "train"),
             ("val_images", "val_labels", "train"), ("x_test", "y_test", "test"), ("test_images", "test_labels", "test"))  # fmt: skip
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}
RESERVED = ("record_id", "subject_id", "split", "label")


class NotImportable(Exception):
    """The source cannot become a dataset; the message says why."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written: `adapter` and `adapter_params` are what `POST /v1/datasets` takes with it."""

    path: Path
    records: int
    adapter: str
    adapter_params: dict[str, Any]


def import_sklearn(name: str, target: Path, *, records_per_subject: int | None = None, subject_prefix: str = "writer-") -> Imported:
    """Write one of scikit-learn's bundled sets. With `records_per_subject`, blocks of that many rows are given to made-up data subjects."""
    if name not in SKLEARN_SETS:
        raise NotImportable(f"there is no set {name!r}; there are {', '.join(SKLEARN_SETS)}")
    bunch = library("sklearn.datasets", f"load_{name}")()
    count = len(bunch.target)
    columns: dict[str, Any] = {"record_id": numbered(name, count)}
    if records_per_subject is not None:
        columns["subject_id"] = [f"{subject_prefix}{row // records_per_subject:03d}" for row in range(count)]
    columns["label"] = bunch.target
    if name == "digits":
        pixels = (bunch.images * (255 / 16)).round().astype("uint8")  # sixteen steps of grey
        return write_images(columns, pixels, target)
    table = dict(zip((plain(feature) for feature in bunch.feature_names), bunch.data.T, strict=True))
    return write_table(columns, table, target)


def import_torchvision(name: str, root: Path, target: Path) -> Imported:
    """Write a set of torchvision that already lies under `root`, training and test part. Nothing is downloaded."""
    if name not in TORCHVISION_SETS:
        raise NotImportable(f"there is no set {name!r}; there are {', '.join(TORCHVISION_SETS)}")
    import numpy as np

    family = library("torchvision.datasets", name)
    pixels, labels, splits = [], [], []
    for split in ("train", "test"):
        try:
            part = family(str(root), download=False, **({"split": split} if name in {"SVHN", "STL10"} else {"train": split == "train"}))
        except RuntimeError as error:
            raise NotImportable(f"{name} does not lie under {root}: {error}") from error
        data = np.asarray(part.data)
        pixels.append(data.transpose(0, 2, 3, 1) if name in {"SVHN", "STL10"} else data)
        labels.append(np.asarray(part.labels if hasattr(part, "labels") else part.targets).reshape(len(data), -1)[:, 0])
        splits += [split] * len(data)
    columns = {"record_id": numbered(name.lower(), len(splits)), "split": splits, "label": np.concatenate(labels).astype("int64")}
    return write_images(columns, np.concatenate(pixels), target)


def import_npz(source: Path, target: Path) -> Imported:
    """Write the arrays of an npz file: `x` and `y`, or `x_train` ... `y_test`, or `train_images` ... `test_labels`.

    Arrays of 3 or 4 axes are images (n, H, W) or (n, H, W, ch), uint8; arrays of 2 axes are tables. Pickled objects are refused.
    """
    import numpy as np

    parts, labels, splits = [], [], []
    try:
        with np.load(source, allow_pickle=False) as arrays:
            for x_name, y_name, split in NPZ_PARTS:
                if x_name not in arrays:
                    continue
                if y_name not in arrays:
                    raise NotImportable(f"{source} holds {x_name} without {y_name}")
                parts.append(arrays[x_name])
                labels.append(arrays[y_name].reshape(-1))
                splits += [split] * len(arrays[x_name])
    except (ValueError, OSError) as error:
        raise NotImportable(f"{source} is no npz file of plain arrays: {error}") from error
    if not parts:
        raise NotImportable(f"{source} holds none of {', '.join(x for x, _, _ in NPZ_PARTS)}")
    x, y = np.concatenate(parts), np.concatenate(labels)
    if len(x) != len(y):
        raise NotImportable(f"{source} holds {len(x)} records but {len(y)} labels")
    columns: dict[str, Any] = {"record_id": numbered(source.stem, len(x))}
    if None not in splits:
        columns["split"] = splits
    columns["label"] = y
    if x.ndim == 2:
        return write_table(columns, {f"x{column}": values for column, values in enumerate(x.T)}, target)
    return write_images(columns, x, target)


def import_image_folder(source: Path, target: Path, *, height: int, width: int, grey: bool = False) -> Imported:
    """Write a folder of pictures `CLASS/FILE`, or `train/CLASS/FILE` and `test/CLASS/FILE`, resized to `height` by `width`.

    The record id is the path inside the folder, the label the name of the class; Pillow reads the pictures.
    """
    import numpy as np
    from PIL import Image

    files = [file for file in sorted(source.rglob("*")) if file.suffix.lower() in PICTURES and not file.is_symlink()]
    depth = {len(file.relative_to(source).parts) for file in files}
    if depth not in ({2}, {3}):
        raise NotImportable(f"{source} must hold pictures as CLASS/FILE, or as train/CLASS/FILE and test/CLASS/FILE")
    columns: dict[str, Any] = {"record_id": [file.relative_to(source).as_posix() for file in files]}
    if depth == {3}:
        columns["split"] = [file.relative_to(source).parts[0] for file in files]
        if not set(columns["split"]) <= {"train", "test"}:
            raise NotImportable(f"the parts of {source} must be called train and test")
    columns["label"] = [file.parent.name for file in files]
    pixels = np.empty((len(files), height, width, 1 if grey else 3), np.uint8)
    for row, file in enumerate(files):
        with Image.open(file) as picture:
            pixels[row] = np.asarray(picture.convert("L" if grey else "RGB").resize((width, height))).reshape(height, width, -1)
    return write_images(columns, pixels, target)


def import_csv(
    source: Path,
    target: Path,
    *,
    label: str = "label",
    text: str | None = None,
    record_id: str | None = None,
    subject: str | None = None,
    split: str | None = None,
) -> Imported:
    """Write a CSV file with a header. With `text`, that column is the text of a record; else every other column is a number or a name.

    `label`, `record_id`, `subject` and `split` say which columns these are; without `record_id` the rows are numbered.
    """
    import pyarrow as pa
    from pyarrow import csv

    try:
        table = csv.read_csv(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise NotImportable(f"{source} is no CSV file with a header: {error}") from error
    taken = {"record_id": record_id, "subject_id": subject, "split": split, "label": label}
    missing = sorted({name for name in (*taken.values(), text) if name is not None} - set(table.column_names))
    if missing:
        raise NotImportable(f"{source} has no column {', '.join(missing)}")
    columns: dict[str, Any] = {"record_id": numbered(source.stem, len(table))}
    for ours, theirs in taken.items():
        if theirs is not None:
            values = table.column(theirs)
            columns[ours] = values if ours == "label" else values.cast(pa.string())
    if text is not None:
        columns["text"] = table.column(text).cast(pa.string())
        return written(columns, target, "text", with_classes(columns, {}))
    features = {name: table.column(name) for name in table.column_names if name not in taken.values()}
    return write_table(columns, features, target)


def write_images(columns: Mapping[str, Any], pixels: Any, target: Path) -> Imported:
    """Write records with images (n, H, W) or (n, H, W, ch) as the column `pixels` of raw bytes. Raises NotImportable for other arrays."""
    import pyarrow as pa

    if pixels.ndim not in {3, 4} or pixels.dtype != "uint8":
        raise NotImportable(f"images must be uint8 of shape (n, H, W) or (n, H, W, ch), not {pixels.dtype} of {pixels.ndim} axes")
    count, height, width = pixels.shape[:3]
    channels = pixels.shape[3] if pixels.ndim == 4 else 1
    size = height * width * channels
    buffer = pa.py_buffer(pixels.tobytes())
    stored = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, buffer])
    parameters = {"height": height, "width": width, "channels": channels}
    return written({**columns, "pixels": stored}, target, "image", with_classes(columns, parameters))


def write_table(columns: Mapping[str, Any], features: Mapping[str, Any], target: Path) -> Imported:
    """Write records with one column per feature: numbers as they are, everything else as names with the vocabulary that occurs."""
    import pyarrow as pa

    clash = sorted(set(features) & set(RESERVED))
    if clash:
        raise NotImportable(f"a feature may not be called {', '.join(clash)}")
    numeric, categorical, stored = [], [], {}
    for name, values in features.items():
        column = values if isinstance(values, pa.ChunkedArray | pa.Array) else pa.array(values)
        if column.null_count:
            raise NotImportable(f"the column {name} has {column.null_count} empty values; fill or drop them first")
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            numeric.append({"name": name})
            stored[name] = column
            continue
        stored[name] = column.cast(pa.string())
        categorical.append({"name": name, "values": sorted(stored[name].unique().to_pylist())})
    parameters = with_classes(columns, {"numeric": numeric, "categorical": categorical})
    return written({**columns, **stored}, target, "tabular", parameters)


def with_classes(columns: Mapping[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with `classes`, the sorted names of the labels, where labels are names."""
    import pyarrow as pa

    labels = columns["label"]
    stored = labels if isinstance(labels, pa.ChunkedArray | pa.Array) else pa.array(labels)
    if not (pa.types.is_string(stored.type) or pa.types.is_large_string(stored.type)):
        return parameters
    return {**parameters, "classes": sorted({str(name) for name in stored.to_pylist()})}


def written(columns: Mapping[str, Any], target: Path, adapter: str, parameters: dict[str, Any]) -> Imported:
    """Write the columns as Parquet. Raises NotImportable where record ids are not unique or a label is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    if not len(table):
        raise NotImportable("the source holds no record")
    if len(table["record_id"].unique()) != len(table) or table["record_id"].null_count:
        raise NotImportable("record ids must be unique and never empty")
    if table["label"].null_count:
        raise NotImportable(f"{table['label'].null_count} records have no label")
    pq.write_table(table, target, compression="zstd", row_group_size=65536)
    return Imported(target, len(table), adapter, parameters)


def library(module: str, name: str) -> Any:
    """Return `name` of a heavy library, loaded by name when it is asked for: the command line itself depends on neither torch nor scikit-learn."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise NotImportable(f"{module.split('.', maxsplit=1)[0]} is not installed here") from error


def numbered(prefix: str, count: int) -> list[str]:
    """Return `prefix-000000` and so on."""
    return [f"{prefix}-{row:06d}" for row in range(count)]


def plain(feature: str) -> str:
    """Return a feature's name without spaces and units."""
    return feature.split(" (", maxsplit=1)[0].replace(" ", "_").replace("/", "_")
