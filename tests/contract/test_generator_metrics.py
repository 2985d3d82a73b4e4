"""One oracle for every metric and attack on generators, each also against an independent reference; and the figure of samples."""

import base64
import copy
import dataclasses
import io
import json
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from services.audit.figure_forms import form_of, plain
from services.learning.architectures.conditional_gan import ConditionalGAN
from services.learning.architectures.mlp_gan import MLPGAN
from services.learning.data import Split, Splits
from services.learning.gan import GAN
from services.learning.judge import train_judge
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.tasks.image_generation import ImageGeneration
from services.learning.training import fit
from services.verification import evaluation, figure
from services.verification.attack import ATTACKS, Attack
from services.verification.figures.contact_sheet import png_of
from services.verification.generator_samples import features_beside, judge_of, sampled
from services.verification.metric import METRICS, Metric, Models
from services.verification.metrics.feature_fid import frechet_distance
from services.verification.outputs import by_id
from services.verification.reading import Measured, Reading, Unmeasured

torch.set_num_threads(1)
evaluation.discover()

CLASSES, FORGOTTEN = 3, 2
TASK = ImageGeneration(CLASSES)
ARCHITECTURE = MLPGAN(MLPGAN.Parameters(outputs=CLASSES, width=24, latent=6))
BOTH = [(METRICS, name) for name in METRICS] + [(ATTACKS, name) for name in ATTACKS]
COMPONENTS = [name for registry, name in BOTH if "image_generation" in registry[name].tasks]
SMALLER = {
    "item_nn_distance": {"samples": 300, "inv_steps": 10, "inv_restarts": 1},
    "downstream_accuracy": {"samples": 300, "records": 1000},
    "feature_kid": {"samples": 300, "subsets": 4, "subset_size": 40},
    "gan_attack": {"inv_steps": 10, "inv_restarts": 1},
}


def component(name: str, **chosen: object) -> Metric:
    family = METRICS[name] if name in METRICS else ATTACKS[name]
    return family(family.Parameters(**{**SMALLER.get(name, {"samples": 300}), **chosen}))


def kind_of(name: str) -> str:
    return "records" if name == "item_nn_distance" else "class"


def images(count: int, seed: int, prefix: str) -> Split:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand((CLASSES, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    y = torch.arange(count) % CLASSES
    x = (centres[y] + torch.randn((count, 1, 8, 8), generator=generator) * 0.25).clamp(-1, 1)
    return Split(x, y, tuple(f"{prefix}-{row:04}" for row in range(count)))


@cache
def parts(kind: str) -> Splits:
    train, held_out = images(180, 1, "train"), images(180, 2, "held-out")
    thirds = [held_out.take(rows) for rows in torch.arange(180).chunk(3)]
    if kind == "class":
        return Splits(*(train.with_labels((FORGOTTEN,), keep=keep) for keep in (True, False)), *thirds, "class", (FORGOTTEN,))
    return Splits(train.take(torch.arange(30)), train.take(torch.arange(30, 180)), *thirds, "records", ())


@cache
def models() -> Models:
    def trained(split: Split, seed: int) -> GAN:
        run = Run(seed=seed, architecture=ARCHITECTURE)
        model = run.fresh_model("weights")
        fit(model, split, TASK, Recipe(learning_rate=2e-3, epochs=20, batch_size=30), run)
        return model.eval()

    kept = images(180, 1, "train").with_labels((FORGOTTEN,), keep=False)
    return Models(trained(images(180, 1, "train"), 1), trained(kept, 2), trained(kept, 3), trained(kept, 4))


SHARED = Run(seed=5, architecture=ARCHITECTURE)  # its judge is trained once


def taken(name: str, split: str | None = None, *, data: Splits | None = None, run: Run = SHARED, subject: GAN | None = None, **chosen: object):
    metric = component(name, **chosen)
    subjects = models() if subject is None else models().judged_as(subject)
    return metric.measure(subjects, data or parts(kind_of(name)), TASK, run, split=split or metric.splits[0])


def test_every_metric_of_generators_is_covered_here():
    assert set(COMPONENTS) == {"class_rate", "item_nn_distance", "feature_fid", "feature_kid", "downstream_accuracy", "gan_attack"}
    assert issubclass(ATTACKS["gan_attack"], Attack)


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_is_taken_on_each_of_its_splits_within_its_bounds_and_leaves_the_models_as_they_were(name):
    held = models().unlearned.train()
    before = {key: value.clone() for key, value in held.state_dict().items()}
    state = torch.random.get_rng_state()

    for split in component(name).splits:
        found = taken(name, split)
        low, high = component(name).bounds
        assert isinstance(found, Reading)
        assert low <= found.value <= high
        assert found.low <= found.value <= found.high
        assert found.n > 0
        json.dumps(dict(found.detail), allow_nan=False)
    assert held.training
    assert all(torch.equal(before[key], value) for key, value in held.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    held.eval()


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_repeats_from_its_seed_whatever_the_order_of_the_rows(name):
    data = parts(kind_of(name))
    generator = torch.Generator().manual_seed(1)
    names = ("forget", "retain", "analysis", "verification", "attack")
    shuffled = dataclasses.replace(data, **{part: getattr(data, part).sample(len(getattr(data, part)), generator) for part in names})

    plain, other = taken(name), taken(name, data=shuffled, run=Run(seed=5, architecture=ARCHITECTURE))

    assert other.value == pytest.approx(plain.value, abs=1e-5)
    assert (other.low, other.high) == pytest.approx((plain.low, plain.high), abs=1e-4)


@pytest.mark.parametrize("name", COMPONENTS)
def test_without_records_or_for_another_kind_of_request_it_is_unmeasured_with_a_reason(name):
    data = parts(kind_of(name))
    nobody = data.forget.take(torch.zeros(0, dtype=torch.int64))

    assert taken(name, "forget_train", data=dataclasses.replace(data, forget=nobody)) == Unmeasured("no_records")
    if name == "class_rate":
        assert taken(name, data=parts("records")) == Unmeasured("class_requests_only")
    if name == "item_nn_distance":
        assert taken(name, data=parts("class")) == Unmeasured("record_requests_only")


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_never_reads_the_analysis_split(name):
    data = parts(kind_of(name))
    emptied = dataclasses.replace(data, analysis=data.analysis.take(torch.zeros(0, dtype=torch.int64)))

    assert taken(name, data=emptied) == taken(name)


@pytest.mark.parametrize("name", ["downstream_accuracy", "gan_attack", "feature_fid"])
def test_a_paired_difference_is_zero_with_itself_and_agrees_with_the_values_otherwise(name):
    metric, chosen = component(name), models()
    split, data = metric.splits[0], parts("class")

    same = metric.difference(chosen, data, TASK, SHARED, split=split, versus=chosen.unlearned)
    other = metric.difference(chosen, data, TASK, SHARED, split=split, versus=chosen.retrained)
    expected = taken(name).value - taken(name, subject=chosen.retrained).value

    assert same.value == 0
    assert same.low <= 0 <= same.high
    assert other.value == pytest.approx(expected, abs=1e-9)


def test_a_plan_reads_them_all_and_its_lines_pass_through_json():
    entries = [
        {"kind": "attack" if name in ATTACKS else "metric", "name": name, "gate": False, "parameters": SMALLER.get(name, {"samples": 300})}
        for name in COMPONENTS
        if kind_of(name) == "class"
    ]

    found = evaluation.evaluate(
        {"readings": entries, "seeds": {"evaluate": 5}}, models(), parts("class"), TASK, Run(seed=0, architecture=ARCHITECTURE)
    )

    assert all(isinstance(reading.after, Reading) and isinstance(reading.reference, Reading) for reading in found)
    assert [Measured.from_dict(json.loads(json.dumps(reading.as_dict()))) for reading in found] == found


# --- against independent references ------------------------------------------------------------------------------------------------------


def test_class_rate_is_the_share_that_the_judge_names_with_the_quantiles_of_beta():
    judge = judge_of(parts("class"), TASK, SHARED)
    seen = judge.look(sampled(models().original, parts("class"), SHARED, 300, retained_only=False)[0]).classes
    shown = int((seen == FORGOTTEN).sum())

    found = taken("class_rate", subject=models().original)

    assert found.value == shown / 300
    assert (found.low, found.high) == pytest.approx((beta.ppf(0.05, shown, 301 - shown), beta.ppf(0.95, shown + 1, 300 - shown)))
    assert found.value > taken("class_rate", subject=models().retrained).value


def test_frechet_of_a_shift_is_its_squared_length_and_else_that_of_scipys_root():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((400, 5), generator=generator, dtype=torch.float64)
    b = torch.randn((300, 5), generator=generator, dtype=torch.float64) @ torch.randn((5, 5), generator=generator, dtype=torch.float64)
    shift = torch.tensor([1.0, 2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    one, two = np.cov(a.numpy().T), np.cov(b.numpy().T)
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(one + two - 2 * sqrtm(one @ two).real)

    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_feature_fid_is_taken_without_the_samples_that_show_what_is_forgotten():
    real, made = features_beside(models().original, parts("class"), TASK, SHARED, 300, "retain_test")

    assert taken("feature_fid", subject=models().original).value == pytest.approx(frechet_distance(real, made))
    assert len(made) < 300
    assert len(real) == len(parts("class").named("retain_test"))


def test_feature_fid_in_units_of_the_originals_is_one_for_the_original_and_keeps_its_differences():
    plain, scaled = component("feature_fid"), component("feature_fid", scale="original")
    unit = taken("feature_fid", subject=models().original).value
    found = taken("feature_fid", scale="original")
    asked = {"data": parts("class"), "task": TASK, "run": SHARED, "split": "retain_test", "versus": models().original}

    assert taken("feature_fid", subject=models().original, scale="original").value == 1
    assert found.value == pytest.approx(taken("feature_fid").value / unit)
    assert found.detail["distance"] == pytest.approx(taken("feature_fid").value)
    assert scaled.difference(models(), **asked).value == pytest.approx(plain.difference(models(), **asked).value / unit)
    assert scaled.difference(models(), **asked).value == pytest.approx(found.value - 1)


def test_what_is_learned_of_a_model_is_learned_once_for_all_columns(monkeypatch):
    from services.verification.metrics import downstream_accuracy

    trained = []
    learn = downstream_accuracy.train_judge
    monkeypatch.setattr(downstream_accuracy, "train_judge", lambda *given, **named: trained.append(1) or learn(*given, **named))
    run, metric, chosen = Run(seed=6, architecture=ARCHITECTURE), component("downstream_accuracy"), models()

    metric.measure(chosen, parts("class"), TASK, run, split="retain_test")
    metric.difference(chosen, parts("class"), TASK, run, split="retain_test", versus=chosen.original)
    metric.difference(chosen, parts("class"), TASK, run, split="retain_test", versus=chosen.retrained)

    assert len(trained) == 3


def test_kernel_distance_is_that_of_a_double_loop():
    real, made = features_beside(models().unlearned, parts("class"), TASK, SHARED, 300, "retain_test")
    size = len(real)
    found = taken("feature_kid", subset_size=size, subsets=2, samples=300)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((torch.dot(a, b) / len(a) + 1) ** 3)

    with_each = []
    torch_state = torch.random.get_rng_state()
    seed = int(torch.randint(2**62, (), generator=Run(seed=5).stream("feature_kid")))
    torch.manual_seed(seed)
    for _ in range(2):
        x, y = real[torch.randperm(size)[:size]], made[torch.randperm(len(made))[:size]]
        inside = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i in range(size) for j in range(size) if i != j) / (size * (size - 1))
        between = sum(kernel(a, b) for a in x for b in y) / size**2
        with_each.append(inside - 2 * between)
    torch.random.set_rng_state(torch_state)
    assert found.value == pytest.approx(float(np.mean(with_each)), rel=1e-5)


def test_item_distance_is_that_of_scikit_learns_neighbours():
    data = parts("records")
    free = sampled(models().unlearned, data, SHARED, 300, retained_only=False)[0].flatten(1).numpy()
    neighbours = NearestNeighbors(n_neighbors=1).fit(free)
    near, far = (neighbours.kneighbors(rows.x.flatten(1).numpy())[0].ravel() / 8 for rows in (data.forget, data.verification))

    found = taken("item_nn_distance", inv_steps=0)

    assert found.detail["distance"] == pytest.approx(near.mean(), rel=1e-4)
    assert found.value == pytest.approx(near.mean() / far.mean(), rel=1e-4)
    assert found.detail["share_below_tau"] == pytest.approx(float((near < found.detail["tau"]).mean()))


def test_a_generator_that_holds_the_items_lies_nearer_to_them_than_to_the_unseen():
    class Parrot(GAN):
        def make(self, z, y=None):
            rows = (z[:, 0].abs() * 1e4).long() % 30
            return parts("records").forget.x[rows]

    parrot = copy.deepcopy(models().unlearned)
    parrot.__class__ = Parrot

    found = taken("item_nn_distance", subject=parrot, inv_steps=0)

    assert found.value < 0.2
    assert found.high < 0.5


def test_the_attack_is_scikit_learns_area_and_a_memory_of_the_records_shows():
    data = parts("class")
    with torch.no_grad():
        members, others = (models().original(rows.x).flatten() for rows in (data.forget, data.attack.with_labels((FORGOTTEN,), keep=True)))
    expected = roc_auc_score([1] * len(members) + [0] * len(others), torch.cat([members, others]))

    assert taken("gan_attack", subject=models().original).value == pytest.approx(expected, abs=1e-9)


def test_without_a_discriminator_the_attack_inverts():
    lone = copy.deepcopy(models().unlearned)
    lone.discriminator = None

    found = taken("gan_attack", subject=lone)

    assert found.detail["score"] == "inversion"
    assert 0 <= found.value <= 1


def test_downstream_accuracy_is_that_of_a_classifier_trained_on_samples_alone():
    data = parts("class")
    made, _ = sampled(models().unlearned, data, SHARED, 300, retained_only=True)
    names = judge_of(data, TASK, SHARED).look(made).classes
    usable = names != FORGOTTEN
    rows = Split(made[usable], names[usable], tuple(f"s{row:06}" for row in range(int(usable.sum()))))
    run = Run(seed=5)
    student = train_judge(rows, CLASSES, run, "evaluate/downstream", epochs=-(-1000 // len(rows)))
    held = by_id(data.named("retain_test"))

    with torch.no_grad():
        expected = float((student.model(held.x).argmax(1) == held.y).double().mean())
    assert taken("downstream_accuracy").value == pytest.approx(expected)
    assert derived_seed(5, "evaluate/downstream") != derived_seed(5, "evaluate/judge")


def test_a_conditional_generator_is_asked_for_the_forgotten_class_where_forgetting_is_measured_and_else_not():
    gan = ConditionalGAN(ConditionalGAN.Parameters(outputs=CLASSES, side=8, width=4, latent=4)).fresh(1)

    asked = sampled(gan, parts("class"), SHARED, 300, retained_only=False)[1]
    kept = sampled(gan, parts("class"), SHARED, 300, retained_only=True)[1]

    assert set(asked.tolist()) == {0, 1, 2}
    assert set(kept.tolist()) == {0, 1}


# --- the contact sheet -------------------------------------------------------------------------------------------------------------------


def sheets_of(kind: str) -> dict:
    (found,) = figure.drawn(models(), parts(kind), TASK, SHARED, [])
    assert found["name"] == "contact_sheet"
    return plain(form_of(found["document"]))


def test_the_contact_sheet_shows_the_samples_of_each_model_pixel_by_pixel():
    found = sheets_of("class")
    made = sampled(models().unlearned, parts("class"), SHARED, 64, retained_only=False)[0]
    scale = 5  # 320 pixels over eight images of eight pixels

    assert [sheet["role"] for sheet in found["sheets"]] == ["original", "unlearned", "retrained"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["sheets"][1]["png"]))))
    assert pixels.shape == (8 * 8 * scale + 7 * 2,) * 2
    for number in (0, 11, 63):
        top, left = (number // 8) * (8 * scale + 2), (number % 8) * (8 * scale + 2)
        expected = ((made[number, 0].numpy() + 1) * 127.5).round()
        assert np.abs(pixels[top : top + 8 * scale : scale, left : left + 8 * scale : scale] - expected).max() <= 1
    assert pixels[8 * scale, 0] == 255
    assert found == sheets_of("class")


def test_of_single_images_the_sheet_does_not_show_the_original_which_may_know_them():
    found = sheets_of("records")

    assert [sheet["role"] for sheet in found["sheets"]] == ["unlearned", "retrained"]
    assert "The original is not shown" in found["note"]


def test_colours_are_kept_and_other_channels_are_shown_by_the_first():
    colours = torch.zeros(1, 3, 2, 2)
    colours[0, 0] = 1.0
    pixels = np.asarray(Image.open(io.BytesIO(png_of(colours))))

    assert pixels[0, 0].tolist() == [255, 128, 128]
    assert np.asarray(Image.open(io.BytesIO(png_of(torch.full((1, 2, 2, 2), -1.0)))))[0, 0] == 0
