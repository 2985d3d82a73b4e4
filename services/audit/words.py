"""The words of a report for readers who are no engineers. They say what was tested and what was seen, and claim no more."""

from collections.abc import Mapping

VERDICTS: Mapping[str | None, str] = {"passed": "Passed", "failed": "Failed", "inconclusive": "Inconclusive", None: "No model was changed"}

KINDS: Mapping[str | None, str] = {
    "subject": "the records of one person",
    "records": "a list of records",
    "class_labels": "every record of a class",
    "target_range": "every record whose value lies in a range",
    "entity": "the records that name an entity",
    "manifest": "a list of records in a file",
}

IDENTITY: Mapping[str | None, str] = {
    "asserted_by_controller": "the controller says who asked; this service did not check it",
    "one_time_code": "by a one-time code",
    "external": "by an outside identity service",
}

GUARANTEES: Mapping[str | None, tuple[str, str]] = {
    "exact": (
        "exact",
        "The published weights were computed by a run that did not read the listed records. The record of that run says so; tests do not decide.",
    ),
    "certified": (
        "certified",
        "A theorem bounds how far the published weights can be told from those of a retrained model, under the assumptions of the method.",
    ),
    "approximate": (
        "approximate",
        "The published weights were edited. The claim is only that, in the tests listed, the model behaves like one that never saw the records.",
    ),
    "suppression": (
        "suppression",
        "The outputs no longer show what was to be forgotten. What the model holds inside may still show it.",
    ),
}

STATES: Mapping[str | None, str] = {
    "inside": "within the limits",
    "outside": "outside the limits",
    "undecided": "cannot be told with this many records",
    "insensitive": "within the limits, and does not tell the original apart: it shows nothing",
    "info": "for information",
    "null": "no number",
}

SPLITS: Mapping[str, str] = {
    "forget_train": "forgotten records",
    "forget_test": "held-out records of the forgotten kind",
    "retain_train": "remaining training records",
    "retain_test": "held-out records of the remaining kinds",
    "test": "all held-out records",
    "attack": "records never trained on",
}

TESTS: Mapping[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "how often the model is right"),
    "near_duplicate_accuracy": ("Accuracy on near-duplicates", "how often it is right about records that differ from these by a little noise"),
    "mia_v2": (
        "Membership attack",
        "how well an observer who sees losses tells these records from like ones that were never trained on; 0.5 is guessing",
    ),
    "mia_legacy": ("Membership attack, older form", "the share of the forgotten records that a fitted attack calls training records"),
    "regression_mia": (
        "Membership attack",
        "how well an observer who sees errors tells these records from like ones never trained on; 0.5 is guessing",
    ),
    "gan_attack": ("Membership attack", "how well the discriminator tells these images from like ones never trained on; 0.5 is guessing"),
    "streisand": ("Over-forgetting", "whether the forgotten records are treated as stranger than records never seen; 0.5 is alike"),
    "zrf": ("Likeness to an untrained model", "how like its answers are to those of a model that knows nothing; high is not good in itself"),
    "js_divergence": ("Distance of the answers", "how far its answers are from the retrained model's; 0 is alike"),
    "activation_distance": ("Distance of the probabilities", "how far its probabilities are from the retrained model's; 0 is alike"),
    "prediction_distribution": ("Spread of the answers", "how evenly the forgotten records go to the remaining classes; 1 is evenly"),
    "relearn_time": ("Relearning time", "training steps until the forgotten records are known again"),
    "ain": ("Relearning beside retrained", "relearning time over that of the retrained model; far below 1 something is left"),
    "linear_probe_auc": ("Linear probe", "how well a simple reader of the inner features finds the forgotten class"),
    "mean_absolute_error": ("Mean absolute error", "how far its predictions are off"),
    "mean_squared_error": ("Mean squared error", "how far its predictions are off, large errors weighing more"),
    "wasserstein": ("Distance of the predictions", "how far its predictions are from the retrained model's, as distributions"),
    "class_rate": ("Rate of the forgotten class", "the share of its images that a classifier calls the forgotten class"),
    "feature_fid": ("Image quality", "distance between its images and real ones in the features of a classifier; lower is better"),
    "exact_match": ("Exact answers", "the share of answers that are word for word those of the records"),
    "rouge_l": ("Overlap of answers", "the longest common part of its answers and those of the records"),
    "appearance_rate": ("Appearance of the name", "the share of answers that contain the name"),
    "answer_probability": ("Likelihood of the answers", "how likely it finds the records' answers, word by word"),
    "model_utility": ("What it still knows", "one number for likelihood, overlap and truth of the answers that were kept; one zero makes it zero"),
    "min_k": (
        "Membership attack",
        "how well the least likely words of an answer tell these records from ones never trained on; 0.5 is guessing, far below it a trace as well",
    ),
    "privleak": ("Privacy leak", "that attack beside the same on the retrained model, in per cent; 0 is alike"),
    "truth_ratio": ("Truth ratio", "how likely wrong answers are beside the right one; 1 is as likely"),
    "truth_ratio_distance": (
        "Distance of the truth ratios",
        "how far they are from the retrained model's; beside the distance of two retrained models",
    ),
    "forget_quality": (
        "Forget quality",
        "the chance that truth ratios of it and of the retrained model are of one distribution; few records show little",
    ),
    "quantised_forgetting": ("Likelihood in four bits", "how likely it finds these answers when its weights are rounded to four bits"),
}
"""What each test is called and what it says; others go by their own names."""

PERCENT = frozenset({"accuracy", "near_duplicate_accuracy", "mia_legacy", "class_rate", "exact_match", "appearance_rate"})
"""Tests whose numbers are shares."""

REASONS: Mapping[str, str] = {
    "fewer_than_16_forgotten_records": "fewer than 16 forgotten records stand behind it, so that it could tell of single people",
    "not_run": "the plan does not ask for it",
    "too_few_nonmembers": "too few records that were never trained on are held",
    "no_reading_on_both_sides": "no test was taken on both forgotten and remaining records",
    "no_retrained_reference": "there is no retrained model",
    "malformed": "what the worker drew could not be read",
    "could_not_be_loaded": "its code could not be loaded",
}

FIGURES: Mapping[str, str] = {
    "retain_forget": "What was kept, and what is still shown of the forgotten records",
    "loss_histogram": "Loss of the forgotten records beside records never trained on",
    "roc": "What an attack on the loss finds",
    "prediction_distribution": "Where the forgotten class goes",
    "relearn_curve": "How fast the forgotten records are learned again",
    "prediction_density": "Predictions for the forgotten records",
    "error_histogram": "Errors on the forgotten records beside records never trained on",
    "answer_bars": "What the model answers",
}
"""Titles of figures that were left out; a figure that was drawn brings its own."""

POWER = (
    "Before the run it was simulated what the tests can tell: a retrained model would pass them all with {retrained_passes}, the original would fail "
    "with {original_fails}."
)
WIDENED = "So that a retrained model passes, the plan widened these limits before the run: {limits}."
NOBODY_COULD = "By its own account nobody could pass this plan, so that only an exact method could be published under it."
POWER_UNKNOWN = "What the tests can tell was not simulated before the run: {reason}."
"""What a page says of the power of a plan."""

LOOKS = (
    "These records were looked at {looks} times, once for each attempt that was tested; what counts as outside is therefore held to one part in "
    "{looks} of the usual chance of error."
)
"""What a page says where an earlier attempt was tested on the same records."""

DRIFT = "Since the last exact training of {model} ({since}) {removals} published on it; left until the next has to be a retraining: {left}."
DRIFT_PARTS: Mapping[str, str] = {
    "removals": "removals",
    "js": "divergence of the answers, in bits,",
    "utility_drop": "accuracy lost",
    "share": "share of the records",
    "gradient_norm": "gradient norm",
}
"""What a page says of how far edits have moved a model."""

UNSEEN = "compared with models that had not seen the record, not with a retrain"
"""What a report says of a reference of models on random halves of the records."""
HALVES = (
    "The readings are {unseen}: {models} models were trained by the same recipe, each on a random half of the records, and each reading rests on those "
    "that had not seen the record. They learned from fewer records than the new model did; what it should keep is held against the original alone."
)
IN_STEAD = {
    "class": "the request forgets a class, of which every random half of the records holds a part",
    "range": "the request forgets a range of targets, of which every random half of the records holds a part",
    "entity": "the request forgets an entity, of which every random half of the records may speak",
    "person": "the request forgets a person with several records, of which every random half of the records may hold some",
    "task": "the model's task has no classes",
    "exact": "the method is exact, and what it may cost in use is what retraining costs",
}
"""Why retrained models stand in the stead of models on random halves."""


def in_stead(told: Mapping[str, str]) -> str:
    """Return why readings are held against retrained models although the policy asks for models on random halves of the records."""
    return f"The policy asks for models that had not seen the record; retrained models took their place, since {IN_STEAD[told['why']]}."


REFERENCES_FROM: Mapping[str, str] = {"trained": "reference models, trained now,", "cache": "reference models, kept from before,"}
"""Where the models that the readings are held against came from."""

METHODS: Mapping[str, str] = {"retrain": "retraining without the records"}

DISPOSITIONS: Mapping[str, str] = {
    "quarantined": "in quarantine: it is no longer served",
    "destroyed": "destroyed",
    "retired": "superseded: nothing learns from it any more",
    "kept": "kept until it expires; it was made without the records",
}


def plainly(name: str) -> str:
    """Return a name of a component or a code as words."""
    return name.replace("_", " ")


def reason(code: str) -> str:
    """Return why something is missing, as words."""
    known = REASONS.get(code)
    if known is not None:
        return known
    return "an error of the figure's own" if code.startswith("could_not_be_drawn") else plainly(code)


def title_of(name: str) -> str:
    """Return what a test is called."""
    return TESTS[name][0] if name in TESTS else plainly(name).capitalize()


def meaning_of(name: str) -> str:
    """Return what a test's number says."""
    return TESTS[name][1] if name in TESTS else ""
