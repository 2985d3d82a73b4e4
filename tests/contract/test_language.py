"""What every component for language models keeps to: methods, metrics, architectures and the adapter, in one small world."""

import copy
import dataclasses
import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from services.errors import Cancelled, DeadlineExceeded, Diverged, InvalidInput, MethodNotApplicable, ParameterOutOfRange, UnsupportedTask
from services.learning.answers import greedy
from services.learning.architecture import ARCHITECTURES
from services.learning.data import Batch, Split
from services.learning.dataset import DATASETS
from services.learning.recipe import Recipe
from services.learning.run import Progress, Run
from services.learning.tasks.classification import Classification
from services.learning.tasks.language_model import LanguageModel
from services.learning.tokens import IGNORED, WordTokenizer, answers_of, packed, pieces_of, prompts_of, words_of
from services.learning.training import fit
from services.unlearning.method import METHODS
from services.verification import evaluation
from services.verification.metric import METRICS, Models
from services.verification.reading import Reading, Unmeasured
from tests.unit.unlearning.language_world import Facts, facts

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")
ARCHITECTURES.discover("services.learning.architectures")
DATASETS.discover("services.learning.datasets")
evaluation.discover()

EDITS = {
    "grad_ascent", "grad_diff", "npo", "simnpo", "dpo", "idk", "rmu", "undial", "task_vector", "concept_poisoning_text",
}  # fmt: skip
METHODS_HERE = sorted(name for name in METHODS if "language_model" in METHODS[name].tasks)
METRICS_HERE = sorted(name for name in METRICS if "language_model" in METRICS[name].tasks)
SHORTER: dict[str, dict[str, object]] = {
    **{name: {"lr": 1e-3, "max_steps": 4, "forget_target": 0.0} for name in EDITS},
    "rmu": {"lr": 1e-3, "max_steps": 4, "forget_target": 0.0, "defaults_confirmed": True},
    "concept_poisoning_text": {"epochs": 2, "lr": 1e-3, "batch_size": 4, "answer_tokens": 12},
    "fine_tune": {"epochs": 4},
}
QUICK_READINGS: dict[str, dict[str, object]] = {
    "appearance_rate": {"entities": tuple(f"name{one}" for one in range(16))},
    "relearn_time": {"steps": 3, "seeds": 3},
}


def digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


@cache
def world() -> Facts:
    return facts(people=30, sentences=True, epochs=12)


@cache
def models() -> Models:
    held = world()

    def trained(seed: int) -> nn.Module:
        run = Run(seed=seed, architecture=held.architecture, recipe=held.recipe)
        model = run.fresh_model("reference")
        fit(model, held.retain, held.task, held.recipe, run)
        return model.eval()

    return Models(held.original, trained(3), trained(4), trained(5))


def unlearned(name: str, run: Run, *, model: nn.Module | None = None, **without: object) -> nn.Module:
    family = METHODS[name]
    splits = world().splits(analysis=True, retain=family.needs.retain_set)
    if not family.needs.forget_set:
        splits = dataclasses.replace(splits, forget=splits.forget.take(torch.zeros(0, dtype=torch.int64)))
    splits = dataclasses.replace(splits, **without)
    method = family(family.Parameters.model_validate(SHORTER.get(name, {})))
    return method.unlearn(world().copy() if model is None else model, splits, world().task, run)


@cache
def done(name: str) -> tuple[nn.Module, Run, tuple[Progress, ...]]:
    reports: list[Progress] = []
    run = world().run(seed=11, on_progress=reports.append, report_every_s=0.0)
    return unlearned(name, run), run, tuple(reports)


def test_every_method_and_metric_for_language_models_is_here():
    assert set(METHODS_HERE) == {*EDITS, "fine_tune", "retrain"}
    assert set(METRICS_HERE) == {
        "answer_probability", "appearance_rate", "exact_match", "forget_quality", "min_k", "model_utility", "privleak", "quantised_forgetting",
        "relearn_time", "rouge_l", "truth_ratio", "truth_ratio_distance",
    }  # fmt: skip


@pytest.mark.parametrize("name", METHODS_HERE)
def test_one_seed_gives_equal_bytes_and_the_original_is_untouched(name):
    before = digest(world().original)
    state = torch.random.get_rng_state()

    first, second = done(name)[0], unlearned(name, world().run(seed=11))

    assert digest(first) == digest(second)
    assert digest(world().original) == before != digest(first)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", METHODS_HERE)
def test_the_result_fits_the_architecture_and_the_run_is_told(name):
    model, run, reports = done(name)
    expected = world().original.state_dict()

    assert {key: (value.shape, value.dtype) for key, value in model.state_dict().items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
    assert all(bool(torch.isfinite(value).all()) and value.is_contiguous() for value in model.state_dict().values())
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    json.dumps(run.notes, allow_nan=False)
    assert sum(run.notes["steps"].values()) > 0
    last = {report.stage: report for report in reports}
    assert all(report.stage and 0 < report.step <= report.of and "loss" in report.values for report in reports)
    assert all(report.step == report.of for report in last.values())


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_run_is_cancelled_at_the_next_step_and_stops_at_its_deadline(name):
    asked: list[int] = []
    with pytest.raises(Cancelled):
        unlearned(name, world().run(cancelled=lambda: asked.append(1) or len(asked) == 3))
    assert len(asked) == 3
    with pytest.raises(DeadlineExceeded):
        unlearned(name, world().run(deadline_s=-1.0))


@pytest.mark.parametrize("name", sorted(EDITS | {"fine_tune"}))
def test_weights_that_are_not_finite_diverge_and_come_back_as_they_were(name):
    model = world().copy()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    before = digest(model)

    with pytest.raises(Diverged):
        unlearned(name, world().run(), model=model)

    assert digest(model) == before


@pytest.mark.parametrize("name", sorted(EDITS))
def test_what_a_method_cannot_do_without_is_asked_for(name):
    nothing = world().forget.take(torch.zeros(0, dtype=torch.int64))

    with pytest.raises(MethodNotApplicable):
        unlearned(name, world().run(), forget=nothing)
    with pytest.raises(UnsupportedTask):
        METHODS[name](METHODS[name].Parameters()).unlearn(world().copy(), world().splits(), Classification(3), world().run())
    if METHODS[name].needs.retain_set:
        with pytest.raises(InvalidInput):
            unlearned(name, world().run(), retain=nothing)


def taken(name: str, split: str = "", **changed: object) -> Reading | Unmeasured:
    metric = METRICS[name](METRICS[name].Parameters.model_validate(QUICK_READINGS.get(name, {})))
    data = dataclasses.replace(world().whole(), **changed)
    return metric.measure(models(), data, world().task, world().run(seed=5), split=split or metric.splits[0])


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in METRICS_HERE for split in METRICS[name].splits])
def test_a_metric_is_taken_on_each_of_its_splits_within_its_bounds(name, split):
    found = taken(name, split)

    assert isinstance(found, Reading)
    low, high = METRICS[name].bounds
    assert low <= found.value <= high
    assert found.low <= found.value <= found.high
    assert found.n > 0
    json.dumps(dict(found.detail), allow_nan=False)
    assert all(facts.get("description") for facts in METRICS[name].Parameters.model_json_schema()["properties"].values())


@pytest.mark.parametrize("name", METRICS_HERE)
def test_a_metric_repeats_whatever_the_order_of_rows_and_leaves_the_model_as_it_was(name):
    before = digest(models().unlearned)
    generator = torch.Generator().manual_seed(1)
    whole = world().whole()
    shuffled = {part: getattr(whole, part).sample(len(getattr(whole, part)), generator) for part in ("forget", "retain", "verification", "attack")}

    first, second, turned = taken(name), taken(name), taken(name, **shuffled)

    assert first == second
    assert turned.value == pytest.approx(first.value, abs=1e-5)
    assert digest(models().unlearned) == before


@pytest.mark.parametrize("name", METRICS_HERE)
def test_without_records_a_metric_says_so(name):
    nobody = world().forget.take(torch.zeros(0, dtype=torch.int64))
    part = {"forget_train": "forget", "retain_train": "retain"}[METRICS[name].splits[0]]

    assert taken(name, **{part: nobody}) == Unmeasured("no_records")


@pytest.mark.parametrize("name", METRICS_HERE)
def test_the_difference_of_a_model_and_itself_is_zero(name):
    metric = METRICS[name](METRICS[name].Parameters.model_validate(QUICK_READINGS.get(name, {})))
    how = {"data": world().whole(), "task": world().task, "run": world().run(), "split": metric.splits[0]}

    same = metric.difference(models(), versus=models().unlearned, **how)

    assert same is None or (same.value == 0 and same.low <= 0 <= same.high)


@pytest.mark.soak
def test_a_plan_of_all_metrics_is_evaluated():
    entries = [
        {"kind": "metric", "name": name, "split": METRICS[name].splits[0], "parameters": QUICK_READINGS.get(name, {})} for name in METRICS_HERE
    ]
    plan = {"readings": entries, "seeds": {"evaluate": 5}, "level": 0.9, "batch_size": 7}

    found = evaluation.evaluate(plan, models(), world().whole(), world().task, world().run())

    assert [reading.name for reading in found] == METRICS_HERE
    assert all(isinstance(reading.after, Reading) for reading in found)


# --- architectures, task and adapter -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def local(request, tmp_path_factory) -> str:
    """A tiny model of random weights with its tokenizer in a folder, as transformers keeps them."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    home = tmp_path_factory.mktemp(request.param)
    words = {word: place for place, word in enumerate(["<end>", "<unk>", "Question", "Answer", ":", "who", "Ann", "Bob", "writes", "."])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>").save_pretrained(home)
    size = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0}
    if request.param == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **size)
    else:
        config = transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            **size,
        )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(home, safe_serialization=True)
    return str(home)


def built(family: str, local: str = "", **more: object):
    parameters = (
        {"outputs": 10, "model": local, **more} if family == "transformers_lm" else {"outputs": 259, "max_length": 32, "width": 16, "layers": 1}
    )
    return ARCHITECTURES[family](ARCHITECTURES[family].Parameters(**parameters))


def check_architecture(architecture, outputs: int) -> None:
    first, again = architecture.fresh(1), architecture.fresh(1)
    x = torch.randint(3, outputs, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = first.eval()(x)
        longer = first(torch.cat([x, x], dim=1))
        stepped, state = first.continued(x[:, :8])
        following, _ = first.continued(x[:, 8:], state)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert logits.shape == (4, 9, outputs)
    assert torch.allclose(longer[:, :9], logits, atol=1e-5)
    assert torch.allclose(stepped, logits[:, :8], atol=1e-5)
    assert torch.allclose(following[:, 0], logits[:, 8], atol=1e-5)
    assert isinstance(first.get_submodule(architecture.head), nn.Linear)
    storages = [value.data_ptr() for value in first.state_dict().values()]
    assert len(storages) == len(set(storages))


def test_the_small_gpt_keeps_to_the_contract():
    check_architecture(built("small_gpt"), 259)
    family = ARCHITECTURES["small_gpt"]
    with pytest.raises(ValueError, match="259"):
        family.Parameters(outputs=100)
    with pytest.raises(ValueError, match="multiple"):
        family.Parameters(outputs=259, width=30, heads=4)


@pytest.mark.parametrize("start", ["published", "random"])
def test_a_model_of_transformers_keeps_to_the_contract(local, start):
    architecture = built("transformers_lm", local, start=start)
    check_architecture(architecture, 10)
    same = torch.equal(next(architecture.fresh(1).parameters()), next(architecture.fresh(2).parameters()))
    assert same is (start == "published")


def test_a_model_of_transformers_learns_is_adapted_and_answers(local):
    architecture = built("transformers_lm", local)
    adapter = DATASETS["question_answer"](DATASETS["question_answer"].Parameters(tokenizer=local, max_length=16))
    texts = {"question": np.array(["who writes", "Bob"], dtype=object), "answer": np.array(["Ann .", "writes Ann ."], dtype=object)}
    x, y = adapter.decode(texts)
    split, task, recipe = Split(x, y, ("a", "b")), LanguageModel(10), Recipe(learning_rate=1e-2, epochs=40, batch_size=2)
    task.check(split)
    model, run = architecture.fresh(1), Run(seed=1, architecture=architecture, recipe=recipe)
    fit(model, split, task, recipe, run)
    said = greedy(model, prompts_of(split), end=adapter.tokenizer.end, most=8)
    assert [adapter.tokenizer.decode(ids) for ids in said] == ["Ann .", "writes Ann ."]

    family = METHODS["npo"]
    parts = [split.take(torch.tensor([row])) for row in (0, 1)]
    data = dataclasses.replace(world().splits(), forget=parts[0], retain=parts[1])
    edited = family(family.Parameters(lora=True, lr=1e-2, epochs=3, min_steps=0)).unlearn(copy.deepcopy(model), data, task, run)
    assert run.notes["adapter"]["off_restores_base"] is True
    assert set(edited.state_dict()) == set(model.state_dict())


def test_what_cannot_be_loaded_or_does_not_fit_is_refused(local, tmp_path):
    with pytest.raises(ParameterOutOfRange, match="10 tokens"):
        ARCHITECTURES["transformers_lm"](ARCHITECTURES["transformers_lm"].Parameters(outputs=11, model=local)).fresh(1)
    with pytest.raises(ParameterOutOfRange, match="loaded"):
        built("transformers_lm", str(tmp_path)).fresh(1)


def test_losses_are_means_over_answer_tokens_and_do_not_depend_on_batch_mates():
    task, model, split = world().task, world().original, world().retain
    whole = torch.cat([task.losses(model, batch) for batch in split.batches(100)])
    logits = model(split.x[:1])[0].log_softmax(-1)
    places = (split.y[0] != IGNORED).nonzero().flatten()
    by_hand = -torch.stack([logits[place - 1, split.x[0, place]] for place in places]).mean()

    assert float(whole[0].detach()) == pytest.approx(float(by_hand.detach()), abs=1e-5)
    alone = task.losses(model, split.batch(torch.tensor([0])))
    assert float(alone[0].detach()) == pytest.approx(float(whole[0].detach()), abs=1e-5)
    logs = task.predict(model, split)[..., 0]
    assert torch.allclose(-logs.sum(1) / (split.y != IGNORED).sum(1), whole.detach(), atol=1e-5)
    assert task.trivial_loss(split) == pytest.approx(np.log(task.outputs))


def test_a_tokenizer_that_does_not_match_is_refused():
    split = world().retain
    with pytest.raises(InvalidInput, match="tokenizer"):
        LanguageModel(10).check(split)
    with pytest.raises(InvalidInput, match="no answer"):
        world().task.check(dataclasses.replace(split, y=torch.full_like(split.y, IGNORED)))
    with pytest.raises(InvalidInput, match="own tokens"):
        world().task.check(dataclasses.replace(split, y=torch.where(split.y == IGNORED, split.y, 3)))
    with pytest.raises(InvalidInput, match="same shape"):
        world().task.check(dataclasses.replace(split, y=split.y[:, 0]))


def test_every_text_is_written_and_read_back():
    words = words_of(["Ann writes to Bob .", "Ann writes well"], most=3)
    tokenizer = WordTokenizer(words)

    assert words == (" Ann", " writes")
    for text in ("Ann writes Züri-novels, twice!", "x", "日本 Ann"):
        assert tokenizer.decode(tokenizer.answer(text)) == text
        assert "".join(pieces_of(text)) == f" {text}"


def test_records_hold_question_and_answer_and_mask_the_question():
    adapter = DATASETS["question_answer"](DATASETS["question_answer"].Parameters(max_length=8))
    x, y = adapter.decode({"question": np.array(["a"], dtype=object), "answer": np.array(["bc"], dtype=object)})
    split = Split(x, y, ("one",))

    assert prompts_of(split) == [[35, 100, 1]]
    assert answers_of(split) == [[35, 101, 102, 2]]
    assert x.tolist() == [[35, 100, 1, 35, 101, 102, 2, 0]]
    assert isinstance(split.batch(torch.tensor([0])), Batch)


@pytest.mark.parametrize(
    ("columns", "match"),
    [({"question": ["a"]}, "missing"), ({"question": ["a"], "answer": [""]}, "empty"), ({"question": ["a" * 40], "answer": ["b"]}, "longest")],
)
def test_texts_that_do_not_fit_are_refused(columns, match):
    adapter = DATASETS["question_answer"](DATASETS["question_answer"].Parameters(max_length=8))
    with pytest.raises(InvalidInput, match=match):
        adapter.decode({name: np.array(values, dtype=object) for name, values in columns.items()})
    with pytest.raises(InvalidInput, match="empty"):
        packed([([1], [2])], WordTokenizer(), 8)
