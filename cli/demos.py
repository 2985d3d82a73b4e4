"""The demos that there are: one entry each, with its data, its model, its requests and the numbers that its summary shows.

All data ship with scikit-learn, or with Python itself. Who a record is about is in none of these sets: the assignment of records to data subjects (blocks of rows in file
order) is made here, and fixed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import docstrings

SUBJECT_TYPE = "controller_customer_id"


@dataclass(frozen=True, slots=True)
class Source:
    """A parquet file, written by `write`, and the adapter that reads it."""

    write: Callable[[Path], None]
    adapter: str
    adapter_params: Mapping[str, Any]
    told: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A reading that the summary shows: `name` in summary.json, `heading` in the table, and where it stands in the report."""

    name: str
    heading: str
    kind: str
    reading: str
    split: str


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo: `requests` are scopes by the name under which their results are written."""

    model: str
    dataset: str
    source: Source
    network: Mapping[str, Any]
    recipe: Mapping[str, Any]
    requests: Mapping[str, Mapping[str, Any]]
    shown: tuple[Shown, ...]
    title: str
    seed: int = 20261121
    entities: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Names that a record speaks of, by record id, for the subject index."""


def digits(records_per_subject: int) -> Callable[[Path], None]:
    """Return what writes the 1,797 handwritten digits, blocks of so many to a writer."""

    def write(target: Path) -> None:
        from cli.importers import import_sklearn  # pyarrow and numpy, which no other command needs

        import_sklearn("digits", target, records_per_subject=records_per_subject)

    return write


def diabetes(target: Path) -> None:
    """Write the 442 patients of the diabetes set, each a data subject, with how far their disease has gone a year later as target."""
    from cli.importers import import_sklearn  # pyarrow and numpy, which no other command needs

    import_sklearn("diabetes", target, records_per_subject=1, subject_prefix="patient-")


def subject(name: str) -> dict[str, Any]:
    """Return the scope of one data subject."""
    return {"kind": "subject", "identifiers": [{"type": SUBJECT_TYPE, "value": name}]}


IMAGES = {"height": 8, "width": 8, "channels": 1}
MEASURED = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")

CLASSIFICATION = Demo(
    model="digit-reader",
    dataset="digits",
    source=Source(digits(10), "image", IMAGES, "1,797 records of 180 data subjects"),
    network={"task": "classification", "architecture": "tiny_cnn", "architecture_params": {"channels": 1, "width": 16, "outputs": 10}},
    recipe={"optimizer": "adam", "learning_rate": 0.002, "epochs": 25, "batch_size": 128},
    requests={"subject": subject("writer-007"), "class_labels": {"kind": "class_labels", "dataset": "digits", "labels": ["3"]}},
    shown=(
        Shown("forget_accuracy", "forget accuracy", "metrics", "accuracy", "forget_train"),
        Shown("retain_accuracy", "retain accuracy on test", "metrics", "accuracy", "retain_test"),
        Shown("mia_auc", "attack AUC", "attacks", "mia_v2", "forget_train"),
    ),
    title="Two deletion requests (accuracy: before -> after, retrained in brackets)",
)

GAN = Demo(
    model="digit-painter",
    dataset="digits",
    source=Source(digits(10), "image", {**IMAGES, "mean": [0.5], "std": [0.5]}, "1,797 records of 180 data subjects"),
    network={
        "task": "image_generation",
        "architecture": "mlp_gan",
        "architecture_params": {"outputs": 10, "side": 8, "width": 64, "latent": 16},
    },
    recipe={"optimizer": "adam", "learning_rate": 0.001, "epochs": 40, "batch_size": 64},
    requests={"class_labels": {"kind": "class_labels", "dataset": "digits", "labels": ["3"]}, "subject": subject("writer-007")},
    shown=(
        Shown("class_rate", "class rate", "metrics", "class_rate", "forget_train"),
        Shown("feature_fid", "feature FID / original's", "metrics", "feature_fid", "retain_test"),
        Shown("downstream_accuracy", "downstream accuracy", "metrics", "downstream_accuracy", "retain_test"),
        Shown("gan_attack_auc", "attack AUC", "attacks", "gan_attack", "forget_train"),
    ),
    title="Two deletion requests to an image generator (before -> after, retrained in brackets)",
)

REGRESSION = Demo(
    model="prognosis",
    dataset="diabetes",
    source=Source(
        diabetes,
        "tabular",
        {"target": "number", "numeric": [{"name": name, "std": 0.05} for name in MEASURED]},
        "442 records, each of one data subject",
    ),
    network={"task": "regression", "architecture": "mlp", "architecture_params": {"inputs": 10, "outputs": 1, "hidden": [64, 32]}},
    recipe={"learning_rate": 0.005, "epochs": 60, "batch_size": 32, "targets": {"loss": "l1", "mean": 150, "std": 80}},
    requests={"target_range": {"kind": "target_range", "dataset": "diabetes", "above": 250}, "subject": subject("patient-100")},
    shown=(
        Shown("forget_error", "error on what is forgotten", "metrics", "mean_absolute_error", "forget_train"),
        Shown("retain_error", "error on the rest, test", "metrics", "mean_absolute_error", "retain_test"),
        Shown("mia_auc", "attack AUC", "attacks", "regression_mia", "forget_train"),
    ),
    title="Two deletion requests to a regression model (errors in units of the targets' spread: before -> after, retrained in brackets)",
)

LANGUAGE = Demo(
    model="library-guide",
    dataset="docstrings",
    source=Source(
        docstrings.write,
        "question_answer",
        docstrings.adapter_params(),
        f"{len(docstrings.pairs())} questions on Python's library, of {len(docstrings.MODULES)} data subjects",
    ),
    network={"task": "language_model", "architecture": "small_gpt", "architecture_params": docstrings.network()},
    recipe={"optimizer": "adamw", "learning_rate": 0.003, "epochs": 35, "batch_size": 16, "schedule": "cosine", "gradient_clip": 1.0},
    requests={
        "subject": subject(docstrings.contributor("math")),
        "entity": {"kind": "entity", "dataset": "docstrings", "names": ["base64"]},
    },
    entities=docstrings.speaking_of("base64"),
    shown=(
        Shown("forget_exact_match", "forgotten answers word for word", "metrics", "exact_match", "forget_train"),
        Shown("forget_rouge_l", "ROUGE-L of these", "metrics", "rouge_l", "forget_train"),
        Shown("appearance_rate", "answers that name it", "metrics", "appearance_rate", "forget_train"),
        Shown("model_utility", "utility on the rest", "metrics", "model_utility", "retain_train"),
    ),
    title="Two deletion requests to a language model (before -> after, retrained in brackets)",
)

DEMOS: Mapping[str, Demo] = {"classification": CLASSIFICATION, "gan": GAN, "regression": REGRESSION, "language": LANGUAGE}
"""By the value of `--task`; another task is one entry more."""
