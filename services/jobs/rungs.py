"""What the way down a ladder depends on beside the verdict: the time that is left, and whether a method can be made gentler."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from services.catalogue import service as catalogue
from services.catalogue.gentler import gentler
from services.jobs import repository
from services.jobs.repository import Work
from services.requests.estimates import seconds_of, trainings

RETRAIN = "retrain"


def no_retrain(work: Work) -> str | None:
    """Return why the ladder cannot end in a retrain, as a key of the verdict's words: `no_data`, `no_recipe` or `data_in_part`; None where it can."""
    if work.zero_shot:
        return "no_data"
    if work.base is None or work.base.recipe is None:
        return "no_recipe"
    held = (work.job.choice or {}).get("held")
    return "data_in_part" if held is not None and "retain" not in held else None


def too_late(session: Session, work: Work, names: Collection[str]) -> dict[str, str]:
    """Return of the rungs `names` those that could not end, by the database's clock, before retraining has to begin, each with its reason.

    Retraining is never among them, and nothing is where no retraining waits at the end, or no date is due.
    """
    tried = [name for name in names if name != RETRAIN]
    if no_retrain(work) is not None or not tried or work.job.due_at is None:
        return {}
    references = 0 if work.policy is None else trainings(str(work.policy.verification.get("reference", "retrained")), work.granularity)
    classes, forget = len(work.labels), sum(target.records for target in work.targets)

    def cost_s(method: str) -> float:
        return seconds_of(session, work.model.id, method, classes=classes, forget=forget, references=references)[0]

    left = (work.job.due_at - repository.now(session)).total_seconds()
    spare = left - cost_s(RETRAIN)
    costs = {name: cost_s(name) for name in tried}
    return {
        name: f"it takes about {cost:.0f} s, and {max(spare, 0.0):.0f} s are left before retraining has to begin"
        for name, cost in costs.items()
        if cost > spare
    }


def softer(session: Session, work: Work, codes: Collection[str]) -> dict[str, object] | None:
    """Return the parameters for a second attempt of the job's method after one that failed by `utility` alone; None where it has no gentler form."""
    if set(codes) != {"utility"} or work.job.method is None:
        return None
    entry = catalogue.entry(session, "method", work.job.method)
    factors = entry.facts.get("gentler") if entry is not None else None
    return gentler(work.job.params, factors, entry.schema) if entry is not None and factors else None
