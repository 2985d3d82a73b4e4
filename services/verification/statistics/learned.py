"""Learned attacks: cross-fitted ones, in which no row is scored by a classifier that was fitted on it, and those of published code."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from services.verification.statistics.intervals import Interval, percentile_interval
from services.verification.statistics.scores import Floats

SPLITS = 10
RESAMPLES = 999


def cross_fitted_scores(members: Floats, non_members: Floats, weights: Floats, *, rng: np.random.Generator, folds: int = 5) -> tuple[Floats, Floats]:
    """Return out-of-fold log-odds of membership, (m,) and (n,), of features members (m, d) and non_members (n, d).

    `weights` (n,) are the non-members'; the sides weigh the same in each fit. Cross-fitting widens the null: with identical sides the AUC of
    these scores varies 1.35 to 1.6 times as much as that of a fixed score, so it is no gate.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  a second that every runner would wait
    from sklearn.model_selection import StratifiedKFold  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

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


def fitted_scores(members: Floats, non_members: Floats, judged: Sequence[Floats]) -> list[Floats]:
    """Return the log-odds of membership of each of `judged` (k, d), from a logistic regression on members (m, d) and non-members (n, d) of equal weight."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  a second that every runner would wait
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", solver="newton-cholesky"))
    classifier.fit(np.concatenate([members, non_members]), np.concatenate([np.ones(len(members)), np.zeros(len(non_members))]))
    return [classifier.decision_function(features) if len(features) else np.zeros(0) for features in judged]


def called_members(members: Floats, non_members: Floats, targets: Floats, *, attacker: Literal["logistic_balanced", "svc"]) -> int:
    """Return how many of `targets` (t,) an attacker fitted on the entropies of `members` (m,) and `non_members` (n,) calls members."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  a second that every runner would wait
    from sklearn.svm import SVC  # noqa: PLC0415

    features = np.concatenate([members, non_members])[:, None]
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    classifier = SVC(C=3, gamma="auto", kernel="rbf") if attacker == "svc" else LogisticRegression(class_weight="balanced", solver="lbfgs")
    classifier.fit(features, labels)
    return int(np.sum(classifier.predict(targets[:, None]) == 1))


def balanced(first: Floats, second: Floats, *, rows: int, seed: int) -> tuple[Floats, Floats]:
    """Return as many rows of `first` (n, ...) as of `second` (m, ...): the smaller number, at most `rows`, drawn with `seed`, order kept."""
    rng = np.random.default_rng(seed)
    count = min(len(first), len(second), rows)
    chosen = [np.sort(rng.permutation(len(side))[:count]) for side in (first, second)]
    return first[chosen[0]], second[chosen[1]]


def linear_attack(members: Floats, non_members: Floats, *, seed: int) -> Callable[[Floats], int]:
    """Return a function that counts how many vectors (t, d) a linear support vector machine fitted on (m, d) and (n, d) calls non-members."""
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415  a second that every runner would wait
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
    from sklearn.svm import SVC  # noqa: PLC0415

    classifier = make_pipeline(StandardScaler(), SVC(kernel="linear", random_state=seed))
    classifier.fit(np.concatenate([members, non_members]), np.concatenate([np.ones(len(members)), np.zeros(len(non_members))]))

    def count(vectors: Floats) -> int:
        return int(np.sum(classifier.predict(vectors) == 0))

    return count


class SplitCounts(NamedTuple):
    """How often each row was in the tested part of a split, and how often it was then classified right, (rows,)."""

    times: Floats
    right: Floats

    def accuracy(self, counts: Floats | None = None) -> Floats:
        """Return the mean accuracy over the splits; `counts` (b, rows) resamples the rows."""
        drawn = np.ones((1, len(self.times))) if counts is None else counts
        times = drawn @ self.times
        return np.divide(drawn @ self.right, times, out=np.full(len(drawn), 0.5), where=times > 0)


def shuffled_accuracy(members: Floats, non_members: Floats, *, seed: int, splits: int = SPLITS) -> SplitCounts:
    """Return how a logistic regression on one number tells members (n,) from as many non-members (n,), fitted on 90 %, tested on the rest.

    The tested part has as many of one side as of the other, so that equal numbers throughout give exactly one half.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  a second that every runner would wait
    from sklearn.model_selection import StratifiedShuffleSplit  # noqa: PLC0415

    values = np.nan_to_num(np.concatenate([members, non_members]), posinf=1e6, neginf=-1e6)[:, None]
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    splitter = StratifiedShuffleSplit(splits, test_size=2 * int(np.ceil(0.1 * len(members))), random_state=seed)
    found = SplitCounts(np.zeros(len(labels)), np.zeros(len(labels)))
    for fitted, held in splitter.split(values, labels):
        called = LogisticRegression(solver="newton-cg").fit(values[fitted], labels[fitted]).predict(values[held])
        found.times[held] += 1
        found.right[held] += called == labels[held]
    return found


def resampled_rows(rows: int, *, rng: np.random.Generator, resamples: int = RESAMPLES) -> Floats:
    """Return how often each of `rows` is drawn in each bootstrap sample, (resamples, rows)."""
    return rng.multinomial(rows, np.full(rows, 1.0 / rows), size=resamples).astype(np.float64)


def advantage_interval(tested: SplitCounts, *, level: float, rng: np.random.Generator) -> Interval:
    """Return the interval of |.5 - accuracy|: the bootstrap interval of the accuracy over rows, given the fits, folded at one half."""
    drawn = tested.accuracy(resampled_rows(len(tested.times), rng=rng))
    low, high = percentile_interval(drawn, level=level, around=float(tested.accuracy()[0]))
    ends = (abs(0.5 - low), abs(0.5 - high))
    return Interval(0.0 if low <= 0.5 <= high else min(ends), max(ends))
