"""One oracle for every registered dataset adapter, then what each does with its columns."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from services.errors import InvalidInput, MissingLabels, NonFinite
from services.learning.dataset import DATASETS
from services.learning.datasets.image import Image
from services.learning.datasets.series import Series, windows
from services.learning.datasets.tabular import Tabular
from services.learning.datasets.text import Text

torch.set_num_threads(1)
DATASETS.discover("services.learning.datasets")


def objects(*values: object) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


CASES = {
    "image": ({"height": 2, "width": 3, "channels": 2}, {"pixels": objects(bytes(range(12)), bytes(range(12, 24)))}),
    "tabular": (
        {"numeric": [{"name": "age", "mean": 10, "std": 2}], "categorical": [{"name": "colour", "values": ["red", "green"]}]},
        {"age": np.array([12, 8]), "colour": objects("green", "red")},
    ),
    "text": ({"vocab_size": 100, "max_length": 4}, {"text": objects("One two, three four", "")}),
    "text_pair": ({"vocab_size": 100, "max_length": 3}, {"first": objects("One two, three", ""), "second": objects("four", "five six")}),
}
LABEL = {"label": np.array([1, 0])}


def build(name: str, **more: object):
    return DATASETS[name](DATASETS[name].Parameters.model_validate({**CASES[name][0], **more}))


def test_every_adapter_file_registers_and_is_covered_here():
    assert DATASETS.broken == {}
    assert {name for name in DATASETS if "classification" in DATASETS[name].tasks} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_rows_become_tensors_in_order(name):
    adapter = build(name)
    x, y = adapter.decode({**CASES[name][1], **LABEL})
    prepared = adapter.prepare()(x)
    assert len(x) == 2
    assert y.dtype == torch.int64
    assert y.tolist() == [1, 0]
    assert prepared.shape[0] == 2
    assert prepared.dtype == (torch.int64 if adapter.modality == "text" else torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_no_record_at_all_is_an_empty_tensor_of_the_same_form(name):
    adapter = build(name)
    whole, _ = adapter.decode({**CASES[name][1], **LABEL})
    x, y = adapter.decode({key: values[:0] for key, values in {**CASES[name][1], **LABEL}.items()})
    assert x.shape == (0, *whole.shape[1:])
    assert x.dtype == whole.dtype
    assert y.shape == (0,)


@pytest.mark.parametrize("name", CASES)
def test_records_without_labels_are_refused(name):
    with pytest.raises(MissingLabels, match="label"):
        build(name).decode(CASES[name][1])


@pytest.mark.parametrize("name", CASES)
def test_a_missing_column_is_named(name):
    with pytest.raises(InvalidInput, match="is missing"):
        build(name).decode(LABEL)


@pytest.mark.parametrize("name", CASES)
def test_named_labels_take_their_place_among_the_classes(name):
    _, y = build(name, classes=["cat", "dog"]).decode({**CASES[name][1], "label": objects("dog", "cat")})
    assert y.tolist() == [1, 0]
    with pytest.raises(InvalidInput, match="cow"):
        build(name, classes=["cat", "dog"]).decode({**CASES[name][1], "label": objects("dog", "cow")})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("labels", [np.array([1.5, 0.0]), np.array([np.nan, 0.0]), objects("dog", "cat"), objects(None, None)])
def test_labels_that_are_no_whole_numbers_are_refused(name, labels):
    with pytest.raises(InvalidInput, match="label"):
        build(name).decode({**CASES[name][1], "label": labels})


@pytest.mark.parametrize("name", CASES)
def test_another_label_column_can_be_named(name):
    _, y = build(name, label_column="kind").decode({**CASES[name][1], "kind": np.array([0, 1])})
    assert y.tolist() == [0, 1]


@pytest.mark.parametrize("name", CASES)
def test_parameters_have_descriptions_and_refuse_what_they_do_not_know(name):
    assert all("description" in field for field in DATASETS[name].Parameters.model_json_schema()["properties"].values())
    with pytest.raises(ValidationError):
        DATASETS[name].Parameters.model_validate({**CASES[name][0], "surprise": 1})


def test_pixels_are_read_by_height_width_and_channel():
    x, _ = build("image").decode({**CASES["image"][1], **LABEL})
    assert x.dtype == torch.uint8
    assert x.shape == (2, 2, 2, 3)
    assert x[0, 1].tolist() == [[1, 3, 5], [7, 9, 11]]


def test_lists_of_numbers_are_the_same_image_as_bytes():
    adapter = build("image")
    from_lists, _ = adapter.decode({"pixels": np.arange(24).reshape(2, 12), **LABEL})
    from_bytes, _ = adapter.decode({**CASES["image"][1], **LABEL})
    assert torch.equal(from_lists, from_bytes)


def test_images_are_scaled_per_channel():
    adapter = Image(Image.Parameters(height=1, width=1, channels=2, mean=(0.5, 0.0), std=(0.25, 1.0)))
    prepared = adapter.prepare()(torch.tensor([[[[255]], [[51]]]], dtype=torch.uint8))
    assert prepared.flatten().tolist() == pytest.approx([(1 - 0.5) / 0.25, 0.2])


@pytest.mark.parametrize("pixels", [objects(b"short", bytes(12)), objects(None, bytes(12)), np.zeros((2, 11), np.uint8), np.full((2, 12), 256)])
def test_images_of_another_size_or_range_are_refused(pixels):
    with pytest.raises(InvalidInput, match="pixels"):
        build("image").decode({"pixels": pixels, **LABEL})


def test_a_scale_per_channel_is_asked_for():
    with pytest.raises(ValidationError, match="per channel"):
        Image.Parameters(height=1, width=1, channels=3, mean=(0.5,))


def test_numbers_are_scaled_and_names_become_one_hot():
    x, _ = build("tabular").decode({**CASES["tabular"][1], **LABEL})
    assert x.tolist() == [[1, 0, 1], [-1, 1, 0]]


def test_missing_numbers_and_unknown_names_are_refused():
    with pytest.raises(NonFinite, match="age"):
        build("tabular").decode({**CASES["tabular"][1], "age": np.array([np.nan, 1]), **LABEL})
    with pytest.raises(InvalidInput, match="blue"):
        build("tabular").decode({**CASES["tabular"][1], "colour": objects("blue", "red"), **LABEL})
    with pytest.raises(InvalidInput, match="numbers"):
        build("tabular").decode({**CASES["tabular"][1], "age": objects("old", "young"), **LABEL})


def test_a_table_names_each_column_once_and_never_its_label():
    for columns in ([], [{"name": "age"}, {"name": "age"}], [{"name": "label"}]):
        with pytest.raises(ValidationError):
            Tabular.Parameters.model_validate({"numeric": columns})


def test_words_keep_their_id_wherever_they_stand():
    adapter = Text(Text.Parameters(vocab_size=100_000, max_length=3))
    x, _ = adapter.decode({"text": objects("Blue sky", "sky, blue sea"), **LABEL})
    blue, sky = x[0, :2].tolist()
    assert x[0, 2] == 0
    assert x[1, 0] == sky
    assert x[1, 2] == blue
    assert blue != sky
    assert 1 <= int(x[x > 0].min()) <= int(x.max()) < 100_000


def test_bytes_are_their_value_plus_one():
    adapter = Text(Text.Parameters(tokens="bytes", vocab_size=257, max_length=4))
    x, _ = adapter.decode({"text": objects("Aé", "x" * 9), **LABEL})
    assert x.tolist() == [[66, 0xC3 + 1, 0xA9 + 1, 0], [121] * 4]
    with pytest.raises(ValidationError, match="257"):
        Text.Parameters(tokens="bytes", vocab_size=256)


def test_a_missing_text_is_refused():
    with pytest.raises(InvalidInput, match="text"):
        build("text").decode({"text": objects(None, "x"), **LABEL})


@pytest.mark.parametrize("name", CASES)
def test_real_targets_take_the_place_of_labels(name):
    _, y = build(name, target="number").decode({**CASES[name][1], "label": np.array([1.5, -2])})
    assert y.dtype == torch.float32
    assert y.tolist() == [1.5, -2]
    for odd in (np.array([1.5, np.nan]), np.array([np.inf, 1]), objects("a", 1), objects(None, 1.0)):
        with pytest.raises(InvalidInput, match="label"):
            build(name, target="number").decode({**CASES[name][1], "label": odd})
    with pytest.raises(MissingLabels, match="label"):
        build(name, target="number").decode(CASES[name][1])


def test_a_pair_of_texts_fills_one_half_each_from_the_right():
    pair, single = build("text_pair"), build("text")
    x, y = build("text_pair", target="number").decode({**CASES["text_pair"][1], "label": np.array([0.5, 4])})
    (ids, four), _ = single.decode({"text": objects("one two, three", "four"), **LABEL})
    assert x.tolist() == [[*ids[:3].tolist(), 0, 0, four[0].item()], [0, 0, 0, 0, *x[1, 4:].tolist()]]
    assert y.tolist() == [0.5, 4]
    with pytest.raises(InvalidInput, match="second"):
        pair.decode({**CASES["text_pair"][1], "second": objects("four", None), **LABEL})


def series(**more: object) -> Series:
    return Series(Series.Parameters.model_validate({"length": 2, "channels": 2, "horizon": 2, **more}))


WINDOWS = {"past": np.arange(8.0).reshape(2, 4), "target": np.array([[1.0, 2.0], [3.0, 4.0]])}


def test_windows_are_steps_of_channels_and_targets_step_by_step():
    x, y = series(mean=[1, 0], std=[2, 1]).decode(WINDOWS)
    lists, _ = series().decode({**WINDOWS, "past": objects([0, 1, 2, 3], [4, 5, 6, 7])})
    assert x.tolist() == [[[-0.5, 1], [0.5, 3]], [[1.5, 5], [2.5, 7]]]
    assert y.tolist() == [[1, 2], [3, 4]]
    assert lists[1].tolist() == [[4, 5], [6, 7]]
    assert series(horizon=1).decode({**WINDOWS, "target": np.array([1.0, 2.0])})[1].shape == (2,)


@pytest.mark.parametrize(
    "odd",
    [
        {"past": np.array([[0, 1, 2, np.nan], [1, 2, 3, 4]])},
        {"past": objects([0, 1, 2], [4, 5, 6, 7])},
        {"past": objects([0, None, 1, 2], [4, 5, 6, 7])},
        {"target": np.array([[1, np.nan], [3, 4]])},
        {"target": np.array([1.0, 2.0])},
        {"times": np.array([[1, 2, 3, 4], [2, 3, 5, 6]])},
        {"times": np.array([[1, 2, 3, 4], [4, 3, 2, 1]])},
    ],
)
def test_a_series_with_gaps_is_refused(odd):
    with pytest.raises(InvalidInput):
        series(time_column="times" if "times" in odd else None).decode({**WINDOWS, **odd})


def test_a_series_without_targets_or_past_is_refused():
    with pytest.raises(MissingLabels, match="target"):
        series().decode({"past": WINDOWS["past"]})
    with pytest.raises(InvalidInput, match="is missing"):
        series().decode({"target": WINDOWS["target"]})
    with pytest.raises(ValidationError, match="per channel"):
        series(mean=[1])


def test_windows_are_cut_without_looking_ahead_and_not_across_gaps():
    values = np.arange(10.0)
    cut = windows(values[:, None], values, np.arange(10), length=3, horizon=2, stride=2)
    assert cut.first.tolist() == [3, 5, 7]
    assert cut.past[1, :, 0].tolist() == [2, 3, 4]
    assert cut.target[1].tolist() == [5, 6]
    for times, series_values in ((np.delete(np.arange(11), 4), values), (np.arange(10), np.where(values == 4, np.nan, values))):
        with pytest.raises(InvalidInput, match="gaps"):
            windows(series_values[:, None], series_values, times, length=3, horizon=2)
    with pytest.raises(InvalidInput, match="too few"):
        windows(values[:4, None], values[:4], np.arange(4), length=3, horizon=2)
