"""The order of a job's steps. Each is resumable: what it put out is recorded, and a later claim starts at the first that is missing.

```
unlearn     materialize -> plan -> unlearn -> evaluate -> verify -> publish
train       materialize -> train -> measure -> publish
reference   materialize -> reference
```
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.db.tables import Job
from services.errors import Cancelled, IntegrityBroken, LeaseLost, LetheError
from services.jobs import outcomes, repository
from services.jobs.messages import CANDIDATE_FILE, FIGURES_FILE, READINGS_FILE, RUN_FILE, VERDICT_FILE
from services.jobs.repository import Work
from services.jobs.steps.figures import figure_rows
from services.jobs.steps.materialize import materialize, recipe_of, write_spec
from services.jobs.steps.plan import freeze
from services.jobs.steps.publish import confirm, publish
from services.jobs.steps.reference import shadow_seed
from services.jobs.workshop import Workshop

log = structlog.get_logger()

ORDER = {
    "train": ("materialize", "train", "measure", "publish"),
    "unlearn": ("materialize", "plan", "unlearn", "evaluate", "verify", "publish"),
}


class Pipeline:
    """One claimed job, from where it stands to its end or its next state. `done` maps finished steps to their outputs."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.work = self._current()
        self.done: dict[str, Any] = dict((self.work.job.step_state or {}).get("steps", {}))
        self.plan: dict[str, Any] = {}
        self._opened = False

    def run(self) -> str:
        """Do the remaining steps and return the job's last state. Raises what a step raised; `settle` is the supervisor's to call."""
        if self.work.job.kind == "reference":
            return self._references()
        order = ORDER[self.work.job.kind]
        if self._may_publish():
            return self._publish()
        if "verify" in self.done:
            return self._hold()
        self._materialize()
        roles = self.done["materialize"]["metrics"]["roles"]
        if self.work.job.kind == "unlearn" and not roles.get("forget") and not self.work.zero_shot:
            return self._confirm()
        if self.work.job.kind == "unlearn":
            if "plan" not in self.done:
                self._start("plan")
            self.plan = freeze(self.shop, self.work, roles=roles)
        for name in order:
            if name in {"materialize", "plan", "publish"} or name in self.done:
                continue
            if self._compute(name) is not None:
                return self.state
        return self._publish()

    def _references(self) -> str:
        """Train reference models ahead and end: the next evaluation finds them in the cache. What was forgotten meanwhile is swept with its rows."""
        recipe = recipe_of(self.work)
        self._materialize()
        with self.shop.effect() as session:
            self.plan = {"seeds": {"shadows": shadow_seed(session, self.shop, self.work, recipe=recipe or {})}}
        self._open()
        self._start("reference")
        seconds = self.shop.compute.step("reference")
        self._finish("reference", {"run": self._run_facts(), "seconds": seconds})
        folder = self.shop.cache(self.work)
        if folder is not None:
            folder.sweep(spare=self.work.job.id.hex)
        with self.shop.effect() as session:
            job = self._row(session)
            repository.end_attempt(session, job, outcome="succeeded")
            state = repository.move(session, job, "finished")
        log.info("job.finished", job_id=str(self.work.job.id))
        return state

    @property
    def state(self) -> str:
        """The job's state as last read."""
        return self.work.job.state

    def _current(self) -> Work:
        """Read the job; one that starts on a parent that is no longer current is pointed at the current one first."""
        with self.shop.effect() as session:
            job = repository.job_row(session, self.shop.lease.job_id)
            current = repository.current_version_id(session, job.model_id)
            if current != job.base_version_id:
                repository.rebase(session, job, current)
            targets = repository.active_targets(session, job.id)
            repository.move_targets(session, targets, "claim")
            return repository.load(session, job.id)

    def _may_publish(self) -> bool:
        """Say whether everything before publish is done, and step to it if so."""
        if self.work.job.kind == "train":
            ready = "measure" in self.done
        else:
            with self.shop.effect() as session:
                job = repository.job_row(session, self.work.job.id)
                verdict = repository.verdict_of(session, job)
                held = _needs_release(self.work)
                ready = (verdict == "passed" and not held) or repository.released(session, job)
        if ready:
            self._move("resume_publish")
        return ready

    def _hold(self) -> str:
        """Put a judged candidate that nobody has released back to wait for a person."""
        with self.shop.effect() as session:
            job = self._row(session)
            repository.move(session, job, "evaluated")
            return outcomes.release_needed(session, job)

    def _row(self, session: Session) -> Job:
        """Return the fenced job. Raises Cancelled when it was taken back; once it publishes, that is too late."""
        job = repository.job_row(session, self.work.job.id)
        if job.cancel_requested_at is not None and job.state != "publishing":
            raise Cancelled
        return job

    def _move(self, event: str) -> None:
        with self.shop.effect() as session:
            repository.move(session, self._row(session), event)
        self.work = self.shop.work()

    def _start(self, name: str) -> None:
        log.info("step.started", job_id=str(self.work.job.id), step=name, attempt=self.work.job.attempt)
        with self.shop.effect() as session:
            job = self._row(session)
            repository.start_step(session, job, name)
            if name == "unlearn":  # by its leaf an outsider sees that the plan stood before
                facts = {"round": job.round, "attempt": job.attempt, "rung": job.rung, "plan": repository.plan_digest(session, job)}
                audit.record(session, tenant_id=job.tenant_id, object_id=job.id, type="run.started", body=facts)

    def _finish(self, name: str, output: Mapping[str, Any], *, output_digest: str | None = None, figures: Sequence[Mapping[str, Any]] = ()) -> None:
        with self.shop.effect() as session:
            job = repository.job_row(session, self.work.job.id)
            repository.save_figures(session, job, figures)
            repository.finish_step(session, job, name, output, output_digest=output_digest)
        self.done[name] = dict(output)
        log.info("step.done", job_id=str(self.work.job.id), step=name)

    def _materialize(self) -> None:
        """Fill the folder; on a re-claim as well, since the folder of another worker is not here."""
        self._start("materialize")
        output = materialize(self.shop, self.work)
        self._finish("materialize", output, output_digest=output.get("next", {}).get("digest"))

    def _compute(self, name: str) -> str | None:
        """Run a step in the runner and keep its files; return the new state when the job ends here."""
        self._open()
        self._start(name)
        if name == "verify" and self.state == "running":
            self._move("evaluated")
        seconds = self.shop.compute.step(name)
        if name in {"train", "unlearn"}:
            kept = self.shop.keep(self.shop.folder / CANDIDATE_FILE)
            if kept["digest"] == self.done["materialize"].get("base_digest"):
                raise IntegrityBroken(detail="the method returned the original model unchanged")
            self._finish(name, {"candidate": kept, "run": self._run_facts(), "seconds": seconds}, output_digest=kept["digest"])
        elif name in {"evaluate", "measure"}:
            kept = self.shop.keep(self.shop.folder / READINGS_FILE)
            facts = self._run_facts()
            if name == "evaluate" and facts.get("judged") != self.done["unlearn"]["candidate"]["digest"]:
                raise IntegrityBroken(detail="the readings are not of the weights that the run put out")
            output = {"readings": kept, "run": facts, "seconds": facts.get("evaluation_seconds", seconds), "metrics": facts.get("metrics") or {}}
            drawn = figure_rows(self.shop.folder / FIGURES_FILE) if name == "evaluate" else []
            self._finish(name, output, output_digest=kept["digest"], figures=drawn)
        else:
            return self._verdict()
        return None

    def _open(self) -> None:
        """Hand the folder to the runner, once; outputs of earlier attempts are brought back first."""
        if self._opened:
            return
        made = self.done.get("train") or self.done.get("unlearn")
        if made is not None:
            self.shop.fetch(made["candidate"]["digest"], CANDIDATE_FILE)
            (self.shop.folder / RUN_FILE).write_text(json.dumps(made["run"]))
        measured = self.done.get("evaluate") or self.done.get("measure")
        if measured is not None:
            self.shop.fetch(measured["readings"]["digest"], READINGS_FILE)
        write_spec(self.shop, self.work, self.plan)
        self.shop.compute.open(self.shop.folder)
        self._opened = True

    def _run_facts(self) -> dict[str, Any]:
        path = self.shop.folder / RUN_FILE
        return json.loads(path.read_text()) if path.exists() else {}

    def _verdict(self) -> str | None:
        """Store readings and verdict and act on it, in one transaction; None means: publish."""
        document = json.loads((self.shop.folder / VERDICT_FILE).read_text())
        verdict = document["verdict"]
        derived = self._forget_derived()
        with self.shop.effect() as session:
            job = self._row(session)
            repository.save_readings(session, job, document["readings"])
            repository.save_verdict(session, job, verdict=verdict["verdict"], codes=verdict["codes"], sentence=verdict["sentence"])
            repository.finish_step(session, job, "verify", {"verdict": verdict["verdict"], "derived": derived}, output_digest=None)
            facts = {"verdict": verdict["verdict"], "codes": verdict["codes"], "readings_digest": self.done["evaluate"]["readings"]["digest"]}
            audit.record(session, tenant_id=job.tenant_id, object_id=job.id, type="job.verdict", body=facts)
            if verdict["verdict"] != "passed":
                ended = outcomes.not_passed(session, self.work, job, verdict, clock=self.shop.clock)
            elif _needs_release(self.work):
                ended = outcomes.release_needed(session, job)
            else:
                repository.move(session, job, "passed")
                ended = None
        log.info("job.verdict", job_id=str(self.work.job.id), verdict=verdict["verdict"], code=",".join(verdict["codes"]))
        if ended is not None:
            self.work.job.state = ended
            return ended
        self.work = self.shop.work()
        self.done["verify"] = {"verdict": "passed"}
        return None

    def _forget_derived(self) -> list[dict[str, object]]:
        """Destroy what was derived from the forgotten records, the verdict being reached; return what became of it, and of what the job used.

        It comes before the verdict is stored: a crash between the two costs a computation, where the other order would leave what must go.
        """
        folder = self.shop.cache(self.work)
        if folder is None:
            return []
        steps = (self.done.get("unlearn"), self.done.get("evaluate"))
        used = {entry["key"] for step in steps if step is not None for entry in (step.get("run") or {}).get("derived", [])}
        found = folder.close(self.work.job.id.hex)
        return [each.described() for each in found if each.key in used or each.disposition != "kept"]

    def _confirm(self) -> str:
        """End a job whose records were all held out of training: there is nothing to unlearn."""
        self._move("resume_publish")
        self._forget_derived()
        self._start("publish")
        version = confirm(self.shop, self.work, self.done)
        log.info("job.confirmed", job_id=str(self.work.job.id), version_id=str(version))
        return "succeeded"

    def _publish(self) -> str:
        if self.state == "running":
            self._move("resume_publish")
        self._start("publish")
        version = publish(self.shop, self.work, self.done)
        log.info("job.published", job_id=str(self.work.job.id), version_id=str(version))
        return "succeeded"


def _needs_release(work: Work) -> bool:
    return work.policy is not None and bool(work.policy.flags.get("require_release"))


def settle(shop: Workshop, error: BaseException) -> str:
    """Record how the attempt ended and return the job's new state. Raises LeaseLost when the job is no longer ours: then nothing is written."""
    if isinstance(error, LeaseLost):
        raise error
    with shop.effect() as session:
        job = repository.job_row(session, shop.lease.job_id)
        state = outcomes.settle(session, job, error, clock=shop.clock, larger_queue=shop.larger_queue)
    code = error.code if isinstance(error, LetheError) else type(error).__name__
    log.warning("job.interrupted", job_id=str(shop.lease.job_id), code=code, state=state)
    return state
