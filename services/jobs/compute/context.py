"""The bench a job is worked on: its folder, data on the device, models from files, and a Run whose reports climb the pipe."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models_store import tensors
from services.derived import Folder, Limits
from services.errors import InvalidInput, NonFinite, UnsafeCheckpoint, UnsupportedTask
from services.jobs.compute.plugins import code_digest, versions
from services.jobs.compute.team import Alone, Team
from services.jobs.messages import CANDIDATE_FILE, NAMES_FILE, RECORDS_FILE, RUN_FILE, SPEC_FILE, JobSpec, ProgressFrame
from services.jobs.records import columns, digests
from services.learning.answers import appearance
from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.cache import Cache, FolderCache, NoCache
from services.learning.data import Span, Spans, Split, Splits
from services.learning.dataset import DATASETS
from services.learning.recipe import Recipe
from services.learning.run import Progress, Run
from services.learning.task import TASKS, Task

PARTS = ("forget", "retain", "analysis", "verification", "attack")


@dataclass
class Bench:
    """One job in the runner. `send` takes progress frames, `cancelled` says whether to stop, `team` are the ranks that share it.

    `named_elsewhere` is how many retained records hold a name that a request for an entity is about; None where there is no such request.
    """

    folder: Path
    spec: JobSpec
    device: torch.device
    architecture: Architecture
    recipe: Recipe | None
    task: Task
    splits: Splits
    send: Callable[[ProgressFrame], None]
    cancelled: Callable[[], bool]
    cache: Cache = field(default_factory=NoCache)
    named_elsewhere: int | None = None
    team: Team = field(default_factory=Alone)

    def join(self, team: Team) -> None:
        """Share the job with other ranks. Nothing is kept in the cache then: what one rank found there and another did not would part them."""
        self.team, self.cache = team, NoCache()

    def run(self, name: str, seed: int) -> Run:
        """Return a Run of the pipeline's step `name`; its reports become progress frames."""
        return Run(
            seed=seed,
            device=self.device,
            architecture=self.architecture,
            recipe=self.recipe,
            on_progress=lambda progress: self.send(_frame(name, progress)),
            cancelled=self.team.agreed(self.cancelled),
            deadline_s=self.spec.deadline_s if self.team.size == 1 else None,  # clocks differ; the supervisor has its own deadline
            inherited=self.spec.inherited if name == "unlearn" else None,
            cache=self.cache,
            spread=self.team.spread,
        )

    def model(self, file: str) -> nn.Module:
        """Return the model whose weights lie in `file` of the folder, on the device; the candidate is of the architecture that the method left.

        Raises:
            UnsafeCheckpoint: a name, shape or dtype is not the architecture's, or a value is not finite.
        """
        built = (self._made() if file == CANDIDATE_FILE else self.architecture).fresh(0)
        state = tensors.load(self.folder / file)
        check_fits(built.state_dict(), state, name=file)
        built.load_state_dict(state)
        return self.team.spread(built.to(self.device))

    def _made(self) -> Architecture:
        """Return the architecture of the candidate: the base version's, with the parameters that the method noted as changed."""
        path = self.folder / RUN_FILE
        notes = json.loads(path.read_text()).get("notes", {}) if path.exists() else {}
        changed = notes.get("architecture_parameters_changed")
        if not changed:
            return self.architecture
        family = type(self.architecture)
        return family(family.Parameters.model_validate({**self.architecture.parameters.model_dump(), **changed}))

    def save(self, model: nn.Module, file: str) -> None:
        """Write the model's weights. Raises NonFinite when one is not a finite number."""
        self.save_state(model.state_dict(), file)

    def save_state(self, weights: Mapping[str, Tensor], file: str) -> None:
        """Write weights, put together where several ranks share them. Raises NonFinite when one is not a finite number."""
        state = self.team.whole(weights)
        for name, value in state.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NonFinite(what=f"the tensor {name} of the result")
        if self.team.rank == 0:
            tensors.save(state, self.folder / file)
        self.team.wait()

    def digest(self, file: str) -> str:
        """Return the SHA-256 of a file of the folder, 64 hexadecimal digits."""
        with (self.folder / file).open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()

    def write(self, file: str, text: str) -> None:
        """Write a text file; where several ranks share the job, the first does it."""
        if self.team.rank == 0:
            (self.folder / file).write_text(text)

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`; where several ranks share the job, the first does it."""
        if self.team.rank != 0:
            return
        path = self.folder / RUN_FILE
        known = json.loads(path.read_text()) if path.exists() else {}
        self.write(RUN_FILE, json.dumps({**known, **facts}))

    def note_cache(self) -> None:
        """Add to `run.json` what was kept or found in the cache so far."""
        if isinstance(self.cache, FolderCache) and self.cache.used:
            path = self.folder / RUN_FILE
            before = json.loads(path.read_text()).get("derived", []) if path.exists() else []
            self.note(derived=[*before, *(entry for entry in self.cache.used if entry not in before)])


def check_fits(expected: dict[str, Tensor], state: dict[str, Tensor], *, name: str) -> None:
    """Raise UnsafeCheckpoint unless `state` has the names, shapes and dtypes of `expected` exactly."""
    if set(expected) != set(state):
        odd = sorted(set(expected) ^ set(state))[:3]
        raise UnsafeCheckpoint(name=name, gate="architecture-mismatch", detail=f"tensors missing or unknown: {', '.join(odd)}")
    for key, tensor in expected.items():
        if tensor.shape != state[key].shape or tensor.dtype != state[key].dtype:
            detail = f"{key} is {state[key].dtype} {tuple(state[key].shape)}, not {tensor.dtype} {tuple(tensor.shape)}"
            raise UnsafeCheckpoint(name=name, gate="architecture-mismatch", detail=detail)


def open_bench(folder: Path, *, send: Callable[[ProgressFrame], None], cancelled: Callable[[], bool]) -> Bench:
    """Return the bench of the job that lies in `folder`: specification checked, records decoded and moved to the device.

    Raises:
        UnknownComponent: a name is in no registry. UnsupportedTask, InvalidInput: the parts do not fit together.
    """
    spec = JobSpec.model_validate_json((folder / SPEC_FILE).read_bytes())
    device = torch.device(spec.device)
    recipe = _recipe(spec)
    family = ARCHITECTURES[spec.architecture]
    architecture = family(family.Parameters.model_validate(spec.architecture_params))
    if spec.task not in family.tasks:
        raise UnsupportedTask(component=spec.architecture, task=spec.task, tasks=", ".join(sorted(family.tasks)))
    task = TASKS[spec.task].of(architecture.parameters.outputs, recipe)
    splits, named_elsewhere = _splits(folder, spec, device)
    for part in PARTS:
        task.check(getattr(splits, part))
    cache = _cache(folder, spec, device)
    return Bench(folder, spec, device, architecture, recipe, task, splits, send, cancelled, cache, named_elsewhere)


def _cache(folder: Path, spec: JobSpec, device: torch.device) -> Cache:
    """Return the cache that the job was given. Its facts are all that a result may depend on besides weights, records, parameters and seed."""
    if spec.cache is None:
        return NoCache()
    facts = {
        "code": code_digest(),
        "versions": versions(),
        "device": [device.type, torch.cuda.get_device_name(device) if device.type == "cuda" else ""],
        "threads": torch.get_num_threads(),
        "architecture": [spec.architecture, spec.architecture_params],
        "adapter": [spec.adapter, spec.adapter_params],
    }
    kept = Folder(Path(spec.cache.folder), Limits(spec.cache.size_bytes, spec.cache.ttl_s))
    return FolderCache(kept, facts=facts, digests=digests(folder / RECORDS_FILE), device=device, job=spec.job_id.hex)


def _recipe(spec: JobSpec) -> Recipe | None:
    if spec.recipe is None:
        return None
    recipe = Recipe.model_validate(spec.recipe)
    return recipe.model_copy(update={"batch_size": max(1, recipe.batch_size // 2)}) if spec.halved else recipe


def entities_of(folder: Path) -> tuple[str, ...]:
    """Return the names that requests for an entity are about; they lie in a file of their own, which no digest or document is made of."""
    path = folder / NAMES_FILE
    return tuple(json.loads(path.read_text())) if path.exists() else ()


def naming(rows: Mapping[str, np.ndarray], chosen: np.ndarray, entities: tuple[str, ...]) -> int:
    """Return how many of the `chosen` rows (n,) bool hold one of the names in one of their texts."""
    texts = [column for column in rows.values() if column.dtype == object]
    said = ([column[row] for column in texts if isinstance(column[row], str)] for row in np.flatnonzero(chosen))
    return sum(any(appearance(each, entities)) for each in said)


def _splits(folder: Path, spec: JobSpec, device: torch.device) -> tuple[Splits, int | None]:
    adapter_class = DATASETS[spec.adapter]
    if spec.task not in adapter_class.tasks:
        raise UnsupportedTask(component=spec.adapter, task=spec.task, tasks=", ".join(sorted(adapter_class.tasks)))
    adapter = adapter_class(adapter_class.Parameters.model_validate(spec.adapter_params))
    rows, ids, roles, named = columns(folder / RECORDS_FILE)
    x, y = adapter.decode(rows)
    if len(x) != len(ids):
        raise InvalidInput(detail=f"the adapter returned {len(x)} records of {len(ids)}")
    whole = Split(x, y, tuple(ids), adapter.prepare())
    role = np.asarray(roles)
    parts = {part: whole.take(torch.from_numpy(np.flatnonzero(role == part))).to(device) for part in PARTS}
    of_class = whole.y[torch.from_numpy(np.flatnonzero(named))].tolist() if spec.request_kind == "class" else []
    classes = tuple(sorted({int(label) for label in of_class}))
    entities = entities_of(folder)
    splits = Splits(
        forget=parts["forget"],
        retain=parts["retain"],
        analysis=parts["analysis"],
        verification=parts["verification"],
        attack=parts["attack"],
        kind=spec.request_kind,
        classes=classes,
        span=Spans(tuple(Span(*bounds) for bounds in spec.spans)) if spec.spans else None,
        mixed=spec.mixed,
        entities=entities,
    )
    return splits, naming(rows, role == "retain", entities) if entities else None


def withheld(splits: Splits, *, forget: bool, retain: bool) -> Splits:
    """Return what a method may see: never verification and attack rows, and of forget and retain only what it needs."""
    seen = splits.for_method()
    nothing = torch.zeros(0, dtype=torch.int64)
    if not forget:
        seen = replace(seen, forget=seen.forget.take(nothing))
    if not retain:
        seen = replace(seen, retain=seen.retain.take(nothing))
    return seen


def _frame(name: str, progress: Progress) -> ProgressFrame:
    values = {key: value if np.isfinite(value) else None for key, value in progress.values.items()}
    return ProgressFrame(name=name, stage=progress.stage, step=progress.step, of=progress.of, values=values)
