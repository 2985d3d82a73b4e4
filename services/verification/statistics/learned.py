"""A learned attack in which no row is scored by a classifier that was fitted on it."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.verification.statistics.scores import Floats


def cross_fitted_scores(members: Floats, non_members: Floats, weights: Floats, *, rng: np.random.Generator, folds: int = 5) -> tuple[Floats, Floats]:
    """Return out-of-fold log-odds of membership, (m,) and (n,), of features members (m, d) and non_members (n, d).

    `weights` (n,) are the non-members'; the sides weigh the same in each fit. Cross-fitting widens the null: with identical sides the AUC of
    these scores varies 1.35 to 1.6 times as much as that of a fixed score, so it is no gate.
    """
    features = np.nan_to_num(np.concatenate([members, non_members]), posinf=1e6, neginf=-1e6)
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    sample_weights = np.concatenate([np.full(len(members), 1.0 / len(members)), weights / weights.sum()]) * len(labels)
    scores = np.zeros(len(labels))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
    for fitted, held in splitter.split(features, labels):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
        classifier.fit(features[fitted], labels[fitted], logisticregression__sample_weight=sample_weights[fitted])
        scores[held] = classifier.decision_function(features[held])
    return scores[: len(members)], scores[len(members) :]
