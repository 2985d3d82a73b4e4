"""What the suite of fakes tells of its rows, and how many fakes each task has."""

from types import SimpleNamespace

import pytest
import torch

from bench import cheat_tables
from bench.cheat_worlds import people_alike
from bench.cheats import FAKES, parse, referred
from services.tenants.policies import GDPR_DEFAULT
from services.verification.statistics.intervals import clopper_pearson

PLAN = {"cannot_pass": False, "retrained_passes": 0.97, "original_fails": 1.0}


def row(case, verdict, *codes, honest=False, seed=1, states=None, plan=PLAN):
    return {
        "task": "classification", "data": "digits", "kind": "class", "records": 124, "seed": seed, "policy": "demo", "case": case, "verdict": verdict,
        "codes": list(codes), "honest": honest, "states": states or {}, "plan": plan,
    }  # fmt: skip


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_what_was_not_judged_and_what_no_plan_can_pass_count_neither_way():
    rows = [
        row("nudged", "failed", "leak"), row("one_donor", "passed"), row("ascended", "refused", "diverged"),
        row("pruned", "failed", "leak", seed=2), row("retrained 1", "inconclusive", "cannot_pass", honest=True, seed=2),
        row("retrained 1", "inconclusive", honest=True, seed=3, plan={**PLAN, "cannot_pass": True}),
        row("retrained 1", "passed", honest=True), row("retrained 2", "inconclusive", honest=True),
    ]  # fmt: skip

    lines = list(cheat_tables.shares(rows))

    assert lines[0].startswith("fakes caught: 1 of 2 (0.500, ")
    assert lines[1].startswith("honest models passed: 1 of 2 (0.500, ")
    assert lines[2] == "passed although they are fakes: one_donor (digits, class, seed 1)"
    assert [found["case"] for found in cheat_tables.got_through(rows)] == ["one_donor"]


def test_the_work_of_methods_is_listed_and_is_neither_a_fake_nor_honest():
    rows = [row("nudged", "failed", "leak"), row("retrained 1", "passed", honest=True), row("method unsir", "passed", honest=None)]

    listed = cells(cheat_tables.verdicts(rows))

    assert listed[4] == ["fakes", "honest", "methods"]
    assert [column[2] for column in listed[5:7]] == ["1", "0"]  # passed, failed
    assert [line.split(" (")[0] for line in cheat_tables.shares(rows)] == ["fakes caught: 1 of 1", "honest models passed: 1 of 1"]
    assert cells(cheat_tables.verdicts(rows[:2]))[4] == ["fakes", "honest"]


def test_a_gate_has_fakes_and_honest_models_on_both_sides_with_exact_intervals():
    rows = [row(f"fake {n}", "failed", "leak", states={"mia_v2/forget_train": "outside" if n < 3 else "inside"}) for n in range(4)]
    rows += [row(f"retrained {n}", "passed", honest=True, states={"mia_v2/forget_train": "insensitive"}) for n in range(5)]

    found = cells(cheat_tables.readings([*rows, row("head", "failed", "representation")]))

    low, high = clopper_pearson(3, 4, level=0.95)
    assert [column[0] for column in found[:2]] == ["mia_v2/forget_train", f"3 of 4 [{low:.2f}, {high:.2f}]"]
    assert [column[0].split(" [")[0] for column in found[2:]] == ["1 of 4", "0 of 5", "5 of 5"]
    assert [column[-1].split(" [")[0] for column in found[:2]] == ["rule: representation", "1 of 5"]


def test_the_share_of_plans_that_cannot_pass_is_told_for_each_number_of_records():
    plans = [{**row("plan", "", seed=seed, plan={**PLAN, "cannot_pass": seed < 3}), "records": 16} for seed in range(1, 5)]
    for plan in plans:
        del plan["honest"], plan["verdict"], plan["codes"]

    found = cells(cheat_tables.plans([*plans, row("nudged", "failed", "leak")]))

    assert found[2] == ["16", "124"]
    assert [told.split(" [")[0] for told in found[4]] == ["2 of 4", "0 of 1"]


@pytest.mark.parametrize("task", ["regression", "image_generation", "language_model"])
def test_every_task_has_fakes_and_a_class_request_at_least_28(task):
    assert sum(task in fake.tasks for fake in FAKES.values()) >= 10
    assert sum("classification" in fake.tasks and "class" in fake.kinds for fake in FAKES.values()) >= 28
    assert sum("classification" in fake.tasks and "records" in fake.kinds for fake in FAKES.values()) >= 24


def test_an_unknown_fake_or_set_is_refused():
    for arguments in (["--fakes", "nothing"], ["--data", "nothing"]):
        with pytest.raises(SystemExit):
            parse(arguments)


def test_records_may_be_held_against_models_on_halves_and_a_class_may_not():
    records, of_class = (
        SimpleNamespace(kind=kind, splits=SimpleNamespace(span=None), task=SimpleNamespace(name="classification")) for kind in ("subset", "class")
    )

    assert referred(GDPR_DEFAULT, "shadow-band", records).verification.reference == "shadow-band"
    assert referred(GDPR_DEFAULT, "retrained", of_class).verification.reference == "retrained"
    with pytest.raises(SystemExit, match="say nothing of a class"):
        referred(GDPR_DEFAULT, "shadow-band", of_class)


def test_a_request_that_stands_aside_is_judged_by_name_alone():
    assert parse(["--data", "alike_digits"]).data == ["alike_digits"]
    assert not {"alike_digits"} & {*parse([]).data, *parse(["--data", "shipped"]).data}


def test_people_with_like_records_have_five_each_of_one_label_that_differ():
    held, alike, others = people_alike()

    assert (len(alike), len(others), len(held.train)) == (500, 1100, 1600)
    assert len(set(held.train.ids)) == 1600
    assert torch.equal(alike.y.view(5, 100), alike.y[:100].expand(5, 100))
    apart = (alike.x[100:].float() - alike.x[:100].repeat(4, 1, 1, 1).float()).abs().mean()
    assert 2 < apart < 20
