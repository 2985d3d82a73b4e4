"""The step `materialize`: bring everything the runner needs into its folder, and write the dataset version without the records.

Every byte is checked against its digest; roles are given here, where the tenant's key is; the runner gets no key.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from services import memory
from services.catalogue import service as catalogue
from services.datasets.identifiers import record_digest
from services.derived import short
from services.errors import IntegrityBroken, NotFound
from services.jobs import records, repository
from services.jobs.messages import BASE_FILE, NAMES_FILE, NEXT_RECORDS_FILE, RECORDS_FILE, SPEC_FILE, CacheSpec, JobKind, JobSpec, Seeds
from services.jobs.repository import Work
from services.jobs.workshop import Workshop, canonical_digest
from services.model_versions import architecture
from services.requests import names
from services.tenants.keys import derive, tenant_key

WEIGHTS = "model.safetensors"


def dataset_key(shop: Workshop, work: Work) -> bytes:
    """Return K_dataset, from which the roles of held-out records are drawn."""
    with shop.effect() as session:
        whole = tenant_key(session, shop.lease.tenant_id, shop.keys.kek)
    return derive(whole, f"dataset:{work.dataset.id.hex}")


def forgotten_by(shop: Workshop, work: Work, *, ranged_only: bool = False) -> Callable[[str], bool]:
    """Return the test whether a record of the job's dataset is to be forgotten; with `ranged_only`, whether a request for a range names it."""
    with shop.effect() as session:
        whole = tenant_key(session, shop.lease.tenant_id, shop.keys.kek)
        digests = repository.forgotten_digests(session, work.ranged_targets if ranged_only else work.targets, work.dataset.id)
    return lambda record_id: record_digest(whole, work.dataset.id, record_id) in digests


def forgotten_before(shop: Workshop, work: Work) -> Callable[[str], bool]:
    """Return the test whether the model has forgotten a record by an earlier job: it is then neither trained on nor measured on.

    What a version was trained on keeps the records that were held out of it, until its next version.
    """
    with shop.effect() as session:
        whole = tenant_key(session, shop.lease.tenant_id, shop.keys.kek)
        digests = repository.ledger_digests(session, work.model.id, work.dataset.id) if work.job.kind != "train" else frozenset()
    return lambda record_id: bool(digests) and record_digest(whole, work.dataset.id, record_id) in digests


def trained_here(shop: Workshop, work: Work) -> bool:
    """Say whether the weights come from a training run of the service, which knows which records are held out."""
    if work.base is None:
        return True
    with shop.effect() as session:
        return repository.trained_here(session, work.base.id)


def materialize(shop: Workshop, work: Work) -> dict[str, Any]:
    """Fill the folder and return the step's output: counts of roles, and the blob of the next dataset version.

    Raises:
        RecordsNotFound: no named record is there. ForgetSetIsEverything: the job would keep nothing.
        DigestMismatch, StoreDown, IntegrityBroken: through the store.
    """
    paths = [shop.fetch(file.digest, f"dataset-{index}.parquet") for index, file in enumerate(work.dataset_files)]
    if not paths:
        raise NotFound
    table = records.read_table(paths)
    known = records.without(table, forgotten_before(shop, work))
    if work.zero_shot:
        forgotten = records.of_labels(known, work.dataset.label_column, work.labels)
        roles = records.with_held_out_roles(known, key=dataset_key(shop, work))
    else:
        forgotten, ours = forgotten_by(shop, work), trained_here(shop, work)
        ranged = forgotten_by(shop, work, ranged_only=True)
        kind = "class" if work.request_kind == "class" else "records"
        key = dataset_key(shop, work)
        roles = records.with_roles(known, forgotten=forgotten, kind=kind, key=key, drawn_before_training=ours, ranged=ranged)
    counts = records.role_counts(roles, forgotten=forgotten)
    records.check_roles(counts, kind=work.job.kind, dataset=work.dataset.name, zero_shot=work.zero_shot)
    records.write_table(_prepare_cache(shop, work, records.with_named(roles, forgotten)), shop.folder / RECORDS_FILE)
    _write_names(shop, work)
    output: dict[str, Any] = {"metrics": {"roles": counts}}
    if work.job.kind == "unlearn":
        output["base_digest"] = weights_of(work)
        shop.fetch(output["base_digest"], BASE_FILE)
    if work.job.kind == "unlearn" and not work.zero_shot:
        output["next"] = _next_version(shop, work, table, forgotten)
    return output


def _write_names(shop: Workshop, work: Work) -> None:
    """Open the names that requests for an entity are about into a file of the job's folder; no row and no specification holds them."""
    boxes = [request for request in work.requests if request.names_sealed is not None]
    if not boxes:
        return
    with shop.effect() as session:
        key = tenant_key(session, shop.lease.tenant_id, shop.keys.kek)
    found = [names.opened(request.names_sealed, key, request.tenant_id, request.id) for request in boxes]
    (shop.folder / NAMES_FILE).write_text(json.dumps(sorted({name for each in found for name in each})))


def _prepare_cache(shop: Workshop, work: Work, table: Any) -> Any:
    """Sweep the cache, note there what the job forgets before anything is computed, and return the table with the digests that the runner may keep."""
    folder = shop.cache(work)
    if folder is None:
        return table
    with shop.effect() as session:
        whole = tenant_key(session, shop.lease.tenant_id, shop.keys.kek)
        forgotten = repository.forgotten_digests(session, work.targets, work.dataset.id)
    folder.sweep(spare=work.job.id.hex)
    if work.job.kind == "unlearn":
        folder.open(work.job.id.hex, {short(digest) for digest in forgotten})
    return records.with_digests(table, lambda rid: short(record_digest(whole, work.dataset.id, rid)))


def weights_of(work: Work) -> str:
    """Return the digest of the base version's weights. Raises IntegrityBroken when it has none."""
    found = [file.digest for file in work.base_files if file.path.endswith(".safetensors")]
    if len(found) != 1:
        raise IntegrityBroken(detail="the base version does not have exactly one safetensors file")
    return found[0]


def _next_version(shop: Workshop, work: Work, table: Any, forgotten: Callable[[str], bool]) -> dict[str, Any]:
    """Write the dataset's newest version without the records; it may be later than the one that the model learned from."""
    with shop.effect() as session:
        newest, files = repository.newest_version(session, work.dataset.id)
    if newest.id != work.dataset_version.id:
        table = records.read_table([shop.fetch(file.digest, f"newest-{index}.parquet") for index, file in enumerate(files)])
    path = shop.folder / NEXT_RECORDS_FILE
    rest = records.without(table, forgotten)
    records.write_table(rest, path)
    kept = shop.keep(path)
    document = {"dataset": work.dataset.name, "parent": newest.manifest_digest, "files": [["records.parquet", kept["digest"]]]}
    return {**kept, "path": "records.parquet", "records": rest.num_rows, "from": str(newest.id), "manifest_digest": canonical_digest(document)}


def write_spec(shop: Workshop, work: Work, plan: dict[str, Any]) -> str:
    """Write `job.json` for the runner and return its digest."""
    state = work.job.step_state or {}
    spec = JobSpec(
        job_id=work.job.id,
        kind=cast("JobKind", work.job.kind),
        round=work.job.round,
        task=work.model.task,
        architecture=work.model.architecture,
        architecture_params=architecture_of(work),
        adapter=work.dataset.adapter,
        adapter_params=work.dataset.adapter_params,
        recipe=recipe_of(work),
        method=work.job.method,
        params=method_params(work),
        request_kind="class" if work.request_kind == "class" else "records",
        spans=work.spans,
        mixed=bool(work.spans) and len(work.ranged_targets) < len(work.targets),
        plan=plan,
        seeds=seeds_of(shop, work, plan),
        device=shop.device,
        deadline_s=work.job.deadline_s,
        halved=bool(state.get("halved")),
        **_memory(shop, work, plan),
        inherited=inherited_by(work),
        cache=_cache_spec(shop, work),
    )
    (shop.folder / SPEC_FILE).write_text(spec.model_dump_json())
    return canonical_digest(spec.model_dump(mode="json"))


def _memory(shop: Workshop, work: Work, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the job was admitted by: the size of its base version, how often that stands in memory, and whether devices may share it."""
    recipe, params = recipe_of(work), method_params(work)
    manifest = (work.base.manifest if work.base is not None else None) or {}
    found: dict[str, Any] = {
        "weights_bytes": sum(int(file["size_bytes"]) for file in manifest.get("files", ()) if file["path"].endswith(".safetensors"))
    }
    if work.job.kind != "unlearn":
        batch = memory.batch_bytes(work.model.task, work.model.architecture_params, int((recipe or {}).get("batch_size") or 0))
        return {
            **found,
            "copies": memory.training_copies(recipe or {}),
            "batch_bytes": batch,
            "sharded": memory.shared({"sharded": True}, {}, work.model.task),
        }
    with shop.effect() as session:
        entry = catalogue.entry(session, "method", str(work.job.method))
    facts: Mapping[str, Any] = entry.facts if entry is not None else {}
    held: Mapping[str, Any] = facts.get("memory") or {}
    copies = memory.job_copies(held, params, recipe, retrained=plan.get("reference") != "none")
    batch = memory.batch_bytes(work.model.task, work.model.architecture_params, memory.largest_batch(held, params, recipe))
    return {**found, "copies": copies, "batch_bytes": batch, "sharded": memory.shared(facts, params, work.model.task)}


def seeds_of(shop: Workshop, work: Work, plan: Mapping[str, Any]) -> Seeds:
    """Return the seeds of the job, and that of its references, which the plan froze.

    A certificate holds against those who do not know the random term, so a certified method draws it from a secret. The secret derives from the tenant's key, so that a resumed job draws the same; no row, report or log holds it.
    """
    planned: Mapping[str, Any] = plan.get("seeds", {})
    seeds = Seeds.model_validate({**work.job.seeds, "reference": planned.get("reference"), "shadows": planned.get("shadows")})
    if plan.get("guarantee") != "certified":
        return seeds
    with shop.effect() as session:
        key = derive(tenant_key(session, shop.lease.tenant_id, shop.keys.kek), "certified:seed")
    secret = hmac.digest(key, work.job.id.bytes + f"/{seeds.unlearn}/{work.job.round}".encode(), hashlib.sha256)
    return seeds.model_copy(update={"unlearn": int.from_bytes(secret[:8], "big") >> 11})


def inherited_by(work: Work) -> dict[str, Any]:
    """Return the ledger that the base version carries, if the service made that version itself: an uploaded one proves nothing of its past.

    The sums of an empirical ledger are no business of a method; the next version's are written when it is published.
    """
    ledger = (own_manifest(work) or {}).get("ledger") or {}
    return {"ledger": ledger} if ledger and (ledger.get("budget") or {}).get("mechanism") != "empirical" else {}


def own_manifest(work: Work) -> dict[str, Any] | None:
    """Return the manifest of a base version that the service made itself."""
    return work.base.manifest if work.base is not None and work.base.job_id is not None else None


def _cache_spec(shop: Workshop, work: Work) -> CacheSpec | None:
    folder = shop.cache(work)
    if folder is None:
        return None
    return CacheSpec(folder=str(folder.path), size_bytes=folder.limits.size_bytes, ttl_s=folder.limits.ttl_s)


def architecture_of(work: Work) -> dict[str, Any]:
    """Return the parameters of the network that the job builds: those of the base version, or for a first version those of the model."""
    return architecture.parameters_of(None if work.job.kind == "train" else work.base, work.model.architecture_params)


def recipe_of(work: Work) -> dict[str, Any] | None:
    """Return the training recipe: a training job's own, else the base version's."""
    if work.job.kind == "train":
        return dict(work.job.params.get("recipe", work.job.params))
    return dict(work.base.recipe) if work.base is not None and work.base.recipe is not None else None


def method_params(work: Work) -> dict[str, Any]:
    """Return the parameters of the method; a training job has none."""
    return {} if work.job.kind == "train" else dict(work.job.params)
