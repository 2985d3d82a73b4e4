"""The rules that a plan names are those by which the offline verifier recomputes its verdict; a plan that names none is judged by the rules before."""

import pytest

from cli.verifier import allowed_verdicts, gates_of

FORGET = {"kind": "metric", "name": "accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
FLOOR = {"total": 0.01, "worst_class": 0.03}


def number(value, half=0.004, **more):
    return {"value": str(value), "low": str(round(value - half, 6)), "high": str(round(value + half, 6)), **more}


def row(split, *, paired, n=500, before="0.95", **detail):
    held = {"name": "accuracy", "split": split, "n": n, "level": "0.9", "band": None, "state": None, "before": before, "reference": "0.5"}
    return {**held, "after": "0.5", "interval": ["0.49", "0.51"], "detail": {"paired": paired, **detail}}


def allowed(metrics, guarantee, **plan):
    body = {"readings": [FORGET], "alpha": 0.05, **plan}
    run = {"metrics": metrics, "attacks": [], "plan": {"body": body}, "failure_codes": []}
    return allowed_verdicts(gates_of(run), run, guarantee)


@pytest.mark.parametrize("guarantee", ["approximate", "exact"])
def test_a_drop_that_retraining_has_as_well_fails_by_the_older_rule_alone(guarantee):
    metrics = [row("forget_train", paired=number(0.0)), row("retain_test", paired=number(0.0), change=number(-0.05))]

    assert allowed(metrics, guarantee, utility=FLOOR) == {"failed"}
    assert "passed" in allowed(metrics, guarantee, utility={**FLOOR, "besides": "retrained"})
    lost = [metrics[0], row("retain_test", paired=number(-0.05), change=number(-0.05))]
    assert allowed(lost, guarantee, utility={**FLOOR, "besides": "retrained"}) == {"failed"}


def test_so_it_is_with_one_class():
    classes = {"3": number(-0.3, 0.02, n=100)}
    alike = {"3": number(0.0, 0.02, n=100)}
    change = number(0.0, per_class=classes)
    metrics = [row("forget_train", paired=number(0.0)), row("retain_test", paired=number(0.0, per_class=alike), change=change)]

    assert allowed(metrics, "approximate", utility=FLOOR) == {"failed"}
    assert "passed" in allowed(metrics, "approximate", utility={**FLOOR, "besides": "retrained"})


def test_few_records_fail_by_the_older_rule_alone():
    metrics = [row("forget_train", paired=number(0.4, 0.05), n=10)]

    assert allowed(metrics, "approximate") == {"failed"}
    assert allowed(metrics, "approximate", least_records=16) == {"inconclusive"}


@pytest.mark.parametrize(("low", "high", "passes"), [("0.5600", "0.6000", True), ("0.5400", "0.6200", False), ("0.4000", "0.4400", True)])
def test_an_original_that_the_test_does_not_tell_passes_by_the_older_rule_alone(low, high, passes):
    metrics = [row("forget_train", paired=number(0.0), before="0.58")]
    metrics[0]["detail"]["before"] = {"low": low, "high": high}

    assert "passed" in allowed(metrics, "approximate")
    assert ("passed" in allowed(metrics, "approximate", sensitivity="interval")) is passes


def test_an_original_without_an_interval_is_not_told():
    metrics = [row("forget_train", paired=number(0.0))]

    assert "passed" in allowed(metrics, "approximate")
    assert "passed" not in allowed(metrics, "approximate", sensitivity="interval")
