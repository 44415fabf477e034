"""`python bench/run.py`, `make bench`: measures everything and prints one table. `--help` says how."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import (
    crash,
    engines,
    fairness,
    fleet,
    flights,
    gateway,
    hosts,
    lone,
    memory,
    relay,
    routing,
    several,
    startup,
)
from bench.figures import Figure, Part, as_json, table
from hostler.testing.cluster import Cluster

PARTS = (
    "imports",
    "start",
    "tokens",
    "embeddings",
    "memory",
    "gateway",
    "lone",
    "relay",
    "routing",
    "flights",
    "several",
    "fairness",
    "fleet",
    "hosts",
    "crash",
)


class Run:
    """One run: the figures so far, and the one cluster of real models that parts share."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.figures: list[Figure] = []
        self._real: Cluster | None = None

    def show(self, figure: Figure) -> None:
        self.figures.append(figure)
        if not self.given.json:
            value = "—" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
            print(f"{figure.part}: {figure.name}: {value} {figure.note}", flush=True)

    @contextmanager
    def running(self) -> Iterator["Run"]:
        try:
            yield self
        finally:
            if self._real is not None:
                self._real.close()

    def real(self, *, start: bool = True) -> Cluster:
        """The cluster of the default models, started unless told otherwise."""
        if self._real is None:
            self._real = Cluster()
        if start and self._real.up is None:
            self._real.launch()
            self._real.wait_for(lambda: startup.started(self._real_cluster), 60.0, "up.json")
            self._real.wait_for(self._real.is_ready, 180.0, "the default models are ready")
        return self._real

    @property
    def _real_cluster(self) -> Cluster:
        assert self._real is not None
        return self._real

    def measure(self, name: str) -> None:
        part = Part(name, self.show)
        rounds = self.given.rounds
        parts: dict[str, Callable[[], None]] = {
            "imports": lambda: startup.measure_imports(part),
            "start": lambda: startup.measure_start(part, self.real(start=False), rounds=rounds),
            "tokens": lambda: engines.measure_tokens(part, self.real(), rounds=2 * rounds),
            "embeddings": lambda: engines.measure_embeddings(part, self.real(), rounds=rounds),
            "memory": lambda: memory.measure(part, self.real()),
            "gateway": lambda: gateway.measure(part, rounds=rounds),
            "lone": lambda: lone.measure(part, rounds=rounds),
            "relay": lambda: relay.measure(part, rounds=rounds),
            "routing": lambda: routing.measure(part, rounds=rounds),
            "flights": lambda: flights.measure(part, rounds=rounds),
            "several": lambda: several.measure(part, rounds=rounds),
            "fairness": lambda: fairness.measure(part),
            "fleet": lambda: fleet.measure(part),
            "hosts": lambda: hosts.measure(part),
            "crash": lambda: crash.measure(part),
        }
        parts[name]()


def main() -> int:
    """Return 0 when everything could be measured, whatever the figures; 1 when a part failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--json", action="store_true", help="a JSON array instead of the table")
    given = arguments.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - set(PARTS):
        arguments.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    began_s = time.monotonic()
    failed: list[str] = []
    with Run(given).running() as run:
        for name in [part for part in PARTS if part in names]:  # memory stops the models: late
            try:
                run.measure(name)
            except Exception as error:  # boundary: one part; the others are measured all the same
                failed.append(name)
                print(f"bench: {name} failed: {error}", file=sys.stderr)
    if given.json:
        print(as_json(run.figures))
    else:
        print(f"\n{table(run.figures)}\n\n{time.monotonic() - began_s:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
