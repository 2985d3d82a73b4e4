"""The numbered acceptance tests of the method. Targets are the specification's; those on Fashion-MNIST run in the soak."""

import math
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.errors import Diverged, MethodNotApplicable
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.descent import Plan
from services.unlearning.mechanisms.noise import Noise, VirtualList, class_losses, learn_noise
from services.unlearning.methods.unsir import Unsir

torch.set_num_threads(1)

TASK = Classification(10)
BOLD = {"lr_impair": 5e-3, "lr_repair": 2e-3, "copies": 20, "epochs_repair": 10, "batch_size": 64}


class Mute(nn.Module):
    """Logits 0 for every class, so that the cross-entropy is ln 10 and has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x.flatten(1)[:, :10] * 0.0


def noise_of(model: nn.Module, classes: tuple[int, ...], *, record: tuple[int, ...] = (1, 8, 8), batch: int = 16, **chosen: object) -> Noise:
    options = {"steps": 8, "lr": 0.1, "l2": 0.1, "train_mode": False, **chosen}
    return learn_noise(model, classes, torch.Size(record), TASK, Run(seed=3), batch=batch, **options)


def blocks(noise: Noise) -> list[float]:
    """The mean loss of the first class over each eight steps."""
    return noise.losses[0].view(-1, 8).mean(dim=1).tolist()


def test_1_noise_loss_at_start_for_224_pixels_is_15053_less_the_cross_entropy():
    rows = torch.randn((256, 3, 224, 224), generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        loss = class_losses(Mute(), rows, torch.zeros(256, dtype=torch.int64), TASK, classes=1, l2=0.1)

    deviation = 0.1 * math.sqrt(2 * 3 * 224 * 224 / 256)
    assert deviation == pytest.approx(3.4, abs=0.05)
    assert float(loss) == pytest.approx(15_052.8 - math.log(10), abs=4 * deviation)  # false alarm: 6 in 100,000 seeds; this one is fixed


def test_2_penalty_alone_falls_as_adam_says():
    noise = noise_of(Mute(), (0,), record=(3, 32, 32), batch=256, steps=40)

    penalties = [loss + math.log(10) for loss in blocks(noise)]

    assert penalties == pytest.approx([183.0, 44.1, 13.3, 6.2, 3.1], rel=0.01)


def test_2_total_on_a_fresh_small_cnn_starts_in_the_known_range():
    fresh = TinyCNN(TinyCNN.Parameters(outputs=10, channels=3, width=8)).fresh(0)

    noise = noise_of(fresh, (0,), record=(3, 32, 32), batch=64, steps=16, train_mode=True)

    first, second = blocks(noise)
    assert 178 <= first <= 193
    assert 40 <= second <= 44


@pytest.mark.parametrize("train_mode", [True, False])
def test_3_every_noise_row_carries_the_label_of_its_own_class(train_mode, mlp_lab):
    noise = noise_of(mlp_lab.original, (0, 2), train_mode=train_mode, steps=40, lr=0.1)
    shown = VirtualList(noise, 3, mlp_lab.train.take(torch.arange(5)))

    batch = shown.batch(torch.arange(3 * 32))

    assert noise.labels.tolist() == [0] * 16 + [2] * 16
    assert batch.y.tolist() == noise.labels.tolist() * 3
    with torch.no_grad():
        confidence = mlp_lab.original(noise.rows).softmax(1)[torch.arange(32), noise.labels]
    assert float(confidence.max()) < 0.1  # it is noise against that class, not against another


@pytest.mark.parametrize("train_mode", [True, False])
def test_4_learning_noise_leaves_weights_buffers_and_modes_as_they_were(train_mode, cnn_lab, digest_of):
    model = cnn_lab.copy()
    model.features[1].train()
    before = digest_of(model)

    noise_of(model, (1, 4), train_mode=train_mode)

    assert digest_of(model) == before
    assert [module.training for module in (model, model.features[1], model.features[4])] == [False, True, False]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_5_noise_of_two_classes_together_equals_noise_learned_one_by_one(cnn_lab):
    together, apart = (noise_of(cnn_lab.original, (1, 4), steps=40, vectorised=each) for each in (True, False))

    assert torch.allclose(together.rows, apart.rows, atol=1e-5, rtol=0)
    assert torch.allclose(together.losses, apart.losses, atol=1e-4)
    assert torch.equal(together.labels, apart.labels)


def test_6_the_virtual_list_holds_every_entry_once_an_epoch(mlp_lab):
    noise = noise_of(mlp_lab.original, (0, 2), steps=1)
    retain = mlp_lab.train.take(torch.arange(50))
    shown = VirtualList(noise, 20, retain)

    drawn = torch.cat(list(Plan(len(shown), 64, 1).order(torch.Generator().manual_seed(0))))
    batch = shown.batch(torch.arange(len(shown)))

    assert len(shown) == 20 * 2 * 16 + 50
    assert drawn.sort().values.tolist() == list(range(len(shown)))
    assert torch.equal(batch.x[: 20 * 32], noise.rows.repeat(20, 1, 1, 1))
    assert torch.equal(batch.x[20 * 32 :], retain.batch(torch.arange(50)).x)
    assert torch.equal(batch.y[20 * 32 :], retain.y)


def test_7_the_authors_setting_takes_40_steps_a_class_72_and_32():
    generator = torch.Generator().manual_seed(0)
    retain = Split(torch.randn(8000, 16, generator=generator), torch.arange(8000) % 8 + 2, tuple(str(row) for row in range(8000)))
    nothing = torch.zeros(0, dtype=torch.int64)
    splits = Splits(retain.take(nothing), retain, retain.take(nothing), kind="class", classes=(0, 1))
    reports = []
    run = Run(seed=0, on_progress=reports.append, report_every_s=0.0)
    parameters = Unsir.Parameters(noise_batch=256, min_steps=0, lr_impair=0.02, lr_repair=0.01)

    Unsir(parameters).unlearn(nn.Linear(16, 10), splits, TASK, run)

    stages = [report.stage for report in reports]
    assert [stages.count(stage) for stage in ("noise", "impair", "repair")] == [2 * 40, 72, 32]
    assert run.notes["steps"] == {"noise": 40, "impair": 72, "repair": 32}


def forced(lr: float, *, retries: int) -> Unsir:
    """The method at a rate that its schema refuses."""
    method = Unsir(Unsir.Parameters.model_construct(lr_impair=lr, lr_repair=lr))
    method.retries = retries
    return method


def test_8_at_a_rate_of_one_the_guard_fires_and_the_original_comes_back(cnn_lab, digest_of):
    model, run = cnn_lab.copy(), cnn_lab.run()

    with pytest.raises(Diverged, match="The original model is kept"):
        forced(1.0, retries=0).unlearn(model, cnn_lab.without_forget(), cnn_lab.task, run)

    assert digest_of(model) == digest_of(cnn_lab.original)
    assert [entry["lr_scale"] for entry in run.notes["attempts"]] == [1.0]


def test_8_at_a_rate_of_one_with_the_retry_the_report_names_both_attempts_however_the_second_ends(cnn_lab):
    run = cnn_lab.run()

    with suppress(Diverged):  # a tenth of the rate may do
        forced(1.0, retries=1).unlearn(cnn_lab.copy(), cnn_lab.without_forget(), cnn_lab.task, run)

    first, second = run.notes["attempts"]
    assert (first["lr_scale"], first["ended_by"]) == (1.0, "guard")
    assert "limit" in first["detail"]
    assert second["lr_scale"] == 0.1
    assert second["ended_by"] in {"guard", "completed"}


def test_8_with_the_retry_the_report_names_both_attempts(cnn_lab, digest_of):
    model, run = cnn_lab.copy(), cnn_lab.run()

    with pytest.raises(Diverged, match=r"attempt at 1 x lr: .*attempt at 0\.1 x lr: "):
        forced(10.0, retries=1).unlearn(model, cnn_lab.without_forget(), cnn_lab.task, run)

    assert digest_of(model) == digest_of(cnn_lab.original)
    assert [(entry["lr_scale"], entry["ended_by"], entry["stage"]) for entry in run.notes["attempts"]] == [
        (1.0, "guard", "impair"),
        (0.1, "guard", "impair"),
    ]


@pytest.mark.parametrize("lab", ["mlp_lab", "plain_cnn_lab"])
def test_9_digits_at_the_bold_setting_reach_the_targets(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()

    model = Unsir(Unsir.Parameters(**BOLD)).unlearn(lab.copy(), lab.without_forget(), lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert forget <= 0.01
    assert forget_test <= 0.01
    assert abs(retain_test - lab.scores(lab.retrained(splits), splits)[2]) <= 0.02
    assert run.notes["steps"]["repair"] == 170


def test_9_digits_at_the_mildest_setting_are_not_forgotten_in_one_repair_epoch(mlp_lab):
    parameters = Unsir.Parameters(lr_impair=1e-3, lr_repair=1e-3, min_steps=0)

    model = Unsir(parameters).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, mlp_lab.run())

    assert mlp_lab.scores(model, mlp_lab.splits())[0] > 0.5


@pytest.mark.parametrize("lab", ["mlp_lab", pytest.param("cnn_lab", marks=pytest.mark.soak)])
def test_the_sweep_finds_rates_that_reach_the_targets_on_digits(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()

    model = Unsir(Unsir.Parameters()).unlearn(lab.copy(), lab.without_forget(), lab.task, run)

    forget, _, retain_test = lab.scores(model, splits)
    assert forget <= 0.01
    assert abs(retain_test - lab.scores(lab.retrained(splits), splits)[2]) <= 0.02
    assert run.notes["ended_by"] == "target"
    assert run.notes["effective"]["repair"] == {"rows": 1076, "batch_size": 32, "epochs": 5, "steps": 170}
    assert run.notes["sweep"][0]["lr_impair"] == 1e-3


def test_10_one_seed_gives_identical_bytes_and_another_seed_others(mlp_lab, digest_of):
    results = [
        digest_of(
            Unsir(Unsir.Parameters(lr_impair=5e-3, lr_repair=2e-3, min_steps=0)).unlearn(
                mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, mlp_lab.run(seed=seed)
            )
        )
        for seed in (1, 1, 2)
    ]

    assert results[0] == results[1] != results[2]


def test_a_request_for_records_is_refused_with_the_methods_that_could(mlp_lab):
    with pytest.raises(MethodNotApplicable, match="does not serve records requests"):
        Unsir(Unsir.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.splits("records"), mlp_lab.task, mlp_lab.run())


def test_records_of_tokens_are_refused(mlp_lab):
    tokens = Split(torch.zeros(20, 5, dtype=torch.int64), torch.arange(20) % 10, tuple(str(row) for row in range(20)))
    splits = Splits(tokens, tokens, tokens, kind="class", classes=(3,))

    with pytest.raises(MethodNotApplicable, match="tokens"):
        Unsir(Unsir.Parameters()).unlearn(mlp_lab.copy(), splits, mlp_lab.task, mlp_lab.run())


FASHION = [
    pytest.param(1e-3, 1e-3, 256, None, id="bold"),
    pytest.param(0.02, 0.01, 256, 0.83, id="parity"),
    pytest.param(0.02, 0.01, 64, 0.869 - 0.03, id="parity-64-rows"),
    pytest.param(2e-3, 1e-3, 256, 0.887 - 0.03, id="milder"),
]
"""Rates of impair and repair, rows of noise, and the least retained accuracy: of the bold row .03 below retrained, of the parity row the
specification's, of the others as much below what it measured as it allows the bold row. Measured: .867, .867 and .890 beside .896 retrained."""


@pytest.fixture(scope="module")
def fashion_and_retrained(fashion_lab):
    """20,000 rows, conv16 - conv32 - 128 - 10, five epochs; and what a network trained without class 2 keeps."""
    lab = fashion_lab(20_000, 128, 5)
    splits = lab.splits(classes=(2,))
    return lab, lab.scores(lab.retrained(splits), splits)[2]


@pytest.mark.soak
@pytest.mark.parametrize(("impair", "repair", "rows", "retain_at_least"), FASHION)
def test_9_fashion_mnist_against_the_retrained_model(impair, repair, rows, retain_at_least, fashion_and_retrained):
    lab, retrained = fashion_and_retrained
    splits = lab.splits(classes=(2,))
    parameters = Unsir.Parameters(noise_batch=rows, lr_impair=impair, lr_repair=repair, min_steps=0)

    model = Unsir(parameters).unlearn(lab.copy(), lab.without_forget(classes=(2,)), lab.task, lab.run())

    forget, forget_test, retain_test = lab.scores(model, splits)
    told = f"forget {forget:.3f}/{forget_test:.3f}, retain test {retain_test:.3f}, retrained {retrained:.3f}"
    assert max(forget, forget_test) <= 0.01, told
    assert retain_test >= (retrained - 0.03 if retain_at_least is None else retain_at_least), told


def test_the_noise_loss_is_the_papers_formula():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 10))
    rows = torch.randn((8, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4] * 4 + [9] * 4)

    with torch.no_grad():
        losses = class_losses(model, rows, labels, TASK, classes=2, l2=0.3)

    for number, part in enumerate((slice(0, 4), slice(4, 8))):
        expected = -cross_entropy(model(rows[part]), labels[part]) + 0.3 * (rows[part] ** 2).sum(dim=(1, 2, 3)).mean()
        assert float(losses[number]) == pytest.approx(float(expected.detach()), abs=1e-5)
