"""`make soak`: load and random faults for a long time; every round is judged by the ledger oracle.

    python -m bench.soak --minutes 30 --seed 7

Exit code 1 at the first round whose stories do not agree, with the breaches and the processes' logs.
"""

import argparse
import sys
import time
from collections import Counter

from hostler.testing.storm import Round, run_storm


def main(arguments: list[str] | None = None) -> int:
    """Run, and print a line a round and the sum."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    options = parser.parse_args(arguments)
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


def _tell(one: Round) -> None:
    outcomes = " ".join(f"{name} {count}" for name, count in sorted(one.outcomes.items()))
    print(
        f"round {one.number:4} {one.fault:22} {outcomes:30} slowest {one.slowest_s:6.2f} s "
        f"recovered {one.recovered_s:6.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
