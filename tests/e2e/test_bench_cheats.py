"""What the suite of fakes tells of its rows."""

from bench.cheats import told


def row(case, verdict, *codes, honest=False):
    return {"case": case, "data": "digits", "kind": "class", "seed": 1, "verdict": verdict, "codes": list(codes), "honest": honest}


def test_what_was_not_judged_and_what_no_plan_can_pass_count_neither_way():
    rows = [
        row("nudged", "failed", "leak"), row("one_donor", "passed"), row("ascended", "refused", "diverged"),
        row("pruned", "inconclusive", "cannot_pass"), row("retrained 1", "passed", honest=True), row("retrained 2", "inconclusive", honest=True),
    ]  # fmt: skip

    lines = list(told(rows))

    assert lines[0].startswith("fakes caught: 1 of 2 (0.500, ")
    assert lines[1].startswith("honest models passed: 1 of 2 (0.500, ")
    assert lines[2] == "passed although they are fakes: one_donor (digits, class, seed 1)"
