"""`make soak`: load and random faults for a long time; every round is judged by the ledger oracle.

    python -m bench.soak --minutes 30 --seed 7

Exit code 1 at the first round whose stories do not agree, with the breaches and the processes' logs.
"""

import argparse
import sys
import time
from collections import Counter

from bench import truth
from bench.figures import Figure, Part, table
from hostler.testing.storm import Round, run_storm


def main(arguments: list[str] | None = None) -> int:
    """Run, and print a line a round and the sum."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--truth", action="store_true", help="only measure: B14, B15, B16, B24")
    parser.add_argument("--stateful", action="store_true", help="only state machines: B29")
    options = parser.parse_args(arguments)
    if options.truth or options.stateful:
        return _measure(options)
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    try:
        rounds = run_storm(options.minutes * 60, options.seed, _tell)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    outcomes: Counter[str] = Counter()
    for one in rounds:
        outcomes.update(one.outcomes)
    print(f"{len(rounds)} rounds, {sum(outcomes.values())} requests: {dict(outcomes)}")
    print(f"slowest request {max(one.slowest_s for one in rounds):.2f} s")
    print(f"longest recovery {max(one.recovered_s for one in rounds):.2f} s")
    return 0


def _measure(options: argparse.Namespace) -> int:
    figures: list[Figure] = []

    def show(figure: Figure) -> None:
        figures.append(figure)
        print(f"{figure.name}: {figure.value} {figure.unit} {figure.note}", flush=True)

    part = Part("truth", show)
    if options.truth:
        truth.measure(part)
    if options.stateful:
        truth.run_stateful(part, options.minutes * 60)
    print(table(figures))
    return 1 if any(figure.is_met is False for figure in figures) else 0


def _tell(one: Round) -> None:
    outcomes = " ".join(f"{name} {count}" for name, count in sorted(one.outcomes.items()))
    print(
        f"round {one.number:4} {one.fault:22} {outcomes:30} slowest {one.slowest_s:6.2f} s "
        f"recovered {one.recovered_s:6.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
