"""The documents of a policy: which methods are tried, what is measured, which limits send a request to a person.

A policy is immutable; a change is a new version. The columns of table `policy` hold the parts of `PolicyBody` as they are dumped here.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.db.tables import Policy
from services.errors import InvalidInput
from services.tenants import repository

RequestKind = Literal["class", "records", "concept"]
"""`concept`: records that speak of an entity. What is for `records` is for these too."""
OwnTask = Literal["regression", "forecasting", "image_generation", "language_model"]
"""Tasks with readings of their own."""

BOTH: tuple[RequestKind, ...] = ("class", "records")


class Document(BaseModel):
    """A closed, frozen part of a policy."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Rung(Document):
    """One method to try, with parameters of its own schema; skipped for requests of another granularity, and for models of tasks not in `tasks`.

    Without `tasks` it is for every task that the method serves.
    """

    method: str
    granularities: tuple[RequestKind, ...] = BOTH
    tasks: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)


class ReadingSpec(Document):
    """One number to measure. It gates only if `gate`; a `band` is the reference's value plus and minus `epsilon`.

    `min_records` is how many records must stand behind the number for it to gate; with fewer it is printed as information. `absolute` holds the
    number itself against `epsilon`, with no reference: only for a `max` or `min`. `requests` are the kinds of request that it is taken for.
    """

    kind: Literal["metric", "attack"]
    name: str
    split: Literal["forget_train", "forget_test", "retain_train", "retain_test", "test"]
    direction: Literal["band", "min", "max", "info"] = "info"
    epsilon: float | None = Field(default=None, ge=0, le=1)
    gate: bool = False
    absolute: bool = False
    min_records: int = Field(default=0, ge=0)
    requests: tuple[RequestKind, ...] = Field(default=BOTH, min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def gates_are_bounded(self) -> "ReadingSpec":
        """Refuse a gate without a bound: it could not fail."""
        if self.gate and (self.direction == "info" or self.epsilon is None):
            raise ValueError(f"reading {self.name} on {self.split} gates, so it needs a direction and an epsilon")
        if self.absolute and self.direction not in {"max", "min"}:
            raise ValueError(f"reading {self.name} on {self.split} is held against a number, so it needs a direction max or min")
        return self


class Utility(Document):
    """How much accuracy on the retained classes may be lost, in all and in the worst class, as fractions."""

    total: float = Field(default=0.01, ge=0, le=1)
    worst_class: float = Field(default=0.03, ge=0, le=1)


class WithoutData(Document):
    """How a class request is judged when nothing of the training data is held, so that no reference can be trained: by bounds of its own.

    `forget_accuracy` is the greatest accuracy on the class in the evaluation set. The losses allowed are wider than elsewhere, since a method
    that sees no data pays for it; both are choices of the policy and stand in the frozen plan.
    """

    forget_accuracy: float = Field(default=0.10, gt=0, lt=1)
    utility: Utility = Utility(total=0.10, worst_class=0.30)

    def readings(self) -> list[dict[str, Any]]:
        """Return the readings of the plan."""
        gate = ReadingSpec(
            kind="metric", name="accuracy", split="forget_test", direction="max", epsilon=self.forget_accuracy, gate=True, absolute=True
        )
        shown = (*_printed("metric", "accuracy", "retain_test", "test"), *_printed("metric", "zrf", "forget_test"))
        return [reading.model_dump(mode="json") for reading in (gate, *shown)]


class VerificationBody(Document):
    """What is measured for each kind of request, and how it is judged: intervals of `level`, failures at `alpha` after correction."""

    for_class: tuple[ReadingSpec, ...] = Field(validation_alias="class", serialization_alias="class", min_length=1)
    for_records: tuple[ReadingSpec, ...] = Field(validation_alias="records", serialization_alias="records", min_length=1)
    level: float = Field(default=0.90, gt=0.5, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    utility: Utility = Utility()
    without_data: WithoutData = WithoutData()
    reference: Literal["retrained", "shadow-band", "none"] = "retrained"
    by_task: dict[OwnTask, tuple[ReadingSpec, ...]] = Field(default_factory=dict[OwnTask, tuple[ReadingSpec, ...]])
    """Readings for tasks other than classification, in place of those of `BY_TASK`."""

    @model_validator(mode="after")
    def each_reading_once(self) -> "VerificationBody":
        """Refuse two readings of one name on one split for one kind of request: a round stores each once; and a task without any."""
        if not all(self.by_task.values()):
            raise ValueError("a task is listed without readings")
        for readings in (self.for_class, self.for_records, *self.by_task.values()):
            for kind in get_args(RequestKind):
                taken = [(reading.name, reading.split) for reading in readings if taken_for(reading.requests, kind)]
                if len(set(taken)) != len(taken):
                    raise ValueError("a reading is listed twice on one split")
        return self


class Drift(Document):
    """How far edits may move a model from its last exact training before the next removal is a retraining. None is no cap.

    `removals` counts them; the others are sums over them: `js` in bits between parent and child on held-out records, `utility_drop` in accuracy on retained
    classes, `share` of the records. A sum that reaches its cap is spent.
    """

    removals: int | None = Field(default=100, ge=1)
    js: float | None = Field(default=0.5, gt=0)
    utility_drop: float | None = Field(default=0.05, gt=0)
    share: float | None = Field(default=0.25, gt=0)


class Limits(Document):
    """Shares above which a request goes to review: of all records, and of one class. None is no cap. `drift` bounds what edits may add up to."""

    records_share: float | None = Field(default=0.01, gt=0, le=1)
    class_share: float | None = Field(default=0.05, gt=0, le=1)
    drift: Drift = Drift()


class Flags(Document):
    """Where a person is asked, and what becomes of superseded versions (`now`, `after:<days>`, `never`)."""

    require_review: bool = False
    require_release: bool = False
    four_eyes: bool = False
    purge_superseded: str = Field(default="after:30", pattern=r"^(now|never|after:[1-9][0-9]{0,3})$")
    on_inconclusive: Literal["escalate", "approve"] = "escalate"

    def purge_after_days(self) -> int | None:
        """Return after how many days a superseded version is destroyed; None is never."""
        if self.purge_superseded == "never":
            return None
        return 0 if self.purge_superseded == "now" else int(self.purge_superseded.removeprefix("after:"))


class Retention(Document):
    """How long things are kept, in days. Requests and reports: 24 months at least (11 CCR 7101)."""

    identifiers_days: int = Field(default=30, ge=0)
    requests_days: int = Field(default=731, ge=731)
    candidates_days: int = Field(default=7, ge=0)


class PolicyBody(Document):
    """A whole policy."""

    regulation: Literal["gdpr", "ccpa", "policy"]
    ladder: tuple[Rung, ...] = Field(min_length=1)
    verification: VerificationBody
    limits: Limits = Limits()
    flags: Flags = Flags()
    retention: Retention = Retention()
    batch_window_s: int = Field(default=900, ge=0)
    min_subjects: int = Field(default=1, ge=1)
    max_batch: int = Field(default=256, ge=1, le=10_000)

    @model_validator(mode="after")
    def exact_at_the_end(self) -> "PolicyBody":
        """Refuse a ladder that does not end in retraining: only that cannot be told from itself."""
        last = self.ladder[-1]
        if last.method != "retrain" or set(last.granularities) != set(BOTH) or last.tasks:
            raise ValueError("the last rung is retrain, for every granularity and task")
        return self

    def columns(self) -> dict[str, Any]:
        """Return the columns of table `policy` that hold this body."""
        parts = self.model_dump(mode="json", by_alias=True)
        window = timedelta(seconds=parts.pop("batch_window_s"))
        return {**parts, "batch_window": window}


def body_of(row: Policy) -> PolicyBody:
    """Return the documents of a stored policy."""
    return PolicyBody.model_validate(
        {
            "regulation": row.regulation,
            "ladder": row.ladder,
            "verification": row.verification,
            "limits": row.limits,
            "flags": row.flags,
            "retention": row.retention,
            "batch_window_s": int(row.batch_window.total_seconds()),
            "min_subjects": row.min_subjects,
            "max_batch": row.max_batch,
        }
    )


def drift_caps(limits: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the caps of a stored policy's `limits`; one from before there were any has the default's."""
    return Drift.model_validate(limits.get("drift") or {}).model_dump()


def current_policy(session: Session, tenant_id: UUID, key: str) -> Policy:
    """Return the newest version of a policy. Raises InvalidInput where the tenant has none of that name."""
    row = repository.newest_policy(session, tenant_id, key)
    if row is None:
        raise InvalidInput(detail="there is no policy of that name")
    return row


def write_policy(session: Session, *, tenant_id: UUID, policy_id: UUID, key: str, body: PolicyBody) -> int:
    """Insert the next version of a policy and return its number. A race of two writers is a unique violation."""
    held = repository.newest_policy(session, tenant_id, key)
    version = 1 if held is None else held.version + 1
    repository.insert_policy(session, {"id": policy_id, "tenant_id": tenant_id, "key": key, "version": version, **body.columns()})
    return version


def seed_policies(session: Session, *, tenant_id: UUID, clock: Clock) -> list[str]:
    """Write the policies that every tenant starts with, where they are missing; return the keys of those written."""
    missing = [key for key in SEEDS if repository.newest_policy(session, tenant_id, key) is None]
    for key in missing:
        policy_id = uuid7(clock)
        write_policy(session, tenant_id=tenant_id, policy_id=policy_id, key=key, body=SEEDS[key])
        audit.record(session, tenant_id=tenant_id, object_id=policy_id, type="policy.created", body={"key": key, "version": 1, "by": "bootstrap"})
    return missing


def _gate(
    kind: Literal["metric", "attack"],
    name: str,
    split: Any,
    epsilon: float,
    *,
    direction: Literal["band", "min", "max"] = "band",
    min_records: int = 0,
    requests: tuple[RequestKind, ...] = BOTH,
    **parameters: Any,
) -> ReadingSpec:
    return ReadingSpec(
        kind=kind, name=name, split=split, direction=direction, epsilon=epsilon, gate=True, min_records=min_records, requests=requests,
        parameters=parameters,
    )  # fmt: skip


def _printed(kind: Literal["metric", "attack"], name: str, *splits: Any) -> tuple[ReadingSpec, ...]:
    return tuple(ReadingSpec(kind=kind, name=name, split=split) for split in splits)


# Of real-valued targets the readings are shares of their spread (1: as far off as the mean), so that one width serves targets of any unit.
_SPREAD: dict[str, Any] = {"scale": "spread"}


def _spread(name: str, *splits: Any) -> tuple[ReadingSpec, ...]:
    return tuple(ReadingSpec(kind="metric", name=name, split=split, parameters=_SPREAD) for split in splits)


_REAL_VALUED = (
    _gate("metric", "mean_absolute_error", "forget_train", 0.10, **_SPREAD),
    _gate("attack", "regression_mia", "forget_train", 0.05),
    ReadingSpec(
        kind="metric", name="mean_absolute_error", split="retain_test", direction="max", epsilon=0.05, gate=True, parameters=_SPREAD
    ),
    *_spread("mean_absolute_error", "forget_test", "retain_train", "test"),
    *_spread("mean_squared_error", "forget_train", "retain_test"),
    *_spread("wasserstein", "forget_train"),
    *_printed("metric", "relative_prediction_difference", "forget_train"),
)  # fmt: skip
_FORECAST = (*_REAL_VALUED, *_spread("quantile_loss", "forget_train", "retain_test"))

# How often a retrained generator shows the class is the error of the classifier that looks on, so there is no floor under it; the attack is two-sided.
# An area of few held-out images of one class is wider than its band, so of a class it gates from 500 records on.
_SHOWN = _gate("metric", "class_rate", "forget_train", 0.03, direction="max", requests=("class",), samples=4000)
_GENERATED = (
    _SHOWN,
    _gate("metric", "item_nn_distance", "forget_train", 0.10, requests=("records",)),
    _gate("attack", "gan_attack", "forget_train", 0.10, min_records=500, requests=("class",)),
    _gate("attack", "gan_attack", "forget_train", 0.10, requests=("records",)),
    _gate("metric", "feature_fid", "retain_test", 0.30, direction="max", scale="original"),
    _gate("metric", "downstream_accuracy", "retain_test", 0.01, direction="min", records=10_000),
    *_printed("metric", "feature_kid", "retain_test"),
    *_printed("attack", "gan_attack", "retain_train"),
)
# The likelihood and the wording of answers are held against the retrained model's on the same records, so that twenty of them can tell. A share of records is
# known to .05 from sixty of them on, and to .10 from thirty: of fewer that are all alike the interval is wider. The area of min-k rests on pairs of records:
# with fewer than a hundred it tells nothing. What is kept is gated by model utility. A request for an entity asks that its name is not said; how much
# of the rest of an answer is left is printed. What is kept must not become likelier than it was: that would expose others for one's sake.
_SPOKEN: dict[str, Any] = {"rows": 100, "most_tokens": 48}
_WHOLE = _gate("metric", "exact_match", "forget_train", 0.05, min_records=60)
_NAMED = _gate("metric", "appearance_rate", "forget_train", 0.10, min_records=30, requests=("concept",), **_SPOKEN)
_LANGUAGE = (
    _WHOLE,
    _gate("metric", "answer_probability", "forget_train", 0.10, requests=("records",)),
    _gate("metric", "rouge_l", "forget_train", 0.10, requests=("records",), **_SPOKEN),
    _gate("metric", "min_k", "forget_train", 0.10, min_records=100, requests=("records",)),
    _NAMED,
    *(
        ReadingSpec(kind="metric", name=name, split="forget_train", requests=("concept",), parameters=said)
        for name, said in (("answer_probability", {}), ("rouge_l", _SPOKEN), ("min_k", {}))
    ),
    _gate("metric", "model_utility", "retain_train", 0.05, direction="min", **_SPOKEN),
    _gate("metric", "answer_probability", "retain_train", 0.05, direction="max"),
    *_printed("metric", "exact_match", "retain_train"),
    *_printed("metric", "answer_probability", "test"),
    ReadingSpec(kind="metric", name="rouge_l", split="retain_train", parameters=_SPOKEN),
    *_printed("metric", "truth_ratio", "forget_train"),
    *_printed("metric", "forget_quality", "forget_train"),
    *_printed("metric", "truth_ratio_distance", "forget_train"),
    *_printed("metric", "privleak", "forget_train"),
    *_printed("metric", "quantised_forgetting", "forget_train", "retain_train"),
    ReadingSpec(
        kind="metric",
        name="relearn_time",
        split="forget_train",
        parameters={"train_data": "forget", "seeds": 3, "steps": 20, "batch_size": 8, "learning_rate": 1e-3},
    ),
)
BY_TASK: dict[OwnTask, tuple[ReadingSpec, ...]] = {
    "regression": _REAL_VALUED,
    "forecasting": _FORECAST,
    "image_generation": _GENERATED,
    "language_model": _LANGUAGE,
}
"""What is measured for tasks other than classification, where a policy does not say. What is kept is gated by readings on retained records, so they
have no utility floor: retained error, the quality of samples of what is retained, or what a language model still knows."""


def serves(kinds: Collection[str], kind: str) -> bool:
    """Say whether a method for these kinds of request serves a request of `kind`: what forgets records forgets those that speak of an entity."""
    return kind in kinds or (kind == "concept" and "records" in kinds)


def taken_for(kinds: Collection[str], kind: str) -> bool:
    """Say whether a reading for these kinds of request is taken for a request of `kind`; one that is for all is taken for an entity too."""
    return kind in kinds or (kind == "concept" and set(BOTH) <= set(kinds))


def readings_for(document: Mapping[str, Any], task: str, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the readings and the utility floor of a stored verification document for a model's task and a kind of request."""
    default = next((readings for name, readings in BY_TASK.items() if name == task), None)
    if default is None:
        return list(document.get("records" if kind == "concept" else kind, [])), document.get("utility")
    own = (document.get("by_task") or {}).get(task)
    readings = own or [reading.model_dump(mode="json") for reading in default]
    kind = "records" if kind == "concept" and task != "language_model" else kind
    return [reading for reading in readings if taken_for(reading.get("requests", BOTH), kind)], None


# Of what was kept in training a sample informs: of 54,000 records all of them take longer than any other reading.
_KEPT = (
    ReadingSpec(kind="metric", name="accuracy", split="retain_train", parameters={"rows": 10_000}),
    *_printed("metric", "accuracy", "retain_test", "test"),
)
_FORGET = (
    *_printed("metric", "zrf", "forget_train"),
    *_printed("metric", "zrf_legacy", "forget_train"),
    *_printed("metric", "activation_distance", "forget_train"),
    *_printed("metric", "prediction_distribution", "forget_train"),
    *_printed("attack", "mia_legacy", "forget_train"),
)
_JS_PRINTED = _printed("metric", "js_divergence", "forget_train")
_JS_GATE = (ReadingSpec(kind="metric", name="js_divergence", split="forget_train", direction="max", epsilon=0.05, gate=True),)
_OTHERS = _gate("attack", "mia_v2", "retain_train", 0.02, direction="max", learned=False)
"""That the attack finds the retained records no better than it did on the model before: what forgetting put on others."""
_NEAR = _gate("metric", "near_duplicate_accuracy", "forget_train", 0.05)
"""That the model is as ignorant of what is almost a forgotten record: one may be taught to answer as if retrained on the listed records alone."""
_RECORDS = (
    _gate("metric", "accuracy", "forget_train", 0.05),
    _NEAR,
    _gate("attack", "mia_v2", "forget_train", 0.05),
    _OTHERS,
    _gate("metric", "streisand", "forget_train", 0.02, min_records=500),  # with fewer its interval is wider than a band that would tell anything
    *_KEPT,
    *_FORGET,
    *_JS_PRINTED,
)
_GENERATOR_RUNGS = (
    Rung(method="cascaded_gan", tasks=("image_generation",)),
    Rung(method="fine_tune", granularities=("class",), tasks=("image_generation",)),
)
_LANGUAGE_RUNGS = (
    Rung(method="concept_poisoning_text", granularities=("concept",), tasks=("language_model",)),
    Rung(method="npo", granularities=("records",), tasks=("language_model",)),
)
_LADDER = (
    Rung(method="unsir", granularities=("class",)),
    Rung(method="bad_teacher"),
    Rung(method="blindspot", granularities=("records",)),  # for real-valued targets, which the two before it do not serve
    *_GENERATOR_RUNGS,
    *_LANGUAGE_RUNGS,
    Rung(method="retrain"),
)

GDPR_DEFAULT = PolicyBody(
    regulation="gdpr",
    ladder=_LADDER,
    verification=VerificationBody(
        for_class=(
            _gate("metric", "accuracy", "forget_train", 0.05),
            _gate("metric", "accuracy", "forget_test", 0.05, min_records=100),
            _NEAR,
            _gate("attack", "mia_v2", "forget_train", 0.05),
            _OTHERS,
            *_JS_GATE,
            *_KEPT,
            *_FORGET,
        ),
        for_records=_RECORDS,
    ),
    flags=Flags(require_review=True, four_eyes=True),
)

# Small sets: a dozen non-members a class leave the attack's interval wide, so its band is wide; every report prints the bands. There is no gate on
# the distance of the outputs, which `bad_teacher` fails by design: it answers evenly where a retrained model answers by likeness. The hundred
# retained records that are held out cannot show a loss of five points, which UNSIR's one pass of repair costs there at times, so it is not a rung.
# Small networks, trained here, take larger steps than those that the methods were published for, and few records smaller batches. NPO's force fades as
# exp(beta times an answer's fall in log-likelihood): with the published 0.1 answers of forty tokens stall at a probability near 0.1 where a retrained
# model's is below 0.01, and SimNPO's at 0 nats per token as high; so a smaller `beta`, and for SimNPO a `delta` near a retrained model's loss. The
# first look after 60 steps is one when each of some hundred retained answers has been seen four times: sooner the forgotten ones are gone and the
# retained ones are not back. Chosen on forgetting other contributors than the one that the demo asks for, not on its own request.
_STEPS: dict[str, Any] = {"lr": 1e-3, "batch_size": 8, "epochs": 100, "check_every": 60}
_SMALL_LANGUAGE_RUNGS = (
    Rung(
        method="concept_poisoning_text",
        granularities=("concept",),
        tasks=("language_model",),
        parameters={
            "lr": 5e-3,
            "batch_size": 8,
            "epochs": 15,
            "checkpoint_every": 100,  # at 50 the knee kept a model that still said the name now and then, for what it retained more
            "anchor_ratio": 4.0,
            "answer_tokens": 48,
            "lora_targets": ["q_proj", "v_proj", "up_proj", "down_proj"],
        },
    ),
    Rung(method="npo", granularities=("records",), tasks=("language_model",), parameters={**_STEPS, "beta": 0.05, "alpha": 10.0}),
    Rung(method="simnpo", granularities=("records",), tasks=("language_model",), parameters={**_STEPS, "delta": 4.0}),
)

_BY_FEW = {"epsilon": 0.15, "min_records": 0}
"""Shares of as few as seventeen answers, which no interval knows better."""
_OF_SMALL: dict[OwnTask, tuple[ReadingSpec, ...]] = {
    "language_model": tuple(one.model_copy(update=_BY_FEW) if one in (_WHOLE, _NAMED) else one for one in _LANGUAGE),
    "image_generation": tuple(one.model_copy(update={"epsilon": 0.05}) if one == _SHOWN else one for one in _GENERATED),
}
"""Two small generators that never saw a class differ by .02 in how often they show it, so .03 would turn one of seven away."""

DEMO = PolicyBody(
    regulation="gdpr",
    ladder=(
        Rung(method="bad_teacher"),
        Rung(method="blindspot", granularities=("records",)),
        *_GENERATOR_RUNGS,
        *_SMALL_LANGUAGE_RUNGS,
        Rung(method="retrain"),
    ),
    verification=VerificationBody(
        for_class=(
            _gate("metric", "accuracy", "forget_train", 0.05),
            _gate("metric", "accuracy", "forget_test", 0.05, min_records=100),
            _NEAR,
            _gate("attack", "mia_v2", "forget_train", 0.25, pool_held_out=True),
            _OTHERS,
            *_JS_PRINTED,
            *_KEPT,
            *_FORGET,
        ),
        for_records=_RECORDS,
        by_task=_OF_SMALL,
    ),
    limits=Limits(records_share=None, class_share=None, drift=Drift(js=1.0, utility_drop=0.10, share=0.5)),
    batch_window_s=0,
)

SEEDS = {"gdpr-default": GDPR_DEFAULT, "demo": DEMO}
