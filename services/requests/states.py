"""The state machines of requests, jobs and targets: one table each, read by code, `allowed`, docs and property tests."""

from collections.abc import Mapping

from services.errors import IllegalTransition

Table = Mapping[str, Mapping[str, str]]

RESUME = "<resume_state>"

REQUEST: Table = {
    "received": {
        "identity_required": "identity_pending",
        "identity_asserted": "pending_review",
        "duplicate_found": "duplicate",
        "hold_placed": "on_hold",
        "cancel": "cancelled",
    },
    "identity_pending": {
        "identity_verified": "pending_review",
        "identity_timeout": "expired",
        "duplicate_found": "duplicate",
        "deny": "denied",
        "hold_placed": "on_hold",
        "cancel": "cancelled",
    },
    "pending_review": {"approve": "approved", "deny": "denied", "duplicate_found": "duplicate", "hold_placed": "on_hold", "cancel": "cancelled"},
    "approved": {
        "start": "in_progress",
        "finish": "completed",
        "finish_partial": "partially_completed",
        "hold_placed": "on_hold",
        "cancel": "cancelled",
    },
    "on_hold": {"hold_released": RESUME, "deny": "denied", "cancel": "cancelled"},
    "in_progress": {
        "release_needed": "awaiting_release",
        "finish": "completed",
        "finish_partial": "partially_completed",
        "stuck": "needs_attention",
        "hold_placed": "on_hold",
        "cancel": "cancelled",
    },
    "awaiting_release": {"release": "in_progress", "reject": "needs_attention", "hold_placed": "on_hold", "cancel": "cancelled"},
    "needs_attention": {
        "retry": "in_progress",
        "deny": "denied",
        "finish_partial": "partially_completed",
        "hold_placed": "on_hold",
        "cancel": "cancelled",
    },
    "completed": {},
    "partially_completed": {},
    "denied": {},
    "duplicate": {},
    "cancelled": {},
    "expired": {},
}

JOB: Table = {
    "queued": {"claim": "running", "cancel": "cancelled"},
    "running": {
        "evaluated": "verifying",
        "resume_publish": "publishing",
        "finished": "succeeded",
        "transient": "queued",
        "permanent": "failed",
        "lease_expired": "running",
        "crash_limit": "needs_attention",
        "cancel": "cancelled",
    },
    "verifying": {
        "passed": "publishing",
        "release_needed": "needs_attention",
        "verdict_not_passed": "failed",
        "transient": "queued",
        "permanent": "failed",
        "lease_expired": "running",
        "crash_limit": "needs_attention",
        "cancel": "cancelled",
    },
    "publishing": {
        "published": "succeeded",
        "rebase": "queued",
        "transient": "queued",
        "lease_expired": "running",
        "crash_limit": "needs_attention",
        "permanent": "failed",
    },
    "needs_attention": {"retry": "queued", "release": "queued", "abandon": "failed", "cancel": "cancelled"},
    "succeeded": {},
    "failed": {},
    "cancelled": {},
}

TARGET: Table = {
    "located": {"queue": "queued", "exempt": "exempt", "miss": "not_found", "stuck": "stuck", "cancel": "cancelled", "covered": "published"},
    "queued": {"claim": "running", "exempt": "exempt", "miss": "not_found", "stuck": "stuck", "cancel": "cancelled", "covered": "published"},
    "running": {"publish": "published", "requeue": "queued", "exempt": "exempt", "miss": "not_found", "stuck": "stuck", "cancel": "cancelled"},
    "stuck": {"queue": "queued", "exempt": "exempt", "cancel": "cancelled"},
    "published": {},
    "exempt": {},
    "not_found": {},
    "cancelled": {},
}

DRP = {
    "received": "open",
    "identity_pending": "open",
    "pending_review": "open",
    "approved": "in_progress",
    "on_hold": "in_progress",
    "in_progress": "in_progress",
    "awaiting_release": "in_progress",
    "needs_attention": "in_progress",
    "completed": "fulfilled",
    "partially_completed": "fulfilled",
    "denied": "denied",
    "cancelled": "revoked",
    "expired": "expired",
    "duplicate": "in_progress",
}

OPENDSR = {
    "received": "pending",
    "identity_pending": "pending",
    "pending_review": "pending",
    "approved": "in_progress",
    "on_hold": "in_progress",
    "in_progress": "in_progress",
    "awaiting_release": "in_progress",
    "needs_attention": "in_progress",
    "completed": "completed",
    "partially_completed": "completed",
    "denied": "cancelled",
    "cancelled": "cancelled",
    "expired": "cancelled",
    "duplicate": "in_progress",
}


def terminal(table: Table, state: str) -> bool:
    """Say whether nothing can follow `state`."""
    return not table[state]


def allowed(table: Table, state: str) -> list[str]:
    """Return the events that `state` takes, sorted."""
    return sorted(table[state])


def following(table: Table, state: str, event: str, *, thing: str, resume: str | None = None) -> str:
    """Return the state after `event`. Raises IllegalTransition with the events that would do."""
    after = table[state].get(event)
    if after is None:
        raise IllegalTransition(thing=thing, state=state, event=event, allowed=", ".join(allowed(table, state)) or "nothing")
    if after == RESUME:
        if resume is None:
            raise IllegalTransition(thing=thing, state=state, event=event, allowed=", ".join(allowed(table, state)))
        return resume
    return after
