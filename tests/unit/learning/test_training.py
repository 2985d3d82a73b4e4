import math

import pytest
import torch
from sklearn.datasets import load_digits

from services.errors import Cancelled, DeadlineExceeded, InvalidInput, NonFinite
from services.learning.architectures.mlp import MLP
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import Split, batch_sizes, by_255
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import epoch_of, fit, flip_crop, optimizer_for, rate_at

torch.set_num_threads(1)


def digits() -> tuple[Split, Split]:
    sets = load_digits()
    x = torch.from_numpy(sets.images * (255 / 16)).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(sets.target)
    whole = Split(x, y, tuple(f"digit-{row}" for row in range(len(y))), by_255)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return whole.take(order[:1400]), whole.take(order[1400:])


def accuracy(model, task, split) -> float:
    return float((task.predict(model, split).argmax(1) == split.y).double().mean())


def blobs(count: int = 64) -> Split:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(count) % 2
    x = torch.randn(count, 4, generator=generator) + 3.0 * y[:, None]
    return Split(x, y, tuple(str(row) for row in range(count)))


def test_tiny_cnn_learns_digits():
    train, test = digits()
    task = Classification(10)
    model = TinyCNN(TinyCNN.Parameters(outputs=10)).fresh(1)
    fit(model, train, task, Recipe(epochs=4, batch_size=64, learning_rate=2e-3), Run(seed=1))
    assert accuracy(model, task, test) > 0.95


def test_mlp_learns_digits():
    train, test = digits()
    task = Classification(10)
    model = MLP(MLP.Parameters(outputs=10, inputs=64)).fresh(1)
    fit(model, train, task, Recipe(epochs=20, batch_size=64), Run(seed=1))
    assert accuracy(model, task, test) > 0.95


def test_loss_of_two_separate_clouds_falls_below_the_trivial_loss():
    split, task = blobs(), Classification(2)
    model = MLP(MLP.Parameters(outputs=2, inputs=4, hidden=(8,), input_norm="batch")).fresh(0)
    result = fit(model, split, task, Recipe(epochs=30, batch_size=16, learning_rate=1e-2), Run(seed=0))
    assert result.steps == 120
    assert result.seconds > 0
    assert result.final_loss < 0.2 < task.trivial_loss(split) == pytest.approx(math.log(2))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_one_step_is_the_one_that_torch_takes_by_itself(optimizer):
    split, task = blobs(16), Classification(2)
    recipe = Recipe(optimizer=optimizer, epochs=1, batch_size=16, learning_rate=0.05, weight_decay=0.01)
    model, other = (MLP(MLP.Parameters(outputs=2, inputs=4, hidden=(8,))).fresh(0) for _ in range(2))
    fit(model, split, task, recipe, Run(seed=0))
    families = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more = {"momentum": 0.9} if optimizer == "sgd" else {}
    reference = families[optimizer](other.parameters(), lr=0.05, weight_decay=0.01, **more)
    torch.nn.functional.cross_entropy(other(split.x), split.y).backward()
    reference.step()
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(model.parameters(), other.parameters(), strict=True))


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    def weights(seed: int) -> torch.Tensor:
        model = MLP(MLP.Parameters(outputs=2, inputs=4, hidden=(8,), dropout=0.5)).fresh(0)
        fit(model, blobs(), Classification(2), Recipe(epochs=2, batch_size=16), Run(seed=seed))
        return torch.cat([value.flatten() for value in model.parameters()]).detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_global_generator_and_the_modes_of_layers_are_left_as_they_were():
    model = MLP(MLP.Parameters(outputs=2, inputs=4, hidden=(8,), dropout=0.5, input_norm="batch")).fresh(0).eval()
    model.head.train()
    before = torch.random.get_rng_state()
    fit(model, blobs(), Classification(2), Recipe(epochs=1), Run(seed=0))
    Classification(2).predict(model, blobs())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.head.training
    assert not model.features.training


def test_frozen_weights_stay():
    model = MLP(MLP.Parameters(outputs=2, inputs=4, hidden=(8,))).fresh(0)
    model.features.requires_grad_(requires_grad=False)
    before = model.features[1].weight.clone()
    fit(model, blobs(), Classification(2), Recipe(epochs=1, weight_decay=0.1), Run(seed=0))
    assert torch.equal(model.features[1].weight, before)


def test_cosine_starts_at_the_rate_and_falls_towards_zero():
    recipe = Recipe(schedule="cosine", learning_rate=0.4)
    rates = [rate_at(recipe, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[50] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)
    assert rate_at(Recipe(learning_rate=0.4), 99, 100) == 0.4


@pytest.mark.parametrize("of", [10, 100, 333])
def test_one_cycle_is_torchs_with_momentum_as_it_is(of):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=of, cycle_momentum=False)
    expected = []
    for _ in range(of):
        expected.append(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step()

    assert [rate_at(Recipe(schedule="onecycle", learning_rate=0.4), step, of) for step in range(of)] == pytest.approx(expected)


def test_one_cycle_of_very_few_steps_has_a_rate_for_each():
    for of in range(1, 8):
        rates = [rate_at(Recipe(schedule="onecycle", learning_rate=0.4), step, of) for step in range(of)]
        assert all(0 < rate <= 0.4 for rate in rates)
        assert rates[0] == pytest.approx(0.4 / 25)


def test_an_epoch_holds_every_record_once_and_no_batch_of_one():
    for records, size in [(10, 3), (10, 5), (7, 8), (9, 4), (1, 4), (33, 32)]:
        sizes = batch_sizes(records, size)
        assert sum(sizes) == records
        assert min(sizes) > 1 or records == 1
        assert max(sizes) <= size + 1
    split = blobs(33)
    batches = list(epoch_of(split, Recipe(batch_size=8), torch.Generator().manual_seed(0)))
    rows = torch.cat([batch.x for batch in batches])
    assert sorted(rows[:, 0].tolist()) == sorted(split.x[:, 0].tolist())
    assert rows[:, 0].tolist() != split.x[:, 0].tolist()


@pytest.mark.parametrize(("records", "sizes"), [(33, {32 + 1}), (10, {4, 2}), (1, {2}), (9, {4, 5})])
def test_batches_without_end_hold_every_record_once_an_epoch_and_none_has_one(records, sizes):
    """Batch norm in train mode raises on a batch of one."""
    split, norm = blobs(records), torch.nn.BatchNorm1d(blobs(records).x.shape[1])
    stream = split.forever(32 if records == 33 else 4, torch.Generator().manual_seed(0))
    epoch: list[torch.Tensor] = []
    while sum(len(batch) for batch in epoch) < records:
        epoch.append(next(stream).x)
        norm(epoch[-1])
    assert {len(batch) for batch in epoch} == sizes
    assert sorted(set(torch.cat(epoch)[:, 0].tolist())) == sorted(split.x[:, 0].tolist())


def test_flip_crop_shifts_by_at_most_four_pixels_and_flips_half():
    x = torch.zeros(2000, 1, 17, 17, dtype=torch.uint8)
    x[:, 0, 8, 6] = 200
    moved = flip_crop(x, torch.Generator().manual_seed(0))
    places = moved.nonzero()
    assert moved.dtype == torch.uint8
    assert len(places) == 2000
    assert (places[:, 2].min(), places[:, 2].max()) == (4, 12)
    assert (places[:, 3].min(), places[:, 3].max()) == (2, 14)
    assert abs(float(places[:, 3].double().mean()) - 8) < 0.35  # never flipped it is 6, always 10; 4.8 standard errors


def test_every_image_of_a_batch_has_its_own_shift():
    x = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(50, 1, 1, 1)
    moved = flip_crop(x, torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 30


def test_augmentation_of_records_that_are_no_images_is_refused():
    with pytest.raises(InvalidInput, match="images"):
        fit(MLP(MLP.Parameters(outputs=2, inputs=4)).fresh(0), blobs(), Classification(2), Recipe(augmentation="flip_crop"), Run(seed=0))


def test_bfloat16_trains_float32_weights():
    train, test = digits()
    model = MLP(MLP.Parameters(outputs=10, inputs=64)).fresh(1)
    fit(model, train, Classification(10), Recipe(epochs=5, batch_size=64, precision="bfloat16"), Run(seed=1))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert accuracy(model, Classification(10), test) > 0.8


def test_the_gradient_norm_is_bounded():
    split, recipe = blobs(16), Recipe(optimizer="sgd", momentum=0.0, learning_rate=1.0, epochs=1, batch_size=16, gradient_clip=0.01)
    model = MLP(MLP.Parameters(outputs=2, inputs=4, hidden=(8,))).fresh(0)
    before = torch.cat([value.flatten() for value in model.parameters()]).detach().clone()
    fit(model, split, Classification(2), recipe, Run(seed=0))
    after = torch.cat([value.flatten() for value in model.parameters()]).detach()
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_cancelled_training_stops_at_the_next_step():
    seen = []
    run = Run(seed=0, on_progress=seen.append, cancelled=lambda: len(seen) >= 3, report_every_s=0)
    with pytest.raises(Cancelled):
        fit(MLP(MLP.Parameters(outputs=2, inputs=4)).fresh(0), blobs(), Classification(2), Recipe(epochs=50, batch_size=16), run)
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert seen[0].stage == "train"
    assert seen[0].of == 200
    assert math.isfinite(seen[0].values["loss"])


def test_a_training_past_its_deadline_stops():
    with pytest.raises(DeadlineExceeded):
        fit(MLP(MLP.Parameters(outputs=2, inputs=4)).fresh(0), blobs(), Classification(2), Recipe(), Run(seed=0, deadline_s=0))


def test_a_training_whose_loss_is_not_finite_ends_after_an_epoch():
    split = blobs()
    split.x[5, 2] = float("nan")
    steps = []
    run = Run(seed=0, on_progress=lambda progress: steps.append(progress.step), report_every_s=0)
    with pytest.raises(NonFinite, match="train"):
        fit(MLP(MLP.Parameters(outputs=2, inputs=4)).fresh(0), split, Classification(2), Recipe(epochs=50, batch_size=16), run)
    assert len(steps) == 4


def test_no_records_and_labels_out_of_range_are_refused():
    split = blobs()
    model = MLP(MLP.Parameters(outputs=2, inputs=4)).fresh(0)
    with pytest.raises(InvalidInput, match="no record"):
        fit(model, split.take(torch.zeros(0, dtype=torch.int64)), Classification(2), Recipe(), Run(seed=0))
    with pytest.raises(InvalidInput, match="0 to 0"):
        fit(model, split, Classification(1), Recipe(), Run(seed=0))


def test_a_loss_smoothed_otherwise_than_the_recipe_says_is_an_error():
    with pytest.raises(ValueError, match="smoothing"):
        fit(MLP(MLP.Parameters(outputs=2, inputs=4)).fresh(0), blobs(), Classification(2), Recipe(label_smoothing=0.1), Run(seed=0))


def test_the_optimiser_takes_the_recipe_and_another_rate_where_one_is_given():
    weights = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = optimizer_for(Recipe(optimizer="sgd", momentum=0.5, weight_decay=0.1, learning_rate=0.2), weights)
    assert [optimizer.param_groups[0][key] for key in ("lr", "momentum", "weight_decay")] == [0.2, 0.5, 0.1]
    assert optimizer_for(Recipe(), weights, learning_rate=7e-3).param_groups[0]["lr"] == 7e-3
    assert optimizer_for(Recipe(optimizer="adamw"), weights).__class__ is torch.optim.AdamW
