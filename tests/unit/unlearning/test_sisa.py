"""The numbered acceptance tests of the method: exact to the bit, as expensive as the formula says, and earlier slices untouched."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from services.errors import Diverged, MethodNotApplicable, ParameterOutOfRange
from services.learning.architectures.mlp import MLP
from services.learning.architectures.sharded import Sharded
from services.learning.architectures.tiny_cnn import TinyCNN
from services.learning.data import Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.sharding import ShardedNet
from services.learning.training import fit
from services.unlearning.mechanisms.shard_training import (
    expected_shards,
    expected_share,
    places,
    slice_epochs,
    train_shards,
    train_whole,
)
from services.unlearning.methods.fine_tune import FineTune
from services.unlearning.methods.retrain import Retrain
from services.unlearning.methods.sisa import Sisa

torch.set_num_threads(1)

RECIPE = Recipe(learning_rate=8e-3, epochs=4, batch_size=32)
SHARDS, SLICES = 3, 3
assert MLP.name == "mlp", TinyCNN.name == "tiny_cnn"  # imported, so that the registry knows the constituents


def sharded(shards: int = SHARDS, slices: int = SLICES, base: str = "mlp", **base_parameters: object) -> Sharded:
    chosen = base_parameters or {"inputs": 64, "hidden": (32,), "input_norm": "batch"}
    return Sharded(Sharded.Parameters(outputs=10, base=base, base_parameters=chosen, shards=shards, slices=slices))


@pytest.fixture(scope="module")
def lab(mlp_lab):
    """A sharded network with batch norm in its constituents, trained on digits."""
    architecture = sharded()
    run = Run(seed=7, architecture=architecture, recipe=RECIPE)
    model = run.fresh_model("init")
    train_whole(model, mlp_lab.train, mlp_lab.task, RECIPE, run)
    return replace(mlp_lab, architecture=architecture, recipe=RECIPE, original=model.eval())


def removing(lab, gone: list[int], *, kind: str = "records") -> Splits:
    """The request that forgets the rows `gone`; the forget set is withheld, as the method asks."""
    stays = torch.tensor([row for row in range(len(lab.train)) if row not in set(gone)])
    nothing = lab.train.take(torch.zeros(0, dtype=torch.int64))
    return Splits(nothing, lab.train.take(stays), lab.analysis, kind=kind).for_method()


def layout(lab) -> list[list[torch.Tensor]]:
    return places(lab.train.ids, seed=int(lab.original.seed), shards=SHARDS, slices=SLICES)


def rows_at(lab, shard: int, piece: int, count: int) -> list[int]:
    return layout(lab)[shard][piece][:count].tolist()


def unlearned(lab, splits: Splits, model: nn.Module | None = None, **given: object):
    run = lab.run(**{"seed": 3, **given})
    return Sisa(Sisa.Parameters()).unlearn(lab.copy() if model is None else model, splits, lab.task, run), run


@pytest.mark.parametrize("where", [[(0, 0)], [(1, 2)], [(0, 1), (2, 2)], [(0, 2), (1, 2), (2, 0)]], ids=str)
def test_1_the_result_is_bit_for_bit_that_of_training_without_the_rows_from_scratch(where, lab, digest_of):
    splits = removing(lab, [row for shard, piece in where for row in rows_at(lab, shard, piece, 3)])

    model, run = unlearned(lab, splits)

    scratch = lab.architecture.fresh(12345)
    train_shards(scratch, splits.retain, lab.task, RECIPE, Run(seed=55), seed=int(lab.original.seed), resume=False)
    assert digest_of(model) == digest_of(scratch)
    assert digest_of(model) != digest_of(lab.original)
    assert run.notes["cost"]["from_slice"] == {str(shard): piece for shard, piece in where}


def test_1_the_order_of_the_rows_and_the_seed_of_the_request_do_not_matter(lab, digest_of):
    splits = removing(lab, rows_at(lab, 1, 1, 2))
    shuffled = splits.retain.take(torch.randperm(len(splits.retain), generator=torch.Generator().manual_seed(0)))

    results = {digest_of(unlearned(lab, each, seed=seed)[0]) for each, seed in ((splits, 3), (splits, 4), (replace(splits, retain=shuffled), 3))}

    assert len(results) == 1


def test_2_the_number_of_shards_touched_is_as_expected():
    draw, ids = random.Random(0), [str(row) for row in range(2000)]
    for shards, removed in ((5, 1), (5, 4), (20, 10), (20, 60)):
        home = {
            ids[int(row)]: shard
            for shard, pieces in enumerate(places(tuple(ids), seed=9, shards=shards, slices=2))
            for piece in pieces
            for row in piece
        }
        touched = [len({home[identity] for identity in draw.sample(ids, removed)}) for _ in range(3000)]
        mean = sum(touched) / len(touched)
        assert mean == pytest.approx(expected_shards(shards, removed), rel=0.02)
    assert expected_shards(5, 1) == pytest.approx(1.0)


def test_2_the_cost_of_one_request_is_as_expected():
    for shards, slices in ((1, 1), (5, 1), (5, 3), (10, 5)):
        epochs, rows = 2 * (slices + 1), 120  # whole epochs per slice, equal slices
        per_slice = slice_epochs(epochs, slices)
        costs = [sum(per_slice * rows * (piece + 1) for piece in range(first, slices)) for first in range(slices)]
        whole = epochs * rows * slices * shards
        assert sum(costs) / slices / whole == pytest.approx(expected_share(shards, slices))
        assert sum(per_slice * (piece + 1) * rows for piece in range(slices)) * shards == whole  # slicing costs no more than training whole


def test_2_the_report_accounts_for_what_was_done(lab):
    model, run = unlearned(lab, removing(lab, rows_at(lab, 2, 1, 4)))

    cost, pieces = run.notes["cost"], [len(piece) for piece in layout(lab)[2]]
    passes = slice_epochs(4, SLICES) * ((pieces[0] + pieces[1] - 4) + (sum(pieces) - 4))
    assert cost["record_passes"] == passes
    assert cost["shards_trained"] == 1
    assert cost["records_removed"] == 4
    assert cost["share_of_whole_training"] == pytest.approx(passes / cost["whole_record_passes"])
    assert cost["expected"]["shards"] == pytest.approx(expected_shards(3, 4))
    assert int(model.rows.sum()) == len(lab.train) - 4
    assert set(run.notes["steps"]) == {"sisa/shard 3/slice 2", "sisa/shard 3/slice 3"}


@pytest.mark.parametrize("piece", range(SLICES))
def test_3_a_row_in_a_slice_leaves_earlier_checkpoints_and_other_shards_untouched(piece, lab):
    model, _ = unlearned(lab, removing(lab, rows_at(lab, 1, piece, 1)))

    for shard in range(SHARDS):
        for at in range(SLICES):
            before, after = lab.original.state_after(shard, at), model.state_after(shard, at)
            same = all(torch.equal(tensor, after[name]) for name, tensor in before.items())
            assert same == (shard != 1 or at < piece), (shard, at)


def test_batching_requests_equals_serving_them_one_by_one_and_costs_less(lab, digest_of):
    first, second = rows_at(lab, 0, 0, 2), layout(lab)[0][1][:2].tolist()

    together, run = unlearned(lab, removing(lab, first + second))
    halfway, run_a = unlearned(lab, removing(lab, first))
    apart, run_b = unlearned(lab, removing(lab, first + second), copy.deepcopy(halfway))

    assert digest_of(together) == digest_of(apart)
    assert run.notes["cost"]["record_passes"] < run_a.notes["cost"]["record_passes"] + run_b.notes["cost"]["record_passes"]


def test_a_record_belongs_where_its_id_says_whatever_else_is_there():
    whole = tuple(f"r{row}" for row in range(500))
    half = whole[::2]

    def home(ids: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        found = places(ids, seed=1, shards=4, slices=3)
        return {ids[int(row)]: (shard, piece) for shard, pieces in enumerate(found) for piece, rows in enumerate(pieces) for row in rows}

    everyone, some = home(whole), home(half)
    assert len(everyone) == 500
    assert all(everyone[identity] == some[identity] for identity in half)
    assert set(everyone.values()) == {(shard, piece) for shard in range(4) for piece in range(3)}


def test_a_model_that_was_changed_by_another_method_is_not_believed(lab, digest_of):
    run = lab.run(seed=9)
    tuned = FineTune(FineTune.Parameters(epochs=1)).unlearn(lab.copy(), removing(lab, []), lab.task, run)
    splits = removing(lab, rows_at(lab, 0, 2, 1))

    model, run = unlearned(lab, splits, tuned)

    assert run.notes["cost"]["from_slice"] == {"0": 2, "1": 2, "2": 2}  # the kept states before are sound, the constituents are not
    assert digest_of(model) == digest_of(unlearned(lab, splits)[0])


def test_a_kept_state_that_was_tampered_with_is_trained_again(lab, digest_of):
    splits, model = removing(lab, rows_at(lab, 0, 2, 1)), lab.copy()
    model.kept.get_buffer("head__bias")[0, 0, 0] += 1e-3

    result, run = unlearned(lab, splits, model)

    assert run.notes["cost"]["from_slice"] == {"0": 0}
    assert digest_of(result) == digest_of(unlearned(lab, splits)[0])


def test_another_recipe_or_changed_content_trains_everything_again(lab):
    changed = lab.train.x.clone()
    changed[rows_at(lab, 2, 1, 1)[0]] += 1
    splits = replace(removing(lab, []), retain=replace(lab.train, x=changed))
    assert unlearned(lab, splits)[1].notes["cost"]["from_slice"] == {"2": 1}

    run = Run(seed=1, architecture=lab.architecture, recipe=RECIPE.model_copy(update={"epochs": 2}))
    Sisa(Sisa.Parameters()).unlearn(lab.copy(), removing(lab, rows_at(lab, 0, 2, 1)), lab.task, run)
    assert run.notes["cost"]["from_slice"] == {"0": 0, "1": 0, "2": 0}


def test_a_request_that_changes_no_slice_is_refused_not_returned_unchanged(lab, digest_of):
    model = lab.copy()

    with pytest.raises(MethodNotApplicable, match="no slice has changed"):
        unlearned(lab, removing(lab, []), model)

    assert digest_of(model) == digest_of(lab.original)


def test_a_shard_that_loses_all_its_records_falls_silent(lab):
    splits = removing(lab, torch.cat(layout(lab)[1]).tolist())

    model, _ = unlearned(lab, splits)

    assert model.rows.sum(dim=1).tolist()[1] == 0
    x = lab.test.batch(torch.arange(20)).x
    with torch.no_grad():
        others = torch.stack([model.parts[shard](x).softmax(1) for shard in (0, 2)]).mean(0)
        assert torch.allclose(model(x).softmax(1), others, atol=1e-6)


def test_the_network_votes_by_the_mean_probability(lab):
    x = lab.test.batch(torch.arange(50)).x

    with torch.no_grad():
        mean = torch.stack([part(x).softmax(1) for part in lab.original.parts]).mean(0)
        assert torch.allclose(lab.original(x).exp(), mean, atol=1e-6)
    assert lab.accuracy(lab.original, lab.test) > 0.85


def test_the_state_is_all_in_the_weights_and_comes_back_from_a_file(lab, digest_of):
    from safetensors.torch import load, save

    loaded = lab.architecture.fresh(77)
    loaded.load_state_dict(load(save({name: tensor.contiguous() for name, tensor in lab.original.state_dict().items()})))
    splits = removing(lab, rows_at(lab, 1, 2, 1))

    assert digest_of(unlearned(lab, splits, loaded.eval())[0]) == digest_of(unlearned(lab, splits)[0])


def test_retraining_a_sharded_network_trains_it_in_shards(lab):
    splits = removing(lab, rows_at(lab, 1, 2, 1))

    model = Retrain(Retrain.Parameters()).unlearn(lab.copy(), splits, lab.task, lab.run(seed=21))

    assert isinstance(model, ShardedNet)
    assert int(model.rows.sum()) == len(splits.retain)
    assert lab.accuracy(model, lab.test) > 0.85


def test_convolutions_with_slices_go_round_too(lab, digest_of):
    architecture = sharded(2, 2, "tiny_cnn", width=4)
    train = lab.train.take(torch.arange(200))
    recipe = Recipe(epochs=3, batch_size=32)
    model = architecture.fresh(1)
    train_shards(model, train, lab.task, recipe, Run(seed=1), seed=5, resume=False)
    splits = Splits(train.take(torch.zeros(0, dtype=torch.int64)), train.take(torch.arange(3, 200)), lab.analysis, kind="records")
    run = Run(seed=2, architecture=architecture, recipe=recipe)

    result = Sisa(Sisa.Parameters()).unlearn(model, splits, lab.task, run)

    scratch = architecture.fresh(2)
    train_shards(scratch, splits.retain, lab.task, recipe, Run(seed=1), seed=5, resume=False)
    assert digest_of(result) == digest_of(scratch)


def test_a_network_never_trained_in_shards_is_trained_from_its_first_slice(lab):
    model, run = unlearned(lab, removing(lab, []), lab.architecture.fresh(3))

    assert run.notes["cost"]["from_slice"] == {"0": 0, "1": 0, "2": 0}
    assert int(model.rows.sum()) == len(lab.train)


def test_a_plain_network_counts_as_one_shard(mlp_lab, digest_of):
    lab = replace(mlp_lab, recipe=RECIPE)
    splits, run = lab.without_forget(), lab.run()

    model = Sisa(Sisa.Parameters()).unlearn(lab.copy(), splits, lab.task, run)

    fresh = lab.run().fresh_model("sisa")
    fit(fresh, splits.retain, lab.task, lab.recipe, lab.run(), generator=lab.run().stream("sisa/order"))
    assert digest_of(model) == digest_of(fresh)
    assert run.notes["cost"]["share_of_whole_training"] == 1.0


def test_a_training_that_is_not_finite_gives_the_original_back(lab, digest_of):
    model = lab.copy()
    run = Run(seed=1, architecture=lab.architecture, recipe=RECIPE.model_copy(update={"learning_rate": 10.0, "optimizer": "sgd", "batch_size": 2000}))
    broken = replace(removing(lab, []), retain=replace(lab.train, prepare=lambda x: x.float() * float("nan")))

    with pytest.raises(Diverged):
        Sisa(Sisa.Parameters()).unlearn(model, broken, lab.task, run)

    assert digest_of(model) == digest_of(lab.original)


def test_a_constituent_is_not_sharded_itself_and_its_parameters_are_checked():
    with pytest.raises(ParameterOutOfRange, match="sharded itself"):
        sharded(2, 1, "sharded", inputs=4)
    with pytest.raises(ParameterOutOfRange, match="base_parameters"):
        sharded(2, 1, "mlp", inputs=0)


def test_slices_share_the_epochs_and_get_one_at_least():
    assert [slice_epochs(12, slices) for slices in (1, 2, 3, 5)] == [12, 8, 6, 4]
    assert slice_epochs(1, 50) == 1
