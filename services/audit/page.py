"""From a statement to what a page says: plain strings in the order in which a person reads them. Both templates take the same page.

A page is JSON: what was asked, what was done, what was found, how sure that is, what was not tested, how to check it, and all readings.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from services.audit import overview, words
from services.audit.limitations import SHADOW_BAND

JSON = dict[str, Any]
Statement = Mapping[str, Any]
Rows = list[list[str]]
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
TO_THE_SECOND = "%H:%M:%S"
NONE = "\N{EN DASH}"


def page_of(statement: Statement, *, digest: str, figures: Mapping[str, Mapping[str, Any]]) -> JSON:
    """Return the page. `figures` is the data of drawn figures by digest; `digest` that of the statement's canonical JSON."""
    told = statement["predicate"]
    verdicts = {block["job"]: block["verdict"] for block in told["verification"]}
    models = [_model(told, block, figures) for block in _deciding(told)]
    return {
        "title": "Audit report of a deletion request",
        "request": told["request"],
        "revision": str(told["revision"]),
        "supersedes": told["supersedes"] or "",
        "digest": digest,
        "completed": moment(told["clock"]["completed"]),
        "verdict": {
            "word": words.VERDICTS[told["verdict"]],
            "tone": told["verdict"] or "none",
            "sentence": told["sentence"],
            "codes": [words.plainly(code) for code in told["failure_codes"]],
        },
        "asked": _asked(told),
        "done": [_step(run, number, verdicts.get(run["job"])) for number, run in enumerate(told["processing"], start=1)],
        "versions": _versions(told),
        "recipients": [_recipient(one) for one in told["recipients"]],
        "found": models,
        "sure": _sure(told),
        "not_tested": [words.plainly(name) for name in told["not_tested"]],
        "limitations": [{"code": one["code"], "text": one["text"]} for one in told["limitations"]],
        "left_out": _left_out(told, figures),
        "retention": _retention(told),
        "checks": _checks({**told, "subjects": statement["subject"]}),
        "residual_risk": told["residual_risk"],
        "annex": [_annex(told, block) for block in told["verification"]],
    }


def moment(text: str | None, *, pattern: str = "%H:%M") -> str:
    """Return a time as `21 November 2026, 14:13 UTC`."""
    if text is None:
        return NONE
    at = datetime.fromisoformat(text).astimezone(UTC)
    return f"{at.day} {MONTHS[at.month - 1]} {at.year}, {at.strftime(pattern)} UTC"


def shown(name: str, value: str | None) -> str:
    """Return a number of the test `name` for a reader: shares in per cent with one decimal, other numbers with three."""
    if value is None:
        return NONE
    exact = Decimal(value)
    return f"{100 * exact:.1f}\N{NO-BREAK SPACE}%" if name in words.PERCENT else f"{exact:.3f}"


def _deciding(told: Statement) -> list[Mapping[str, Any]]:
    """Return the verification block of the run that decided for each model, in the order of the models."""
    targets = {figure["job"] for figure in told["figures"]}
    blocks = told["verification"]
    return [block for block in blocks if block["job"] in targets] or list(blocks[-1:])


def _asked(told: Statement) -> Rows:
    scope, clock, identity = told["scope"], told["clock"], told["identity"]
    rows = [
        ["Request", f"Forget {words.KINDS.get(scope['kind'], words.plainly(str(scope['kind'])))}"],
        *([["Classes", ", ".join(map(str, scope["labels"]))]] if scope["labels"] else []),
        *([[f"Values {bound}", str(scope[bound])] for bound in ("above", "below") if bound in scope]),
        ["Records found", str(scope["samples_count"])],
        ["Models that learned from them", ", ".join(str(target["model"]) for target in scope["targets"] if target["model"]) or "none"],
        ["Received", moment(clock["received"])],
        ["Due", f"{moment(clock['due'])} ({'met' if clock['on_time'] else 'missed'})"],
        *(["Extended", f"on {moment(one['at'])}, from {moment(one['original_due'])}: {one['reason']}"] for one in clock["extensions"]),
        *(["Clock paused", f"from {moment(one['from'])} to {moment(one['to'])}: {one['reason']}"] for one in clock["pauses"]),
        ["Regulation", str(clock["regulation"]).upper()],
        ["Identity", words.IDENTITY.get(identity["mode"], words.plainly(str(identity["mode"])))],
    ]
    decision = told["decision"]
    ground = decision["ground"] or decision["exemption"]
    return [
        *rows,
        *([["Identity verified", f"{moment(identity['verified_at'])}, by {identity['verified_by'] or NONE}"]] if identity.get("verified_at") else []),
        *([["Ground", words.plainly(ground)]] if ground else []),
        *([["Reason given", decision["note"]]] if decision.get("note") else []),
    ]


def _step(run: Mapping[str, Any], number: int, verdict: str | None) -> JSON:
    """Return what one run did; one that ended because its tests were inconclusive is not called failed."""
    name, meaning = words.GUARANTEES.get(run["guarantee"], (words.plainly(str(run["guarantee"] or "none")), ""))
    timing = [
        f"method {run['method_seconds']} s" if run["method_seconds"] else "",
        f"tests {run['evaluation_seconds']} s" if run["evaluation_seconds"] else "",
        _references_took(run),
    ]
    facts = [
        ["Claim", f"{name}. {meaning}".strip()],
        ["Why this method", str((run["choice"] or {}).get("reason", NONE))],
        ["Ran", f"{moment(run['started'], pattern=TO_THE_SECOND)} to {moment(run['ended'], pattern=TO_THE_SECOND)}"],
        ["Time", ", ".join(part for part in timing if part) or NONE],
    ]
    return {
        "heading": f"{number}. {words.METHODS.get(run['method'], words.plainly(str(run['method'])))}",
        "state": words.plainly("inconclusive" if (run["state"], verdict) == ("failed", "inconclusive") else run["state"]),
        "facts": facts,
    }


def _references_took(run: Mapping[str, Any]) -> str:
    """Return what the models that the readings are held against took: trained for this run, or kept from an earlier one; older reports tell less."""
    one = f", one of them {run['retrain_seconds']} s" if run["retrain_seconds"] else ""
    if run.get("reference_seconds"):
        return f"{words.REFERENCES_FROM[run['reference_from']]} {run['reference_seconds']} s{one}"
    return f"training the retrained reference {run['retrain_seconds']} s" if run["retrain_seconds"] else ""


def _versions(told: Statement) -> Rows:
    """Return what became of each version: model, version, what it is now."""
    rows: Rows = []
    for model in told["artifacts"]:
        name, published = str(model["model"]), model["published"]
        for old in model["superseded"]:
            if old.get("destroyed_at"):
                until = f" on {moment(old['destroyed_at'])}; certificate {old['certificate'] or 'not made yet'}"
                rows.append([name, str(old["version"]), words.DISPOSITIONS["destroyed"] + until])
                continue
            until = f", to be destroyed on {moment(old['purge_at'])}" if old["purge_at"] and old["disposition"] == "quarantined" else ""
            kept = f", under legal hold {', '.join(old['holds'])}" if old.get("holds") else ""
            fate = words.DISPOSITIONS.get(old["disposition"], words.plainly(str(old["disposition"])))
            rows.append([name, str(old["version"]), fate + until + kept])
        if published is not None:
            rows.append([name, str(published["version"]), "published; in use from now on"])
        for left in model.get("candidates", ()):
            fate = f"did not pass; {words.DISPOSITIONS['quarantined']}"
            if left["destroyed_at"]:
                fate = f"did not pass; destroyed on {moment(left['destroyed_at'])}; certificate {left['certificate']}"
            rows.append([name, f"attempt {left['rung']}", fate])
    return rows + _data(told)


def _data(told: Statement) -> Rows:
    """Return what became of each dataset version that held the records, in the same columns; reports from before tell of none."""
    rows: Rows = []
    for old in (one for model in told["artifacts"] for one in model.get("datasets", ())):
        if old["destroyed_at"]:
            fate = f"{words.DISPOSITIONS['destroyed']} on {moment(old['destroyed_at'])}; certificate {old['certificate'] or 'not made yet'}"
        else:
            until = f", to be destroyed on {moment(old['purge_at'])}" if old["purge_at"] else ""
            kept = f", under legal hold {', '.join(old['holds'])}" if old["holds"] else ""
            fate = words.DISPOSITIONS.get(old["disposition"], words.plainly(str(old["disposition"]))) + until + kept
        row = [f"dataset {old['dataset']}", str(old["version"]), fate]
        if row not in rows:  # models of one request share its data
            rows.append(row)
    return rows


def _recipient(one: Mapping[str, Any]) -> list[str]:
    """Return who was told of a superseded version: recipient, what they had, how and when, what came of it."""
    told = f"{words.plainly(one['channel'])}, {moment(one['sent_at'])}"
    return [one["recipient"], f"{one['model']} version {one['version']}", told, words.plainly(one["outcome"])]


def _model(told: Statement, block: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> JSON:
    """Return what was found for one model: the tests that decide, and its figures."""
    run = next(run for run in told["processing"] if run["job"] == block["job"])
    readings = [*block["metrics"], *block["attacks"]]
    gates = [reading for reading in readings if reading["detail"].get("gate")]
    mine = [figure for figure in told["figures"] if figure["job"] == block["job"]]
    drawn = [(number, figures[figure["data_digest"]]) for number, figure in enumerate(mine) if figure["data_digest"] in figures]
    exact = run["guarantee"] == "exact"
    return {
        "model": str(mine[0]["model"]) if mine else "",
        "sentence": block["sentence"] or "",
        "remark": "This version was computed without the records, so the tests are printed and do not decide." if exact else "",
        "tests": [_test(reading) for reading in gates],
        "figures": [
            {"key": f"{block['job'][-8:]}-{number}", "title": one["title"], "caption": one["caption"], "note": one["note"], "data": dict(one)}
            for number, one in drawn
        ],
    }


def _test(reading: Mapping[str, Any]) -> JSON:
    """Return one row of the table of tests."""
    name = reading["name"]
    result = words.STATES.get(reading["state"], words.plainly(str(reading["state"])))
    detectable = reading["detail"].get("detectable")
    if "auc" in name or "mia" in name or name.endswith("attack"):
        unseen = reading["state"] in {"inside", "undecided"}
        result += f"; not detected with this power: a difference of {shown(name, detectable)} would have been" if unseen and detectable else ""
    if reading["state"] == "null" and reading["reason"]:
        result += f": {words.reason(reading['reason'])}"
    return {
        "name": words.title_of(name),
        "meaning": words.meaning_of(name),
        "records": f"{words.SPLITS.get(reading['split'], words.plainly(reading['split']))} ({reading['n'] or 0})",
        "before": shown(name, reading["before"]),
        "after": shown(name, reading["after"]),
        "interval": _interval(reading),
        "reference": shown(name, reading["reference"]),
        "limits": _limits(reading),
        "result": result,
        "tone": str(reading["state"]),
    }


def _interval(reading: Mapping[str, Any]) -> str:
    low, high = reading["interval"]
    return "" if low is None or high is None else f"{shown(reading['name'], low)} to {shown(reading['name'], high)}"


def _limits(reading: Mapping[str, Any]) -> str:
    """Return the range that the plan allows, as words."""
    band, name = reading["band"], reading["name"]
    if not band or band.get("epsilon") is None:
        return NONE
    width = shown(name, band["epsilon"])
    if band.get("reference") is None:
        return f"{'at most' if reading['direction'] == 'max' else 'at least'} {width}"
    of_change = reading["split"].startswith("retain") and reading["direction"] == "max"  # held against the model before, not the retrained one
    beside = reading["before"] if of_change else band["reference"]
    ways = {"max": "at most {} above", "min": "at most {} below", "band": "within {} of"}
    return f"{ways[reading['direction']].format(width)} {shown(name, beside)}" if reading["direction"] in ways else NONE


def _sure(told: Statement) -> list[str]:
    """Return how far what was found carries, one thought a paragraph."""
    said: list[str] = []
    for block in _deciding(told):
        said += _compared(block["reference"])
        said += _power(block["plan"]["body"].get("power") or {})
        looks = int(block["plan"]["body"].get("looks") or 1)
        if looks > 1:
            said.append(words.LOOKS.format(looks=looks))
        gates = [reading for reading in (*block["metrics"], *block["attacks"]) if reading["detail"].get("gate")]
        levels = sorted({reading["level"] for reading in gates if reading["level"]})
        if levels:
            said.append(f"Each number comes with an interval that holds the true value in {100 * Decimal(levels[0]):.0f} of 100 repetitions.")
        noticed = [
            f"{words.title_of(one['name'])} {shown(one['name'], one['detail']['detectable'])}" for one in gates if one["detail"].get("detectable")
        ]
        if noticed:
            said.append(f"The smallest difference that each deciding test would have called outside its limits: {'; '.join(dict.fromkeys(noticed))}.")
    rungs = len(told["processing"])
    if rungs > 1:
        said.append(f"{rungs} attempts were made, one after another; each had to pass the same plan.")
    said += [_drift(one) for one in told.get("ledger", ()) if one["mechanism"]]
    return list(dict.fromkeys(said))


def _compared(reference: Mapping[str, Any]) -> list[str]:
    """Return what the readings of a run are held against, and why where that is not what the policy asks for."""
    count = int(reference.get("models") or 0)
    if reference.get("mode") == SHADOW_BAND:
        return [words.HALVES.format(unseen=reference["sentence"], models=count)]
    beside = {1: "one retrained model", 2: "two retrained models"}.get(count, f"{count} retrained models")
    said = (
        f"The readings are held against {beside}: trained anew by the same recipe without the forgotten records."
        if count
        else "No retrained reference was available: the readings are held against limits of the policy alone."
    )
    return [said, *([reference["in_stead_of"]["text"]] if reference.get("in_stead_of") else [])]


def _drift(one: Mapping[str, Any]) -> str:
    """Return how far removals have moved a model since its last exact training, and what is left of the policy's caps."""
    left = ", ".join(f"{words.DRIFT_PARTS.get(name, words.plainly(name))} {float(value):g}" for name, value in sorted(one["remaining"].items()))
    since = f"{moment(one['reset_at'])}" if one["reset_at"] else "it was uploaded"
    removals = "1 removal was" if one["removals"] == 1 else f"{one['removals']} removals were"
    return words.DRIFT.format(model=one["model"], removals=removals, since=since, left=left or NONE)


def _power(told: Mapping[str, Any]) -> list[str]:
    """Return what the plan foresaw of itself, and which limits it widened for that."""
    if not told:
        return []
    if told.get("retrained_passes") is None:
        unknown = list(dict.fromkeys(words.title_of(name.partition("/")[0]) for name in told.get("not_simulated", ())))
        reason = f"{told.get('reason')} ({', '.join(unknown)})" if unknown else told.get("reason")
        return [words.POWER_UNKNOWN.format(reason=reason), *([words.NOBODY_COULD] if told.get("cannot_pass") else [])]
    chances = {name: _chance(told.get(name)) for name in ("retrained_passes", "original_fails")}
    moved = "; ".join(f"{words.title_of(one['name'])} from {_width(one['from'])} to {_width(one['to'])}" for one in told.get("widened", ()))
    return [
        words.POWER.format(**chances),
        *([words.WIDENED.format(limits=moved)] if moved else []),
        *([words.NOBODY_COULD] if told.get("cannot_pass") else []),
    ]


def _chance(value: float | None) -> str:
    return "a chance that is not known" if value is None else f"a chance of {100 * value:.0f}\N{NO-BREAK SPACE}%"


def _width(value: float) -> str:
    return f"{value:g}"


def _left_out(told: Statement, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the figures that are not drawn, each with its reason."""
    missing = [figure for figure in told["figures"] if figure["data_digest"] is None or figure["data_digest"] not in figures]
    lines = [
        f"{words.FIGURES.get(one['name'], words.plainly(one['name']).capitalize())}: "
        f"{words.reason(one['reason']) if one['reason'] else 'its data are no longer held'}."
        for one in missing
    ]
    return list(dict.fromkeys(lines))


def _retention(told: Statement) -> Rows:
    kept = told.get("retention") or {}
    days = {
        "requests_days": "This request and its reports",
        "identifiers_days": "Identifiers of the person",
        "candidates_days": "Models that did not pass",
    }
    rows = [[label, f"{kept[name]} days"] for name, label in days.items() if kept.get(name) is not None]
    review = [["This report is looked at again", moment(told["next_review"])]] if told.get("next_review") else []
    return [
        ["Backups", "Copies in backups, and copies that recipients hold, are outside what this service sees."],
        *rows,
        *review,
        ["Anonymisation", "Not used in place of deletion: the records leave the data set, and the model is changed or trained anew."],
    ]


def _checks(told: Statement) -> Rows:
    """Return what a reader can compare: digests and times."""
    rows = [[f"Published version {one['name']}", one["digest"]["sha256"]] for one in told["subjects"]]
    rows += [
        [f"Plan of {block['job']}, frozen {moment(block['plan']['frozen_at'])}", block["plan"]["digest"] or NONE] for block in told["verification"]
    ]
    rows += [
        [f"Data set of {target['model']}, digest before the removal", target["dataset_digest"]]
        for target in told["scope"]["targets"]
        if target.get("dataset_digest")
    ]
    rows += [
        [f"Records forgotten by {target['model']}, commitment", target["samples_commitment"]]
        for target in told["scope"]["targets"]
        if target["model"]
    ]
    return rows


def _annex(told: Statement, block: Mapping[str, Any]) -> JSON:
    """Return every reading of one run, and what it ran with."""
    run = next(run for run in told["processing"] if run["job"] == block["job"])
    readings = [
        [
            words.plainly(reading["name"]),
            words.plainly(reading["split"]),
            *(reading[column] or NONE for column in ("before", "after", "reference")),
            " to ".join(reading["interval"]) if all(reading["interval"]) else NONE,
            str(reading["n"] or NONE),
            (reading["state"] or NONE) if not reading["reason"] else f"{reading['state']}: {words.plainly(reading['reason'])}",
        ]
        for reading in (*block["metrics"], *block["attacks"])
    ]
    seeds = ", ".join(f"{name} {seed}" for name, seed in sorted(run["seeds"].items()))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    return {
        "heading": f"{overview.words(str(run['method']))}, {block['job']}",
        "verdict": str(block["verdict"] or NONE),
        "readings": readings,
        "facts": [
            *(_attack(row) for row in block["attacks"]),
            ["Seeds", seeds or NONE],
            ["Software", versions or NONE],
            ["Code", run["code_digest"] or NONE],
        ],
    }


def _attack(row: Mapping[str, Any]) -> list[str]:
    """Return who stood on either side of an attack, what it says at few false alarms, and where it comes from."""
    rate = row.get("tpr_at_fpr")
    parts = [
        f"{row['n_members']} members, {row['n_nonmembers']} others" if row.get("n_members") is not None else "",
        f"{row['shadows']} reference models" if row.get("shadows") is not None else "",
        f"finds {shown('accuracy', rate['value'])} of members at {shown('accuracy', rate['fpr'])} false alarms" if rate else "",
        f"an epsilon below {row['eps_lo']} is refuted" if row.get("eps_lo") is not None else "",
        f"level {row['alpha']} over all tests ({row['correction']})" if row.get("alpha") is not None else "",
        str(row.get("paper") or ""),
    ]
    return [f"{words.plainly(row['name'])}, {words.plainly(row['split'])}", "; ".join(part for part in parts if part) or NONE]
