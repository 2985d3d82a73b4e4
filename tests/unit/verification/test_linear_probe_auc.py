"""The linear probe against scikit-learn, on planted and on permuted features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from services.learning.architectures.mlp import MLP
from services.learning.data import Split
from services.learning.run import Run
from services.verification.features import features_on
from services.verification.metric import Models
from services.verification.metrics.linear_probe_auc import LinearProbe
from services.verification.outputs import generator_of
from services.verification.reading import Unmeasured
from tests.unit.verification.worlds import TASK, splits_of

torch.set_num_threads(1)

ARCHITECTURE = MLP(MLP.Parameters(inputs=6, outputs=10, hidden=(8,)))


class Shown(nn.Module):
    """Its features are the record itself."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 10)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(x)


def rows(prefix, features, labels):
    return Split(torch.as_tensor(features, dtype=torch.float32), torch.as_tensor(labels), tuple(f"{prefix}{i:04d}" for i in range(len(labels))))


def taken(data, *, model=None, split="forget_train", architecture=ARCHITECTURE, **more):
    subject = model or Shown()
    return LinearProbe(LinearProbe.Parameters(**more)).measure(
        Models(subject, subject), data, TASK, Run(seed=3, architecture=architecture), split=split
    )


def class_world(shift, count=80, seed=0):
    """Return a class request whose class 4 lies `shift` away from the others."""
    rng = np.random.default_rng(seed)
    other = np.array([c for c in range(10) if c != 4])
    forget = rng.normal(size=(count, 6)) + shift
    retain = rng.normal(size=(2 * count, 6))
    held = np.concatenate([rng.normal(size=(20, 6)) + shift, rng.normal(size=(40, 6))])
    return splits_of(
        forget=rows("f", forget, np.full(count, 4)),
        retain=rows("r", retain, rng.choice(other, 2 * count)),
        verification=rows("v", held, np.concatenate([np.full(20, 4), rng.choice(other, 40)])),
        kind="class",
        classes=(4,),
    )


def test_planted_separable_features_give_one_and_exchangeable_rows_about_one_half():
    planted, permuted = taken(class_world(8.0)), taken(class_world(0.0, count=300))

    assert planted.value == 1.0
    assert planted.low < 1.0
    assert permuted.value == pytest.approx(0.5, abs=0.08)
    assert permuted.detail["compared_with"] == 600


def test_it_is_scikit_learns_cross_validated_probe():
    data = class_world(0.7)
    labels = np.concatenate([np.ones(80), np.zeros(160)])
    features = np.concatenate([data.forget.x.double().numpy(), data.retain.x.double().numpy()])
    seed = int(generator_of(Run(seed=3), "linear_probe_auc/folds").integers(2**31))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", tol=1e-8))
    scores = np.zeros(240)
    scores[:] = cross_val_predict(probe, features, labels, cv=folds, method="decision_function")

    assert taken(data).value == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)


def test_a_class_has_a_probe_on_its_held_out_records_too():
    found = taken(class_world(8.0), split="forget_test")

    assert (found.value, found.n, found.detail["compared_with"]) == (1.0, 20, 40)


def test_single_records_are_compared_with_held_out_ones_of_their_classes():
    rng = np.random.default_rng(1)
    labels, held_labels = np.arange(60) % 3, np.arange(100) % 5
    offsets = 6.0 * np.eye(10)[:, :6]  # the class shows plainly: a probe must not take another class mix for membership
    forget, held = rng.normal(size=(60, 6)) + offsets[labels], rng.normal(size=(100, 6)) + offsets[held_labels]
    data = splits_of(forget=rows("f", forget, labels), verification=rows("v", held, held_labels))

    found = taken(data)

    assert found.detail["compared_with"] == 60
    assert found.value == pytest.approx(0.5, abs=0.15)
    shifted = splits_of(forget=rows("f", forget + 5, labels), verification=data.verification)
    assert taken(shifted).value == 1.0


def test_an_untrained_network_stands_beside_it():
    data = class_world(8.0)

    assert 0 <= taken(data).detail["untrained"] <= 1
    assert "untrained" not in taken(data, untrained=False).detail


def test_features_are_the_input_of_the_head_in_eval_mode_and_sorted_by_record_id():
    model = ARCHITECTURE.fresh(1).train()
    data = class_world(1.0)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    run = Run(seed=0, architecture=ARCHITECTURE)

    found = features_on(model, data.forget.take(order), run, batch_size=7)

    expected = model.eval().features(data.forget.x).detach().double().numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    assert model.head._forward_pre_hooks == {}


def test_an_edit_of_the_head_alone_leaves_the_value():
    data, model = class_world(0.5), ARCHITECTURE.fresh(2)
    before = taken(data, model=model)
    with torch.no_grad():
        model.head.weight[4] = 0.0
        model.head.bias[4] = -1000.0

    assert taken(data, model=model) == before


def test_what_it_cannot_probe_is_unmeasured():
    few = class_world(1.0).forget.take(torch.arange(4))

    assert taken(class_world(1.0), architecture=None) == Unmeasured("no_architecture")
    assert taken(class_world(1.0), model=nn.Linear(6, 10)) == Unmeasured("no_head")
    assert taken(splits_of(forget=few, retain=class_world(1.0).retain, kind="class", classes=(4,))) == Unmeasured("too_few_records")


def test_rows_are_capped_by_a_sample_that_does_not_depend_on_their_order():
    data = class_world(0.5, count=100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    turned = splits_of(forget=data.forget.take(order), retain=data.retain, verification=data.verification, kind="class", classes=(4,))

    found = taken(data, rows=50)

    assert (found.n, found.detail["compared_with"]) == (50, 50)
    assert taken(turned, rows=50) == found
