"""The numbered acceptance tests of the method. It has no accuracy target: what it reaches on digits is measured in the soak."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.errors import Diverged, InvalidInput, MethodNotApplicable
from services.learning.data import Split, Splits
from services.learning.modes import batch_norms
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.guard import Guard
from services.unlearning.mechanisms.min_max_noise import materials_of
from services.unlearning.mechanisms.noise import Noise, class_losses, learn_noise
from services.unlearning.methods.emmn import Candidate, ErrorMinMaxNoise, choose

torch.set_num_threads(1)

TASK = Classification(10)
RECORD = torch.Size((1, 8, 8))
KEPT = (1, 2, 4, 5, 6, 7, 8, 9)


class Mute(nn.Module):
    """Logits 0 for every class, so that the cross-entropy is ln 10 and has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x.flatten(1)[:, :10] * 0.0


def noise_of(model: nn.Module, kept: tuple[int, ...], forgotten: tuple[int, ...], *, batch: int = 16, steps: int = 40, **chosen: object) -> Noise:
    """Noise like every class, then unlike the forgotten ones."""
    like = len(kept) + len(forgotten)
    l2 = (0.01,) * like + (0.1,) * len(forgotten)
    signs = (1.0,) * like + (-1.0,) * len(forgotten)
    options = {"lr": 0.1, "l2": l2, "signs": signs, "train_mode": False, "halve_every": 100, **chosen}
    return learn_noise(model, (*kept, *forgotten, *forgotten), RECORD, TASK, Run(seed=3), batch=batch, steps=steps, **options)


def no_data() -> Splits:
    """A request of which no record is held, not even its shape."""
    nothing = Split(torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())
    return Splits(nothing, nothing, nothing, kind="class", classes=(3,)).for_method()


def buffers(model: nn.Module) -> list[Tensor]:
    return [each.clone() for norm in batch_norms(model) for each in norm.buffers()]


def impaired(lab, lr: float, bn_mode: str, **chosen: object) -> nn.Module:
    """The network after impair alone, one epoch of 20 copies in batches of 256, class 0 forgotten."""
    model, run = lab.copy(), lab.run()
    method = ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters(bn_mode=bn_mode, min_steps=0, **chosen))
    materials = method._materials(model, tuple(range(1, 10)), lab.splits(classes=(0,)), RECORD, TASK, run)
    method._impair(model, materials, TASK, run, Guard.around("emmn", model, materials.proxy, TASK, run, factor=1e6), lr)
    return model


def test_1_frozen_batch_norm_keeps_its_statistics_while_noise_is_shown(cnn_lab):
    before = buffers(cnn_lab.original)
    frozen, moved = (buffers(impaired(cnn_lab, 1e-2, mode, noise_steps=10, noise_batch=8)) for mode in ("frozen", "train"))

    assert len(before) == 9
    assert all(torch.equal(first, second) for first, second in zip(before, frozen, strict=True))
    assert not any(torch.equal(first, second) for first, second in zip(before, moved, strict=True))


@pytest.mark.soak
@pytest.mark.parametrize("lr", [1e-4, 1e-3, 1e-2])
def test_2_batch_norm_that_moves_with_the_noise_costs_accuracy_on_real_records(lr, cnn_lab):
    kept = cnn_lab.test.with_labels((0,), keep=False)
    frozen, moved = (cnn_lab.accuracy(impaired(cnn_lab, lr, mode), kept) for mode in ("frozen", "train"))

    assert moved <= frozen


def test_3_learning_noise_leaves_the_network_as_it_was_and_all_classes_together_equal_one_by_one(cnn_lab, digest_of):
    model = cnn_lab.copy()
    together, apart = (noise_of(model, (1, 4), (0,), vectorised=each) for each in (True, False))

    assert digest_of(model) == digest_of(cnn_lab.original)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.allclose(together.rows, apart.rows, atol=1e-5, rtol=0)
    assert torch.equal(together.labels, apart.labels)


def test_4_noise_like_a_class_is_soon_taken_for_it_and_noise_unlike_it_less_and_less(plain_cnn_lab):
    model = plain_cnn_lab.original

    def errors(steps: int) -> list[float]:
        noise = noise_of(model, (1, 2), (0,), steps=steps)
        with torch.no_grad():
            return [float(each.mean()) for each in cross_entropy(model(noise.rows), noise.labels, reduction="none").split(16)]

    first, last = errors(1), errors(60)

    assert max(last[:3]) < 0.05
    assert min(first[:2]) > 0.5
    assert last[3] > first[3] + 10


def test_5_the_penalties_at_start_are_307_and_31_for_32_pixels():
    rows = torch.randn((512, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    weights, signs = torch.tensor([0.1, 0.01]), torch.tensor([-1.0, 1.0])

    with torch.no_grad():
        losses = class_losses(Mute(), rows, torch.zeros(512, dtype=torch.int64), TASK, classes=2, l2=weights, sign=signs)
        error = cross_entropy(torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))

    assert float(losses[0] + error) == pytest.approx(307.2, rel=0.01)
    assert float(losses[1] - error) == pytest.approx(30.72, rel=0.01)


def test_6_every_row_carries_the_label_of_its_class_for_both_kinds(mlp_lab):
    noise = noise_of(mlp_lab.original, KEPT, (0, 3), batch=8)
    parts = materials_of(noise, mlp_lab.original, batch=8, kept=8, forgotten=2, holdout=0.25)

    with torch.no_grad():
        own = mlp_lab.original(noise.rows).softmax(1).gather(1, noise.labels[:, None]).flatten()
    assert noise.labels.view(12, 8).tolist() == [[each] * 8 for each in (*KEPT, 0, 3, 0, 3)]
    assert float(own[:80].min()) > 0.5
    assert float(own[80:].max()) < 0.01
    assert len(parts.proxy) == 8 * 2
    assert parts.proxy.y.tolist() == [each for each in KEPT for _ in range(2)]
    assert parts.leak.y.tolist() == [0] * 8 + [3] * 8
    assert parts.shown.labels.tolist() == [each for each in KEPT for _ in range(6)] + [0] * 8 + [3] * 8
    assert parts.like_kept.labels.tolist() == [each for each in KEPT for _ in range(6)]


def test_7_the_step_size_is_found_without_any_record_and_the_bytes_are_those_with_records(mlp_lab, digest_of):
    with_data, without = mlp_lab.run(), mlp_lab.run()
    first = ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.splits(), TASK, with_data)
    second = ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters(record_shape=RECORD)).unlearn(mlp_lab.copy(), no_data(), TASK, without)

    assert digest_of(first) == digest_of(second)
    assert [tried["lr"] for tried in without.notes["sweep"]] == [1e-4, 1e-3, 1e-2]
    assert without.notes["outcome"]["leak"] == min(tried["leak"] for tried in without.notes["sweep"] if tried["agreement"] >= 0.9)
    assert "not on real records" in without.notes["warnings"][0]


def test_7_a_step_size_that_leaks_is_not_chosen_however_much_it_keeps():
    faithful, leaky, broken = Candidate(1e-3, 0.91, 0.5), Candidate(1e-4, 1.0, 0.99), Candidate(1e-2, 0.5, 0.0)

    assert choose([leaky, faithful, broken]) is faithful
    assert choose([leaky, broken]) is None


def test_7_a_run_of_which_no_step_size_forgets_fails_and_keeps_the_original(mlp_lab, digest_of):
    model = mlp_lab.copy()

    with pytest.raises(Diverged, match=r"leaks at most 0\.9"):
        ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters(impair_lrs=(1e-6,), noise_steps=50)).unlearn(model, mlp_lab.splits(), TASK, mlp_lab.run())

    assert digest_of(model) == digest_of(mlp_lab.original)


def test_8_at_a_rate_of_one_the_guard_fires_and_the_original_comes_back(cnn_lab, digest_of):
    model, run = cnn_lab.copy(), cnn_lab.run()
    method = ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters.model_construct(impair_lrs=(1.0,), noise_steps=20, noise_batch=16))
    method.retries = 0

    with pytest.raises(Diverged, match="The original model is kept"):
        method.unlearn(model, cnn_lab.without_forget(), cnn_lab.task, run)

    assert digest_of(model) == digest_of(cnn_lab.original)
    assert "limit" in run.notes["sweep"][0]["diverged"]


def test_8_one_seed_gives_identical_bytes_and_another_seed_others(mlp_lab, digest_of):
    chosen = ErrorMinMaxNoise.Parameters(impair_lrs=(1e-2,), noise_batch=16, noise_steps=100)
    results = [digest_of(ErrorMinMaxNoise(chosen).unlearn(mlp_lab.copy(), no_shape(mlp_lab), TASK, mlp_lab.run(seed=seed))) for seed in (1, 1, 2)]

    assert results[0] == results[1] != results[2]


def no_shape(lab) -> Splits:
    """The parts of a request with their shapes, and no record in any of them."""
    splits, nothing = lab.splits(), torch.zeros(0, dtype=torch.int64)
    return Splits(*(each.take(nothing) for each in (splits.forget, splits.retain, splits.analysis)), kind="class", classes=(3,)).for_method()


@pytest.mark.parametrize(
    ("classes", "error", "told"),
    [
        (tuple(range(10)), MethodNotApplicable, "no class would be left"),
        ((12,), MethodNotApplicable, "0 to 9"),
        ((), MethodNotApplicable, "names no class"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(classes, error, told, mlp_lab):
    nothing = mlp_lab.analysis.take(torch.zeros(0, dtype=torch.int64))

    with pytest.raises(error, match=told):
        ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters()).unlearn(
            mlp_lab.copy(), Splits(nothing, nothing, nothing, kind="class", classes=classes), TASK, mlp_lab.run()
        )


def test_records_of_which_nothing_tells_the_shape_are_refused(mlp_lab):
    with pytest.raises(InvalidInput, match="record_shape"):
        ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters()).unlearn(mlp_lab.copy(), no_data(), TASK, mlp_lab.run())


@pytest.mark.soak
@pytest.mark.parametrize("lab", ["mlp_lab", "plain_cnn_lab"])
def test_the_rates_behave_on_digits_as_measured(lab, request):
    lab = request.getfixturevalue(lab)
    run = lab.run()
    model = ErrorMinMaxNoise(ErrorMinMaxNoise.Parameters()).unlearn(lab.copy(), lab.without_forget(classes=(0,)), lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, lab.splits(classes=(0,)))
    print(f"forget {forget:.3f}/{forget_test:.3f}, retain test {retain_test:.3f}, {run.notes['sweep']}")  # noqa: T201  reported, no target
    assert run.notes["sweep"][0]["leak"] > 0.9
    assert retain_test < lab.accuracy(lab.original, lab.test)
