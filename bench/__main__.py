"""`python -m bench NAME…`: each of NAMES prints one line of JSON. Times are of this machine; the ratios are made in one run.

The others are asked for one at a time, with options of their own (`python -m bench methods --help`).
"""

import importlib
import sys

NAMES = ("gateway", "latency", "transfer", "loop", "coalescing", "membership")
WITH_OPTIONS = {
    "methods": "the unlearning methods of classifiers, each beside a retrained model",
    "regression": "those for real-valued targets",
    "forecasting": "those for series",
    "gan": "those for image generators",
    "language": "those for language models",
    "cheats": "whether the audit catches fakes and passes honest work",
    "audit": "what a method leaves behind of what it forgot, by many runs and by canaries",
    "auto": "what becomes of requests that leave the method open",
    "speed": "how fast the methods are",
    "worth": "what forgetting costs with its evidence, beside one retraining",
    "log": "the audit log at scale",
    "table": "tables of the lines of the methods bench, from FILE…",
    "applicability": "the page of what kinds of data the methods serve",
    "catalogue": "the page of methods",
}

MODULES = {"table": "report", "forecasting": "regression"}
SHARED = ("regression", "forecasting")  # one module, told which
PAGES = ("applicability", "catalogue")  # without options


def main(names: list[str]) -> int:
    """Run the named benches one after another, or the one that is named first with its options; return 2 for an unknown name."""
    if names and names[0] in WITH_OPTIONS:
        module = importlib.import_module(f"bench.{MODULES.get(names[0], names[0])}")
        return module.main(*([names[0]] if names[0] in SHARED else []), *([] if names[0] in PAGES else [names[1:]]))
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        print(
            f"unknown: {', '.join(unknown) or 'nothing named'}\nusage: python -m bench NAME…, of {' '.join(NAMES)}; or one of these", file=sys.stderr
        )
        for name, what in WITH_OPTIONS.items():
            print(f"  {name:14s} {what}", file=sys.stderr)
        return 2
    for name in names:
        print(importlib.import_module(f"bench.{name}").measure().line(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
