"""The numbered acceptance tests of the method: no record is taught its own class, and no retain record is read."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from services.errors import Diverged, MethodNotApplicable
from services.learning.data import Batch, Split, Splits, by_255
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.boundary import nearest_labels, stepped, value_range
from services.unlearning.methods.boundary_shrink import BoundaryShrink

torch.set_num_threads(1)


def with_retain(splits: Splits, retain: Split) -> Splits:
    return replace(splits, retain=retain)


@pytest.mark.parametrize("bound", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_1_no_record_is_taught_its_own_class(bound, lab, request):
    lab = request.getfixturevalue(lab)

    taught = BoundaryShrink(BoundaryShrink.Parameters(bound=bound)).relabelled(lab.original, lab.splits(), lab.task, lab.run())

    assert len(taught) == len(lab.splits().forget)
    assert not bool((taught.y == 3).any())
    assert torch.equal(taught.x, lab.splits().forget.x)


def test_1_a_request_for_two_classes_hands_no_record_to_the_other_of_them(mlp_lab):
    run = mlp_lab.run()

    taught = BoundaryShrink(BoundaryShrink.Parameters()).relabelled(mlp_lab.original, mlp_lab.splits(classes=(3, 9)), mlp_lab.task, run)

    assert not bool(torch.isin(taught.y, torch.tensor([3, 9])).any())
    assert sum(run.notes["redirected"].values()) == len(taught)


def test_2_no_retain_record_is_read(mlp_lab, digest_of):
    splits = mlp_lab.splits()

    def touched(_: Tensor) -> Tensor:
        raise AssertionError("a retain record was read")

    forbidden = replace(splits.retain, prepare=touched)
    results = [
        BoundaryShrink(BoundaryShrink.Parameters(lr=1e-3)).unlearn(mlp_lab.copy(), with_retain(splits, retain), mlp_lab.task, mlp_lab.run())
        for retain in (forbidden, splits.retain.take(torch.zeros(0, dtype=torch.int64)))
    ]

    assert digest_of(results[0]) == digest_of(results[1])


class Line(nn.Module):
    """Three logits of one number: class 1 lies between the other two."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 3), largest for class 0 below 0.3, for class 1 up to 0.7, for class 2 above."""
        return -torch.cat([(x - 0.1).square(), (x - 0.5).square(), (x - 0.9).square()], dim=1)


def test_the_label_is_that_of_the_record_moved_up_its_loss_and_clipped():
    x = torch.tensor([[0.25], [0.05], [0.68], [0.98]])
    split = Split(x, torch.tensor([0, 0, 1, 2]), ("a", "b", "c", "d"))
    model, task = Line(), Classification(3)

    moved = stepped(model, Batch(split.x, split.y), task, bound=0.1, within=(0.0, 1.0))
    labels = nearest_labels(model, split, task, bound=0.1, excluded=())

    assert moved.flatten().tolist() == pytest.approx([0.35, 0.15, 0.78, 0.88])
    assert labels.tolist() == [1, 1, 2, 1]  # the second and the last stay in their class: their next likeliest
    clipped = stepped(model, Batch(torch.tensor([[0.97]]), torch.tensor([0])), task, bound=0.1, within=(0.0, 1.0))
    assert clipped.item() == 1.0


def test_pixels_are_clipped_to_their_own_range_and_other_numbers_to_theirs():
    pixels = Split(torch.randint(0, 200, (9, 1, 2, 2), dtype=torch.uint8), torch.zeros(9, dtype=torch.int64), tuple("abcdefghi"), by_255)
    numbers = Split(torch.tensor([[-3.0], [2.5]]), torch.zeros(2, dtype=torch.int64), ("a", "b"))

    assert value_range(pixels) == (0.0, 1.0)
    assert value_range(numbers) == (-3.0, 2.5)


def test_finding_labels_leaves_the_model_as_it_was_and_ignores_batch_mates(cnn_lab, digest_of):
    model, forget = cnn_lab.copy().train(), cnn_lab.splits().forget
    before = digest_of(model)

    whole, alone = (nearest_labels(model, forget, cnn_lab.task, bound=0.1, excluded=(), batch_size=size) for size in (512, 1))

    assert torch.equal(whole, alone)
    assert digest_of(model) == before
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_digits_of_the_class_are_handed_over(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()

    model = BoundaryShrink(BoundaryShrink.Parameters(lr=3e-4, epochs=40, min_steps=0)).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert forget <= 0.01
    assert forget_test <= 0.03
    assert retain_test > 0.85
    assert run.notes["ended_by"] == "target"
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(lab.original.named_buffers())[name]), "batch norm is frozen"


def test_without_held_out_rows_the_guard_watches_the_lesson(mlp_lab):
    splits, run = mlp_lab.splits(), mlp_lab.run()

    BoundaryShrink(BoundaryShrink.Parameters()).unlearn(
        mlp_lab.copy(), replace(splits, analysis=splits.analysis.take(torch.zeros(0, dtype=torch.int64))), mlp_lab.task, run
    )

    assert run.notes["guard_probe"] == "the forget set under its new labels"
    assert run.notes["guard_loss"]["after"] < run.notes["guard_loss"]["before"]


def test_a_rate_that_destroys_the_rest_is_refused_after_one_retry(cnn_lab, digest_of):
    model = cnn_lab.copy()
    method = BoundaryShrink(BoundaryShrink.Parameters.model_construct(lr=10.0))

    with pytest.raises(Diverged, match=r"attempt at 0\.1 x lr"):
        method.unlearn(model, cnn_lab.splits(), cnn_lab.task, cnn_lab.run())

    assert digest_of(model) == digest_of(cnn_lab.original)


def test_tokens_and_requests_for_every_class_are_refused(mlp_lab):
    tokens = Split(torch.zeros(20, 5, dtype=torch.int64), torch.full((20,), 3), tuple(str(row) for row in range(20)))
    method = BoundaryShrink(BoundaryShrink.Parameters())

    with pytest.raises(MethodNotApplicable, match="tokens"):
        method.unlearn(mlp_lab.copy(), Splits(tokens, tokens, tokens, kind="class", classes=(3,)), mlp_lab.task, mlp_lab.run())
    with pytest.raises(MethodNotApplicable, match="no class is left"):
        method.unlearn(mlp_lab.copy(), mlp_lab.splits(classes=tuple(range(10))), mlp_lab.task, mlp_lab.run())
