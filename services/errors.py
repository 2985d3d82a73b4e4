"""Every error of the service, one tree; the docstring of a class is its message.

```
LetheError
|- InvalidInput        UnknownComponent, UnknownModel, UnknownDataset, ParameterOutOfRange, EmptyForgetSet, ForgetSetIsEverything,
|                      RecordsNotFound, EntityNotFound, UnsupportedTask, TokenizerMismatch, MethodNotApplicable, InvalidCursor, KeyReused,
|                      MalformedRequest, KeyMissing, MissingLabels, NonFinite, Diverged, ModelTooLarge, CannotPass,
|                      DriftSpent
|- NotFound            ReportNotReady, HeadNotReady, CertificateNotReady
|- Conflict            IllegalTransition, DuplicateName, DuplicateExternalId, KeyInProgress, VersionInUse, VersionNotReady,
|                      AliasInUse, Resurrection (ForgottenBytes, BuriedBytes, DatasetSuperseded, ForgottenFile), ClockRefused, ExtensionNotAllowed, HeldByLaw,
|                      TooLateToCancel, LeaseLost, ParentMoved
|- Gone                CheckpointDestroyed
|- Precondition        PreconditionRequired, PreconditionFailed
|- Forbidden           Unauthenticated, MissingScope, FourEyesRequired
|- IntegrityBroken     DigestMismatch, UnsafeCheckpoint
|  `- LogRefused       KeyRefused, LogForked, LogShrunken, LogTampered
|- Interrupted         Cancelled, DeadlineExceeded, Stalled, RunnerCrashed
`- Unavailable         DatabaseDown, StoreDown, LogBehind, HostMemoryShort, DeviceOutOfMemory
```
`code` is the slug of the problem document; `retry_class` decides what a job does next: `permanent`, `transient`, `resource`, `crash`,
`cancel` or `race`.
"""

from typing import ClassVar


class LetheError(Exception):
    """Lethe could not do this."""

    code: ClassVar[str] = "internal"
    retry_class: ClassVar[str] = "permanent"

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__((type(self).__doc__ or "").format_map(facts))


class InvalidInput(LetheError):
    """The request cannot be carried out as written: {detail}"""

    code = "validation-error"


class MalformedRequest(InvalidInput):
    """The body is not well-formed JSON: {detail}"""

    code = "malformed-request"


class KeyMissing(InvalidInput):
    """This call needs the header Idempotency-Key: 1 to 128 visible ASCII characters, new for each new intent."""

    code = "idempotency-key-missing"


class KeyReused(InvalidInput):
    """This Idempotency-Key was used for another body. Send a new key for a new intent."""

    code = "idempotency-key-reused"


class InvalidCursor(InvalidInput):
    """The cursor does not belong to this listing. Start again without it."""

    code = "invalid-cursor"


class UnknownComponent(InvalidInput):
    """There is no {kind} called {name!r}. The catalogue lists: {known}."""

    code = "unknown-method"


class UnknownModel(InvalidInput):
    """There is no model {model!r} here. GET /v1/models lists yours."""

    code = "unknown-model"


class UnknownDataset(InvalidInput):
    """There is no dataset {dataset!r} here. GET /v1/datasets lists yours."""


class ParameterOutOfRange(InvalidInput):
    """Parameter {name!r} is refused: {detail}"""


class EmptyForgetSet(InvalidInput):
    """The forget set names no record of dataset version {dataset}. Check the record ids."""


class ForgetSetIsEverything(InvalidInput):
    """The forget set is the whole of dataset {dataset}: nothing would be left to keep. Delete the model instead."""


class RecordsNotFound(InvalidInput):
    """{count} of the named records or labels are not in dataset {dataset}."""

    code = "records-not-found"


class EntityNotFound(InvalidInput):
    """{count} of the names are those of no record of dataset {dataset}. Check the spelling, or index its records with identifiers of type entity."""

    code = "records-not-found"


class TokenizerMismatch(InvalidInput):
    """Dataset {dataset} and model {model} do not read texts alike: {detail}. Register one with the parameters of the other."""


class UnsupportedTask(InvalidInput):
    """{component} does not work on task {task!r}; it works on {tasks}."""

    code = "method-not-applicable"


class MethodNotApplicable(InvalidInput):
    """Method {method!r} cannot serve this request: {detail}. Methods that could: {could}."""

    code = "method-not-applicable"


class CannotPass(InvalidInput):
    """Method {method!r} was not tried: {detail}. Only an exact method can pass such a plan."""

    code = "cannot-pass"


class DriftSpent(InvalidInput):
    """Method {method!r} was not tried: of what edits may add up to since the last exact training, nothing is left ({detail}). Only a retraining starts anew."""

    code = "drift-spent"


class ModelTooLarge(InvalidInput):
    """Method {method!r} needs about {needed} of memory on model {model!r}, and the largest live worker has {largest}{shared}. Methods that fit: {less}."""

    code = "model-too-large"


class MissingLabels(InvalidInput):
    """Dataset version {dataset} has no column {column!r} with labels, which task {task!r} needs."""


class NonFinite(InvalidInput):
    """{what} holds values that are not finite numbers."""

    code = "non-finite"


class Diverged(InvalidInput):
    """Method {method!r} diverged at stage {stage}: {detail}. The original model is kept."""

    code = "diverged"


class NotFound(LetheError):
    """There is no such resource."""

    code = "not-found"


class ReportNotReady(NotFound):
    """The audit report of this request is not built or not signed yet. It comes when the request is finished."""

    code = "audit-report-not-ready"


class HeadNotReady(NotFound):
    """The log has no signed head yet. The signer makes the first one within seconds; /readyz says where it does not."""

    code = "log-head-not-ready"


class CertificateNotReady(NotFound):
    """There is no destruction certificate of this version: it was not destroyed, or its destruction is not proved to its end yet."""

    code = "certificate-not-ready"


class Conflict(LetheError):
    """The state of the resource does not allow this: {detail}"""

    code = "conflict"


class IllegalTransition(Conflict):
    """A {thing} in state {state!r} does not take {event!r}. It takes: {allowed}."""

    code = "invalid-transition"


class DuplicateName(Conflict):
    """The name {name!r} is taken."""

    code = "duplicate-name"


class DuplicateExternalId(Conflict):
    """external_id {external_id!r} was used for another request."""

    code = "duplicate-external-id"


class KeyInProgress(Conflict):
    """A request with this Idempotency-Key is still running. Ask again in a second."""

    code = "idempotency-in-progress"


class VersionInUse(Conflict):
    """Version {version} is in use: {detail}"""

    code = "version-in-use"


class VersionNotReady(Conflict):
    """Version {version} is {status}, not ready."""

    code = "version-not-ready"


class AliasInUse(Conflict):
    """Alias {alias!r} exists. Send If-Match with its ETag to move it."""

    code = "alias-in-use"


class Resurrection(Conflict):
    """Version {version} learned from records that were forgotten; nothing may point to it again."""

    code = "forgotten-data-resurrection"


class ForgottenBytes(Resurrection):
    """A file has the bytes of version {version} of model {of}, which learned from records that were forgotten or was destroyed."""


class BuriedBytes(Resurrection):
    """The weights have the bytes of a version that was destroyed; they may not come back."""


class DatasetSuperseded(Resurrection):
    """Version {version} of dataset {dataset} holds records that were forgotten and is {status}: nothing may learn from it. A later version does without them."""


class ForgottenFile(Resurrection):
    """A file has the bytes of version {version} of dataset {of}, which held records that were forgotten; they may not come back."""


class ExtensionNotAllowed(Conflict):
    """The time of this request cannot be extended: {detail}."""

    code = "extension-not-allowed"


class ClockRefused(Conflict):
    """The clock of this request does not allow this: {detail}."""

    code = "clock-refused"


class HeldByLaw(Conflict):
    """A legal hold stands in the way: {holds}. Release it first."""

    code = "legal-hold"
    retry_class = "transient"


class TooLateToCancel(Conflict):
    """The unlearned version is being published or is published; this can no longer be undone."""

    code = "too-late-to-cancel"


class LeaseLost(Conflict):
    """Job {job} is no longer held at epoch {epoch}; another worker owns it."""

    retry_class = "race"


class ParentMoved(Conflict):
    """The base of job {job} is no longer the model's current version."""

    retry_class = "race"


class Gone(LetheError):
    """This resource was destroyed."""

    code = "gone"


class CheckpointDestroyed(Gone):
    """The files of version {version} were destroyed."""

    code = "checkpoint-destroyed"


class Precondition(LetheError):
    """A condition of the request does not hold."""

    code = "precondition-failed"


class PreconditionRequired(Precondition):
    """This call needs the header If-Match with the resource's ETag."""

    code = "precondition-required"


class PreconditionFailed(Precondition):
    """The resource has changed since you read it. Read it again."""


class Forbidden(LetheError):
    """This caller may not do this."""

    code = "forbidden"


class Unauthenticated(Forbidden):
    """The API key is missing, malformed, unknown, expired or revoked."""

    code = "unauthenticated"


class MissingScope(Forbidden):
    """This call needs the scope {scope!r}."""

    code = "insufficient-scope"


class FourEyesRequired(Forbidden):
    """The policy asks that another principal than the request's creator decides."""

    code = "four-eyes-required"


class IntegrityBroken(LetheError):
    """Something stored is not what was stored: {detail}"""

    code = "integrity-broken"


class DigestMismatch(IntegrityBroken):
    """The bytes of {name} have digest {actual}, not {expected}."""

    code = "digest-mismatch"


class UnsafeCheckpoint(IntegrityBroken):
    """The checkpoint {name} was refused by gate {gate}: {detail}"""

    code = "unsafe-checkpoint"


class LogRefused(IntegrityBroken):
    """The signer does not sign: {detail}"""

    code = "log-refused"


class KeyRefused(LogRefused):
    """The signer has no key that the log knows: {detail}. Mend the setting and start the signer again."""

    code = "signing-key-refused"


class LogForked(LogRefused):
    """The log no longer begins with the {size} leaves that were signed: it was changed. Compare it with the copies of its heads."""

    code = "log-forked"


class LogShrunken(LogRefused):
    """The log has {size} leaves, and {signed} were signed: the database was put back to an older state. Nothing is signed until erasures are replayed."""

    code = "log-shrunken"


class LogTampered(LogRefused):
    """{count} leaves or nodes between {first} and {last} are not what their events committed to: the log was changed."""

    code = "log-tampered"


class Interrupted(LetheError):
    """The work was stopped."""

    code = "interrupted"


class Cancelled(Interrupted):
    """The work was cancelled."""

    code = "cancelled"
    retry_class = "cancel"


class DeadlineExceeded(Interrupted):
    """The work did not end within {deadline_s} seconds."""

    code = "deadline-exceeded"
    retry_class = "crash"


class Stalled(Interrupted):
    """The runner made no progress for {stall_s} seconds."""

    code = "stalled"
    retry_class = "crash"


class RunnerCrashed(Interrupted):
    """The runner ended without a result ({detail})."""

    code = "runner-crashed"
    retry_class = "crash"


class Unavailable(LetheError):
    """A server that Lethe needs does not answer: {detail}"""

    code = "unavailable"
    retry_class = "transient"


class DatabaseDown(Unavailable):
    """The database does not answer. Nothing was recorded; send the request again."""

    code = "database-unavailable"


class StoreDown(Unavailable):
    """The object store does not answer."""

    code = "storage-unavailable"


class LogBehind(Unavailable):
    """The log has not numbered the events of this request yet. The sequencer does within seconds; /readyz says where it does not."""

    code = "log-behind"


class HostMemoryShort(Unavailable):
    """The job needs about {needed_mib} MiB of memory, and {available_mib} MiB are free on this worker."""

    code = "memory-short"


class DeviceOutOfMemory(Unavailable):
    """The device ran out of memory: {detail}"""

    code = "out-of-memory"
    retry_class = "resource"
