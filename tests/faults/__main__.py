"""The large run: ``python -m tests.faults --seconds 600 --seed 1`` from the repository's root.

Tries all kinds of faults in turn until the time is over, prints how many of each were tried, and for every failure the
command that repeats it. The exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]


def main() -> int:
    from trials import KINDS, Bench, run_trial

    from bczoo.core.threads import tune_for_cpu

    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be repeated")
    parser.add_argument("--number", type=int, help="only the trial of this number, as a failure tells it")
    options = parser.parse_args()
    tune_for_cpu()
    kinds = options.kind or list(KINDS)
    bench = Bench()
    if options.number is None:
        bench.make()
    spent = dict.fromkeys(kinds, 0.0)
    tried = dict.fromkeys(kinds, 0)
    failed: dict[str, list[int]] = {kind: [] for kind in kinds}
    end = time.monotonic() + options.seconds
    while any(n == 0 for n in tried.values()) or (options.number is None and time.monotonic() < end):
        kind = min(kinds, key=lambda kind: (tried[kind] > 0, spent[kind]))  # the same time for all
        number = tried[kind] if options.number is None else options.number
        started = time.monotonic()
        told = run_trial(kind, options.seed, number, bench)
        spent[kind] += time.monotonic() - started
        tried[kind] += 1
        if told:
            failed[kind].append(number)
            again = f"python -m tests.faults --seed {options.seed} --kind '{kind}' --number {number}"
            print(f"--- {again}\n{told}\n", flush=True)
    print("| fault | tried | failed | seconds |\n|---|---:|---:|---:|")
    for kind in kinds:
        print(f"| {kind} | {tried[kind]} | {len(failed[kind])} | {spent[kind]:.0f} |")
    return int(any(failed.values()))


if __name__ == "__main__":
    sys.exit(main())
