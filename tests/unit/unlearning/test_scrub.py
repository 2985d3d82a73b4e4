"""The acceptance tests of the method: distillation at one end of its range, the choice of the checkpoint to return to, and its steps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.learning.data import Split, Splits
from services.learning.modes import global_draws
from services.learning.run import Progress, Run
from services.unlearning.mechanisms.accuracy import Matched
from services.unlearning.mechanisms.descent import Plan
from services.unlearning.mechanisms.rewind import Rewind
from services.unlearning.methods.scrub import Scrub, decayed, scrub_loss

torch.set_num_threads(1)


class Script(nn.Module):
    """Answers right on the first rows of a list of so many, as many as its weight says, and wrong on the others."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.weight = rows, nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 2): class 0, which is the truth, for the rows that it knows; x (B, 2) holds part and number of each row."""
        right = x[:, 1] < self.weight.detach()[x[:, 0].long()]
        return functional.one_hot((~right).long(), 2).float()


def numbered(part: int, rows: int) -> Split:
    x = torch.stack([torch.full((rows,), float(part)), torch.arange(rows).float()], dim=1)
    return Split(x, torch.zeros(rows, dtype=torch.int64), tuple(f"{part}-{row}" for row in range(rows)))


def test_1_without_max_epochs_it_is_distillation_on_the_retain_set(mlp_lab):
    lab, splits, run = mlp_lab, mlp_lab.splits(), mlp_lab.run()
    model = Scrub(Scrub.Parameters(max_epochs=0, epochs=2)).unlearn(lab.copy(), splits, lab.task, run)

    teacher, student, retain = lab.copy(), lab.copy().train(), splits.retain
    optimizer, generator = torch.optim.Adam(student.parameters(), lr=5e-4, weight_decay=0.1), run.stream("scrub")
    with global_draws(generator, run.device):
        for rows in Plan(len(retain), 32, 2).order(generator):
            x, y = retain.batch(rows)
            with torch.no_grad():
                soft = (teacher(x) / 2).softmax(1)
            divergence = functional.kl_div((student(x) / 2).log_softmax(1), soft, reduction="batchmean") * 4
            optimizer.zero_grad()
            (0.5 * divergence + functional.cross_entropy(student(x), y)).backward()
            optimizer.step()

    assert run.notes["steps"] == {"scrub": 2 * 34}
    assert lab.accuracy(model, splits.retain) > 0.95
    for (name, found), expected in zip(model.named_parameters(), student.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-4), name


def test_1_without_max_epochs_the_forget_set_makes_no_difference(mlp_lab, digest_of):
    splits = [mlp_lab.splits(classes=(3,)), mlp_lab.splits(classes=(3,))]
    splits[1] = Splits(splits[1].forget.take(torch.arange(5)), splits[1].retain, splits[1].analysis, kind="class", classes=(3,))
    method = Scrub(Scrub.Parameters(max_epochs=0, epochs=2))

    first, second = (digest_of(method.unlearn(mlp_lab.copy(), each, mlp_lab.task, mlp_lab.run())) for each in splits)

    assert first == second


def test_2_rewind_picks_the_scripted_checkpoint_whose_forget_error_is_nearest_the_held_out_error():
    model, forget, held_out = Script(20), numbered(0, 20), numbered(1, 10)
    rewind = Rewind(model, forget, held_out, Matched.to(forget, held_out))

    for step, (known, expected) in enumerate([(20, 9), (19, 9), (17, 8), (16, 8), (8, 7), (0, 5)], start=1):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([float(known), float(expected)]))
        rewind.look(step)

    assert rewind.step == 4
    assert rewind.weights["weight"].tolist() == [16.0, 8.0]
    assert rewind.described() == {"step": 4, "forget_accuracy": 0.8, "held_out_accuracy": pytest.approx(0.8), "gap": pytest.approx(0.0)}


def test_2_a_record_request_is_rewound_to_the_end_of_an_epoch_and_a_class_request_is_not(mlp_lab):
    runs = {kind: mlp_lab.run() for kind in ("records", "class")}
    for kind, run in runs.items():
        Scrub(Scrub.Parameters(epochs=4, min_max_steps=0)).unlearn(mlp_lab.copy(), mlp_lab.splits(kind), mlp_lab.task, run)

    chosen = runs["records"].notes["rewind"]
    ends = Scrub(Scrub.Parameters(epochs=4, min_max_steps=0)).course(60, 1140).epoch_ends
    assert ends == [37, 74, 111, 147]
    assert chosen["step"] in ends
    assert chosen["gap"] == pytest.approx(abs(chosen["forget_accuracy"] - chosen["held_out_accuracy"]))
    assert runs["records"].notes["ended_by"] == "rewind"
    assert "rewind" not in runs["class"].notes


def test_max_steps_ascend_and_min_steps_descend_the_formulas():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    probabilities = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    y = torch.tensor([0, 1, 2, 3, 0, 1])

    divergence = (probabilities * (probabilities.log() - (logits / 2).log_softmax(1))).sum(1).mean() * 4

    assert float(scrub_loss(logits, probabilities, None, temperature=2.0)) == pytest.approx(-float(divergence), rel=1e-5)
    expected = 0.5 * float(divergence) + float(functional.cross_entropy(logits, y))
    assert float(scrub_loss(logits, probabilities, y, temperature=2.0)) == pytest.approx(expected, rel=1e-5)


def test_epochs_begin_with_the_forget_set_three_times_and_the_step_size_falls_at_5_8_and_9(mlp_lab):
    reports: list[Progress] = []
    run = mlp_lab.run(on_progress=reports.append, report_every_s=0.0)
    course = Scrub(Scrub.Parameters(min_max_steps=0)).course(124, 1076)

    Scrub(Scrub.Parameters(epochs=5, min_max_steps=0)).unlearn(mlp_lab.copy(), mlp_lab.splits(), mlp_lab.task, run)

    assert [len(legs) for legs in course.epochs] == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert course.steps == 3 * 2 + 10 * 34
    assert [decayed(epoch) for epoch in range(10)] == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.001])
    negative = [number for number, report in enumerate(reports) if report.values["loss"] < 0]
    assert set(negative) <= {0, 1, 36, 37, 72, 73}
    assert len(negative) >= 5


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_a_digit_is_forgotten_and_the_others_are_kept(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()
    before = lab.scores(lab.original, splits)

    model = Scrub(Scrub.Parameters()).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert max(forget, forget_test) <= 0.05
    assert retain_test >= before[2] - 0.02


def test_few_forget_records_are_shown_in_smaller_batches_and_more_epochs():
    course = Scrub(Scrub.Parameters()).course(124, 1076)

    assert [len(legs) for legs in course.epochs] == [2] * 5 + [1] * 5
    assert course.described()["legs"] == [{"rows": 124, "batch_size": 32}, {"rows": 1076, "batch_size": 32}]
    assert Scrub(Scrub.Parameters()).course(5000, 45_000).epochs[0][0].plan.batch_size == 64


def test_rewinding_without_held_out_records_of_the_classes_is_told(mlp_lab):
    splits = mlp_lab.splits("records")
    empty = Splits(splits.forget, splits.retain, splits.analysis.take(torch.zeros(0, dtype=torch.int64)))
    run = Run(seed=1)

    Scrub(Scrub.Parameters(epochs=1)).unlearn(mlp_lab.copy(), empty, mlp_lab.task, run)

    assert run.notes["rewind"].startswith("impossible")
    assert run.notes["ended_by"] == "steps"
