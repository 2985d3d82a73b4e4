"""Each figure against an independent count."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import roc_curve
from torch import nn

from services.audit.figure_forms import form_of, plain
from services.errors import Cancelled
from services.learning.data import Span, Splits
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.tasks.regression import Regression
from services.verification import figure
from services.verification.figure import FIGURES, Figure, drawn
from services.verification.metric import Models
from services.verification.reading import Measured, Reading, Unmeasured
from services.verification.statistics.bins import bin_count, counts_in, shared_edges
from tests.unit.verification.worlds import TASK, FixedLogits, split_of, splits_of

torch.set_num_threads(1)
figure.discover()

RNG = np.random.default_rng(7)
MEMBERS, OTHERS, TESTED = 120, 400, 200
TABLES = [RNG.normal(size=(MEMBERS + OTHERS + TESTED, 10)) * scale for scale in (3.0, 2.0, 1.5)]
LABELS = RNG.integers(0, 10, size=MEMBERS + OTHERS + TESTED)
MODELS = Models(*(FixedLogits(table) for table in TABLES))


def parts(members: int = MEMBERS, kind: str = "records", classes: tuple[int, ...] = ()) -> Splits:
    forget = split_of("f", LABELS[:members])
    attack = split_of("a", LABELS[MEMBERS : MEMBERS + OTHERS], first=MEMBERS)
    tested = split_of("t", LABELS[MEMBERS + OTHERS :], first=MEMBERS + OTHERS)
    return splits_of(forget=forget, attack=attack, verification=tested, kind=kind, classes=classes)


def one(name: str, models: Models = MODELS, data: Splits | None = None, task=TASK, readings=()):
    """Return the figure's document as the ledger keeps it, or its reason."""
    (found,) = [entry for entry in drawn(models, data or parts(), task, Run(seed=3), readings) if entry["name"] == name]
    return plain(form_of(found["document"])) if "document" in found else found["reason"]


def losses(table: np.ndarray, first: int, last: int) -> np.ndarray:
    return -log_softmax(table.astype(np.float32).astype(np.float64), axis=1)[np.arange(len(LABELS)), LABELS][first:last]


def test_nothing_failed_to_register_and_every_figure_says_what_it_shows():
    assert not FIGURES.broken
    assert {"loss_histogram", "roc", "prediction_distribution", "relearn_curve", "prediction_density", "error_histogram"} <= set(FIGURES)
    for name in FIGURES:
        assert FIGURES[name].title
        assert FIGURES[name].caption.endswith(".")
        assert FIGURES[name].tasks


def test_the_loss_histogram_counts_each_record_once_in_bins_that_all_models_share():
    found = one("loss_histogram")
    edges = np.array([float(edge) for edge in found["edges"]])

    assert [panel["n"] for panel in found["panels"]] == [MEMBERS, TESTED]
    for panel, (first, last) in zip(found["panels"], ((0, MEMBERS), (MEMBERS + OTHERS, len(LABELS))), strict=True):
        assert [series["role"] for series in panel["series"]] == ["original", "unlearned", "retrained"]
        for series, table in zip(panel["series"], TABLES, strict=True):
            expected = [np.sum((losses(table, first, last) >= low) & (losses(table, first, last) < high)) for low, high in pairwise(edges)]
            assert np.abs(np.array(series["counts"]) - expected).sum() <= 2  # the printed edges have six digits
            assert sum(series["counts"]) == last - first


def test_no_edge_of_a_bin_is_the_value_of_a_record_and_few_records_have_few_bins():
    values = RNG.exponential(size=50)
    for log in (False, True):
        edges = shared_edges([values], 10, log=log)
        assert edges[0] < values.min()
        assert edges[-1] > values.max()
        assert not set(edges.tolist()) & set(values.tolist())
        assert counts_in(values, edges).sum() == len(values)
    assert shared_edges([np.array([0.1, 12.3])], 7).tolist() == pytest.approx(np.linspace(0, 14, 8).tolist())
    assert [bin_count(n) for n in (16, 40, 10_000)] == [4, 10, 30]
    assert counts_in(np.zeros(3), shared_edges([np.array([0.0, 5.0])], 4, log=True)).tolist() == [3, 0, 0, 0]


def test_the_roc_is_that_of_scikit_learn_at_every_point_of_its_grid():
    data = parts()
    found = one("roc", data=data)
    inside, outside = losses(TABLES[1], 0, MEMBERS), losses(TABLES[1], MEMBERS, MEMBERS + OTHERS)
    held = np.bincount(LABELS[:MEMBERS], minlength=10) / np.bincount(LABELS[MEMBERS : MEMBERS + OTHERS], minlength=10)
    weights = np.concatenate([np.ones(MEMBERS), held[LABELS[MEMBERS : MEMBERS + OTHERS]]])
    scores = -np.concatenate([inside, outside])
    false, true, _ = roc_curve([1] * MEMBERS + [0] * OTHERS, scores, sample_weight=weights, drop_intermediate=False)

    (series,) = [line for line in found["series"] if line["role"] == "unlearned"]
    for x, y in zip(series["x"], series["y"], strict=True):
        assert float(y) == pytest.approx(max(true[false <= float(x) + 1e-5]), abs=0.02)
    assert float(found["x"]["low"]) == pytest.approx(10 / OTHERS)
    assert float(series["x"][0]) == pytest.approx(10 / OTHERS)
    assert (found["x"]["scale"], found["diagonal"]) == ("log", True)
    assert [line["role"] for line in found["series"]] == ["original", "unlearned", "retrained"]


def test_a_rate_at_a_tenth_of_a_per_cent_is_printed_only_with_ten_thousand_non_members():
    def marks(others: int):
        table = np.random.default_rng(0).normal(size=(50 + others, 10))
        data = splits_of(forget=split_of("f", np.zeros(50)), attack=split_of("a", np.zeros(others), first=50))
        return one("roc", models=Models(FixedLogits(table), FixedLogits(table)), data=data)["marks"]

    assert marks(9_999) == []
    (mark,) = marks(10_000)
    assert float(mark["at"]) == 0.001
    assert mark["label"].startswith("at 0.1 %: ")


def test_the_shares_of_the_prediction_distribution_are_those_of_a_plain_count():
    chosen = np.repeat([1, 2, 3], [60, 40, 20])
    z = np.eye(4)[chosen] * 3.0
    z[:, 0] = 5.0
    data = splits_of(forget=split_of("f", np.zeros(MEMBERS)), kind="class", classes=(0,))
    found = one(
        "prediction_distribution",
        models=Models(FixedLogits(z), FixedLogits(z), FixedLogits(np.eye(4)[np.full(MEMBERS, 3)])),
        data=data,
        task=Classification(4),
    )

    assert found["categories"] == ["1", "2", "3"]
    assert [series["values"] for series in found["series"]] == [["0.5", "0.333333", "0.166667"], ["0", "0", "1"]]


def test_the_prediction_distribution_is_for_class_requests_alone():
    assert [entry for entry in drawn(MODELS, parts(), TASK, Run(seed=3), []) if entry["name"] == "prediction_distribution"] == []


def relearned(n: int, courses: list[list[float]]) -> Measured:
    reading = Reading(2.0, 1.0, 3.0, 0.9, n, {"courses": courses, "bar": 0.9})
    return Measured("metric", "relearn_time", "forget_train", Unmeasured("x"), reading, reading)


def test_the_relearn_curve_is_the_median_over_seeds_with_its_range_and_keeps_the_last_value():
    courses = [[0.0, 0.5, 1.0], [0.2, 0.95], [0.4, 0.6, 0.7, 0.9]]
    found = one("relearn_curve", readings=[relearned(100, courses)])

    line = found["series"][0]
    assert [float(x) for x in line["x"]] == [0, 1, 2, 3]
    assert [float(y) for y in line["y"]] == [0.2, 0.6, 0.95, 0.95]
    assert [float(y) for y in line["low"]] == [0.0, 0.5, 0.7, 0.9]
    assert [float(y) for y in line["high"]] == [0.4, 0.95, 1.0, 1.0]
    assert found["marks"] == [{"axis": "y", "at": "0.9", "label": "the bar"}]
    assert one("relearn_curve") == "not_run"
    assert one("relearn_curve", readings=[relearned(15, courses)]) == "fewer_than_16_forgotten_records"


class Worth(nn.Module):
    """Predicts a table's value for the record whose only feature is its row."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.as_tensor(values, dtype=torch.float32)

    def forward(self, x):
        return self.values[x[:, 0].long()][:, None]


def test_predictions_and_errors_of_a_regression_are_counted_over_shared_bins():
    rng = np.random.default_rng(1)
    wanted = rng.normal(size=300).astype(np.float32)
    predicted = [wanted + rng.normal(size=300).astype(np.float32) * spread for spread in (0.1, 0.5, 1.0)]
    named = split_of("f", np.zeros(300))
    whole = type(named)(named.x, torch.from_numpy(wanted), named.ids)
    rows = torch.arange(300)
    data = Splits(whole.take(rows[:100]), whole.take(rows[:0]), whole.take(rows[:0]), whole.take(rows[100:200]), whole.take(rows[200:]))
    models = Models(*(Worth(values) for values in predicted))

    density = one("prediction_density", models=models, data=data, task=Regression(1))
    edges = [float(edge) for edge in density["edges"]]
    for series, values in zip(density["panels"][0]["series"], predicted, strict=True):
        assert series["counts"] == np.histogram(values[:100], bins=edges)[0].tolist()

    errors = one("error_histogram", models=models, data=data, task=Regression(1))
    edges = [float(edge) for edge in errors["edges"]]
    for series, values in zip(errors["panels"][1]["series"], predicted, strict=True):
        assert np.abs(np.array(series["counts"]) - np.histogram(np.abs(values - wanted)[100:200], bins=edges)[0]).sum() <= 2
    ranged = one(
        "roc",
        models=models,
        data=Splits(*[getattr(data, name) for name in ("forget", "retain", "analysis", "verification", "attack")], span=Span(above=9.0)),
        task=Regression(1),
    )
    assert ranged == "too_few_nonmembers"


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_nothing_is_drawn_of_fifteen_records(name: str):
    found = drawn(MODELS, parts(15, "class", (3,)), TASK, Run(seed=3), [])
    assert all(entry["reason"] == "fewer_than_16_forgotten_records" for entry in found if entry["name"] == name)


def test_a_figure_that_raises_is_left_out_with_its_reason_and_a_cancelled_one_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch):
    def broken(self, *given):
        raise RuntimeError("r00012 is to blame")

    monkeypatch.setattr(FIGURES["loss_histogram"], "measure", broken)
    assert one("loss_histogram") == "could_not_be_drawn: RuntimeError"

    def cancelled(self, *given):
        raise Cancelled

    monkeypatch.setattr(FIGURES["loss_histogram"], "measure", cancelled)
    with pytest.raises(Cancelled):
        one("loss_histogram")


def test_one_more_file_is_all_that_a_new_figure_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FIGURES, "_entries", dict(FIGURES._entries))

    @FIGURES.register("acme_bars")
    class AcmeBars(Figure):
        tasks = frozenset({"classification"})
        title, caption = "Bars", "Two bars."

        def measure(self, models, data, task, run, readings):
            return figure.bars(figure.Axis("share"), ["a", "b"], {"unlearned": [0.25, 0.75]})

    assert one("acme_bars")["series"][0]["values"] == ["0.25", "0.75"]


def test_the_same_seed_draws_the_same_figures_and_no_record_id_is_in_them():
    first, second = (json.dumps(drawn(MODELS, parts(kind="class", classes=(3,)), TASK, Run(seed=3), [])) for _ in range(2))
    assert first == second
    assert "f00001" not in first


def measured(name: str, split: str, *values: float | None) -> Measured:
    before, after, reference = (Unmeasured("no_records") if value is None else Reading(value, value, value, 0.9, 20) for value in values)
    return Measured("metric", name, split, before, after, reference)


def test_the_bars_of_answers_are_the_readings_and_leave_out_what_was_not_measured():
    readings = [
        measured("exact_match", "forget_train", 1.0, 0.25, 0.125),
        measured("appearance_rate", "forget_train", 1.0, None, 0.0),
        measured("model_utility", "retain_train", 0.5, 0.5, 0.75),
        measured("exact_match", "test", 0.1, 0.1, 0.1),
    ]
    data = parts()
    found = FIGURES["answer_bars"]().measure(MODELS, data, TASK, Run(seed=3), readings)

    document = {"kind": "bars", "title": "t", "caption": "c", "note": "", **found.body}
    assert plain(form_of(document))["categories"] == ["forgotten, word for word", "kept, utility"]
    assert {series["role"]: series["values"] for series in found.body["series"]} == {
        "original": ["1", "0.5"], "unlearned": ["0.25", "0.5"], "retrained": ["0.125", "0.75"],
    }  # fmt: skip
    assert FIGURES["answer_bars"]().measure(MODELS, data, TASK, Run(seed=3), readings[1:2]) == Unmeasured("no_reading_of_answers")
