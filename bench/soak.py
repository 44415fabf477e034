"""`make soak`: everything that takes long: storms, times to truth, state machines, kills between writes,
faults at full length.

    python -m bench.soak --seed 7                  # all parts, some two hours
    python -m bench.soak --storm --minutes 30      # one of them
    python -m bench.soak --json                    # the figures for programs; progress goes to stderr

Exit code 1 when a figure misses its aim or a part breaks off; the others run all the same.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable

from bench import truth
from bench.chaos import run_chaos
from bench.figures import Figure, Part, as_json, table
from bench.fuzz import run_fuzz
from bench.readers import run_readers
from bench.rows import run_rows
from bench.stateful import run_stateful
from hostler.testing.durability import Durability, run_kills
from hostler.testing.storm import Round, run_storm

PARTS = ("storm", "chaos", "readers", "truth", "stateful", "durability", "fuzz", "rows")
Tell = Callable[[str], None]


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for, or all; print lines as they go and a table at the end."""
    options = _options(arguments)
    figures: list[Figure] = []

    def tell(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    def show(figure: Figure) -> None:
        figures.append(figure)
        missed = f", aim {figure.aim}: NOT MET" if figure.is_met is False else ""
        tell(f"{figure.name}: {figure.value} {figure.unit} {figure.note}{missed}")

    asked = [name for name in PARTS if getattr(options, name)] or list(PARTS)
    tell(f"seed {options.seed}, parts: {', '.join(asked)}")
    for name in asked:
        part = Part(name, show)
        try:
            _run(part, options, tell)
        except Exception as error:  # boundary: one part; the others run all the same
            told = str(error) if isinstance(error, AssertionError) and str(error) else repr(error)
            tell(told)
            part.add(f"{name} broke off", 1.0, "", at_most=0, note=told.splitlines()[0][:100])
    print(as_json(figures) if options.json else table(figures))
    return 1 if any(figure.is_met is False for figure in figures) else 0


# Private


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.soak", description="Run what takes long. Without the name of a part: all."
    )
    parser.add_argument(
        "--storm", action="store_true", help="load and random faults, every round judged"
    )
    parser.add_argument(
        "--chaos", action="store_true", help="every fault of engines, under the SDK and raw clients"
    )
    parser.add_argument(
        "--readers", action="store_true", help="B08, B20: clients that leave, and that do not read"
    )
    parser.add_argument("--truth", action="store_true", help="B14, B15, B16, B24 and their kin")
    parser.add_argument("--stateful", action="store_true", help="B29: the state machines")
    parser.add_argument(
        "--durability", action="store_true", help="B32: kill -9 between admin writes"
    )
    parser.add_argument("--rows", action="store_true", help="faults in their rows' own length")
    parser.add_argument(
        "--fuzz", action="store_true", help="B25, B27: bytes of clients and engines"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the storm")
    parser.add_argument("--seeds", type=int, default=5, help="of --chaos: each fault once a seed")
    parser.add_argument("--sequences", type=int, default=500, help="of each state machine")
    parser.add_argument("--kills", type=int, default=100, help="between admin writes")
    parser.add_argument("--cases", type=int, default=4_000_000, help="of the fuzzers together")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _run(part: Part, options: argparse.Namespace, tell: Tell) -> None:
    match part.name:
        case "storm":
            _storm(part, options.minutes, options.seed, tell)
        case "chaos":
            run_chaos(part, options.seeds, options.seed, tell)
        case "readers":
            run_readers(part, options.seed)
        case "truth":
            truth.measure(part)
        case "stateful":
            run_stateful(part, options.sequences, options.seed, tell)
        case "durability":
            _durability(part, options.kills, options.seed, tell)
        case "fuzz":
            run_fuzz(part, options.cases, options.seed, tell)
        case "rows":
            run_rows(part, tell)


def _storm(part: Part, minutes: float, seed: int, tell: Tell) -> None:
    """A round whose stories do not agree raises, with the breaches and the processes' logs."""

    def told(one: Round) -> None:
        outcomes = " ".join(f"{name} {count}" for name, count in sorted(one.outcomes.items()))
        tell(
            f"round {one.number:4} {one.fault:22} {outcomes:30} slowest {one.slowest_s:6.2f} s "
            f"recovered {one.recovered_s:6.2f} s"
        )

    rounds = run_storm(minutes * 60, seed, told)
    outcomes: Counter[str] = Counter()
    for one in rounds:
        outcomes.update(one.outcomes)
    note = " ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
    part.add(f"rounds without a breach, {minutes:g} min", len(rounds), "", at_least=1, note=note)
    part.add("slowest request", max(one.slowest_s for one in rounds), "s")
    part.add("longest recovery", max(one.recovered_s for one in rounds), "s")


def _durability(part: Part, kills: int, seed: int, tell: Tell) -> None:
    def told(so_far: Durability) -> None:
        tell(
            f"{so_far.kills} kills, {so_far.acknowledged} writes acknowledged, "
            f"lost {len(so_far.lost)}, corrupt {len(so_far.corrupt)}"
        )

    found = run_kills(kills, seed, told)
    for line in (*found.lost, *found.strangers, *found.corrupt):
        tell(f"breach: {line}")
    note = f"{found.kills} kills, seed {seed}"
    part.add("B32 acknowledged writes", found.acknowledged, "writes", at_least=kills, note=note)
    part.add("B32 acknowledged writes lost", len(found.lost), "writes", at_most=0)
    part.add("B32 there, and ordered by nobody", len(found.strangers), "models", at_most=0)
    part.add("B32 corrupt files", len(found.corrupt), "", at_most=0)


if __name__ == "__main__":
    raise SystemExit(main())
