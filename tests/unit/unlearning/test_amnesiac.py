"""The acceptance tests of the method: labels are never true, drawn once, equal for equal seeds; and what relabelling does to digits."""

import pytest
import torch
from torch import Tensor, nn

from services.errors import MethodNotApplicable
from services.learning.architectures.mlp import MLP
from services.learning.data import Batch, Split, Splits
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.course import Course, Leg
from services.unlearning.mechanisms.descent import Plan
from services.unlearning.mechanisms.relabelling import wrong_labels
from services.unlearning.methods.amnesiac import Amnesiac

torch.set_num_threads(1)


class Spy(Classification):
    """Remembers every label under which a record was shown."""

    name = "classification"

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.shown: dict[bytes, list[int]] = {}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Remember the labels and return the loss."""
        for x, y in zip(batch.x, batch.y.tolist(), strict=True):
            self.shown.setdefault(x.numpy().tobytes(), []).append(y)
        return super().loss(model, batch)


def rows_of(count: int, *, seed: int = 0) -> Split:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return Split(x, torch.arange(count) % 3, tuple(f"{seed}-{row}" for row in range(count)))


def shown_by(parameters: Amnesiac.Parameters, seed: int) -> tuple[dict[bytes, list[int]], Splits]:
    """What a run shows, record by record."""
    splits, spy = Splits(rows_of(40), rows_of(60, seed=1), rows_of(6, seed=2), kind="records"), Spy(3)
    Amnesiac(parameters).unlearn(MLP(MLP.Parameters(outputs=3, inputs=4, hidden=(8,))).fresh(0), splits, spy, Run(seed=seed))
    return spy.shown, splits


@pytest.mark.parametrize("excluded", [(), (0, 2)])
def test_1_no_label_is_the_true_one_nor_a_forgotten_class_and_all_others_are_as_likely(excluded):
    y = torch.arange(9000) % 5

    labels = wrong_labels(y, 5, excluded, torch.Generator().manual_seed(0))

    assert not bool((labels == y).any())
    assert not bool(torch.isin(labels, torch.tensor(excluded, dtype=torch.int64)).any())
    for truth in range(5):
        others = [label for label in range(5) if label != truth and label not in excluded]
        shares = torch.bincount(labels[y == truth], minlength=5) / 1800
        assert shares[others].tolist() == pytest.approx([1 / len(others)] * len(others), abs=0.05)


@pytest.mark.parametrize("order", ["mixed", "forget_first"])
def test_2_labels_are_constant_over_epochs_and_equal_for_equal_seeds(order):
    parameters = Amnesiac.Parameters(order=order, epochs=4, batch_size=16, min_steps=0)

    (first, splits), (again, _), (other, _) = (shown_by(parameters, seed) for seed in (1, 1, 2))

    assert all(len(labels) == 4 and len(set(labels)) == 1 for labels in first.values())
    assert first == again
    assert first != other
    for x, y in zip(splits.forget.x, splits.forget.y.tolist(), strict=True):
        assert first[x.numpy().tobytes()][0] != y
    for x, y in zip(splits.retain.x, splits.retain.y.tolist(), strict=True):
        assert first[x.numpy().tobytes()] == [y] * 4


def test_with_the_forgotten_class_excluded_none_of_it_stays_and_the_others_are_kept(mlp_lab):
    splits, run = mlp_lab.splits(), mlp_lab.run()
    before = mlp_lab.scores(mlp_lab.original, splits)

    model = Amnesiac(Amnesiac.Parameters(lr=1e-3)).unlearn(mlp_lab.copy(), splits, mlp_lab.task, run)

    forget, forget_test, retain_test = mlp_lab.scores(model, splits)
    assert (forget, forget_test) == (0.0, 0.0)
    assert retain_test >= before[2] - 0.02
    assert "3" not in run.notes["relabelled_to"]
    assert sum(run.notes["relabelled_to"].values()) == len(splits.forget)
    assert isinstance(run.notes["label_seed"], int)


def test_forget_first_takes_the_random_label_settings_and_forgets_digits(plain_cnn_lab):
    splits, run = plain_cnn_lab.splits(), plain_cnn_lab.run()

    model = Amnesiac(Amnesiac.Parameters(order="forget_first", min_steps=0)).unlearn(plain_cnn_lab.copy(), splits, plain_cnn_lab.task, run)

    assert plain_cnn_lab.scores(model, splits)[0] <= 0.01
    assert (run.notes["effective"]["optimizer"], run.notes["effective"]["learning_rate"]) == ("sgd", 0.013)
    assert run.notes["effective"]["legs"] == [{"rows": 124, "batch_size": 256}, {"rows": 1076, "batch_size": 256}]
    assert run.notes["steps"] == {"relabel": 10 * (1 + 5)}


def test_a_course_takes_its_legs_in_turn():
    course = Course(((Leg(0, Plan(3, 2, 1)), Leg(3, Plan(4, 4, 1))), (Leg(3, Plan(4, 4, 1)),)))

    steps = [rows.tolist() for rows in course.order(torch.Generator().manual_seed(0))]

    assert course.steps == len(steps) == 3
    assert [sorted(rows) for rows in steps] == [[0, 1, 2], [3, 4, 5, 6], [3, 4, 5, 6]]
    assert course.epoch_ends == [2, 3]
    assert [course.epoch_of(step) for step in range(3)] == [0, 0, 1]


def test_two_classes_of_which_one_is_forgotten_leave_one_label_and_none_is_refused(mlp_lab):
    assert wrong_labels(torch.tensor([1, 1]), 2, (1,), torch.Generator()).tolist() == [0, 0]

    everything = Splits(rows_of(6), rows_of(6, seed=1), rows_of(3, seed=2), kind="class", classes=(0, 1, 2))
    with pytest.raises(MethodNotApplicable, match="no class left"):
        Amnesiac(Amnesiac.Parameters()).unlearn(MLP(MLP.Parameters(outputs=3, inputs=4, hidden=(8,))).fresh(0), everything, Spy(3), Run(seed=0))
