"""`python -m bench NAME…`: each bench prints one line of JSON. Times are of this machine; the ratios are made in one run.

`python -m bench methods [--help]` measures the unlearning methods and has options of its own, `speed [--help]` how fast they are,
`regression [--help]` and `forecasting [--help]` the methods for real-valued targets; `table FILE…`
makes tables of their lines, `catalogue` prints the page of methods, `applicability` the page of what kinds of data they serve.
"""

import importlib
import sys

NAMES = ("gateway", "latency", "transfer", "loop", "coalescing")


def main(names: list[str]) -> int:
    """Run the named benches one after another, or the methods bench with its options; return 2 for an unknown name."""
    if names[:1] == ["methods"]:
        return importlib.import_module("bench.methods").main(names[1:])
    if names[:1] in (["regression"], ["forecasting"]):
        return importlib.import_module("bench.regression").main(names[0], names[1:])
    if names[:1] == ["speed"]:
        return importlib.import_module("bench.speed").main(names[1:])
    if names[:1] == ["table"]:
        return importlib.import_module("bench.report").main(names[1:])
    if names[:1] == ["applicability"]:
        return importlib.import_module("bench.applicability").main()
    if names == ["catalogue"]:
        return importlib.import_module("bench.catalogue").main()
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        print(
            f"usage: python -m bench {' '.join(NAMES)} | methods [--help] | regression [--help] | forecasting [--help] | speed [--help] | table FILE… | applicability | catalogue   (unknown: {', '.join(unknown) or 'nothing named'})",
            file=sys.stderr,
        )
        return 2
    for name in names:
        print(importlib.import_module(f"bench.{name}").measure().line(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
