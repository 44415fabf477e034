"""Truth: the oracle over one running cluster. It watches from the first process to the last one's end.

`judge_now` asks the server and waits, bounded, until what it says is what is; `judge_end` looks back at
the whole run when everything has ended.
"""

import http.client
import json
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from hostler.app.process import tagged
from hostler.engines.base import ENGINES
from hostler.manager.workers import STATE_TAG
from hostler.testing import oracle
from hostler.testing.deeds import Deeds, check_writes
from hostler.testing.facts import (
    GatewayFacts,
    Stored,
    life_of,
    live_instances,
    read_store,
    zombies_of,
)
from hostler.testing.watch import CLUSTER_TAG, Sighting, Watch

APART = frozenset(name for name, kind in ENGINES.items() if kind.own_process)
CONVERGED_S = 30.0  # the bound is 5 s, on a machine of its own
Ask = Callable[[str, str], tuple[int, dict[str, str], bytes]]


class Truth:
    """What a cluster's processes, tables and store should agree on."""

    def __init__(self, root: Path, state_dir: Path, ask: Ask) -> None:
        """ask: one request (method, path) with the administrator's key."""
        self._root, self._state = root, state_dir
        self._ask = ask
        self.watch = Watch(state_dir, root)
        self.deeds = Deeds()
        self.others: list[Path] = []  # state folders of machines that joined it
        self.asked_to_end_s: float | None = None
        self._stored: Stored | None = None

    def judge_now(self, within_s: float = CONVERGED_S) -> None:
        """Wait until everything agrees.

        Raises:
            AssertionError: it does not in time; with every breach of the last look.
        """
        ends_s = time.monotonic() + within_s
        while breaches := self._look():
            if time.monotonic() > ends_s:
                raise AssertionError("\n".join(["the oracle:", *breaches]))
            time.sleep(0.1)

    def judge_end(self, *, is_stopped: bool) -> list[str]:
        """Return what was wrong in the whole run. is_stopped: the server was stopped in order."""
        ended_s = self.asked_to_end_s or time.monotonic()
        is_alone = self.watch.is_alive or self.watch.pid is None
        breaches = oracle.check_nothing_left(self.left())
        sightings = self.watch.stop()
        stored = read_store(self._state / "hostler.db")
        breaches += oracle.check_bystander(is_alone)
        breaches += oracle.check_stored(self._stored, stored, is_stopped=is_stopped)
        if stored is None or stored.problems:
            return breaches
        return [
            *breaches,
            *self._judge_story(stored, sightings, ended_s),
            *check_writes(
                self.deeds.writes,
                {one["name"]: one for one in stored.deployments},
                stored.keys,
                self._declared(),
            ),
        ]

    def left(self) -> dict[int, str]:
        """The processes of this cluster that live: pid → what they carry."""
        found = tagged(STATE_TAG, str(self._state))
        return {**tagged(CLUSTER_TAG, str(self._root)), **found}

    # Private

    def _look(self) -> list[str]:
        """Every breach that can be seen now; some pass by themselves."""
        try:
            status = self._json("/api/v1/status")
            listed = self._json("/api/v1/models")["models"]
            models = [self._json(f"/api/v1/models/{quote(one['name'])}") for one in listed]
            instances = self._json("/api/v1/instances")["instances"]
            gateway = self._gateway()
            keys = {one["key_id"]: one["revoked"] for one in self._json("/api/v1/keys")["keys"]}
        except (OSError, http.client.HTTPException, ValueError, AssertionError) as error:
            return [f"I21 the server does not answer: {error}"]
        processes = live_instances(self._state)
        for other in self.others:
            processes.update(live_instances(other))
        life = life_of(self._state)
        deployments = [model["deployment"] for model in models]
        breaches = [
            *oracle.check_processes(instances, processes, APART),
            *oracle.check_zombies(zombies_of(self.left())),
            *oracle.check_states(instances, life),
            *oracle.check_wishes(models),
            *oracle.check_gateway(
                instances, gateway, status["incarnation"], status["details"]["snapshot"]
            ),
            *oracle.check_routable(instances, gateway),
            *oracle.check_indexes(models, instances),
            *oracle.check_names(deployments),
            *check_writes(
                self.deeds.writes,
                {one["name"]: one for one in deployments},
                keys,
                self._declared(),
            ),
        ]
        if breaches:
            return breaches
        stored = read_store(self._state / "hostler.db")
        breaches = oracle.check_stored(self._stored, stored, is_stopped=False)
        if stored is not None and not stored.problems:
            self._stored = stored
            breaches += self._judge_story(stored, self.watch.sightings(), time.monotonic())
        return breaches

    def _judge_story(self, stored: Stored, sightings: list[Sighting], ended_s: float) -> list[str]:
        """What the operators' log and the looks at the processes say together."""
        own = [one for one in sightings if one.instance_id not in self.deeds.staged]
        return [
            *oracle.check_slots(own, stored.moves, stored.ordered),
            *oracle.check_causes(own, stored.moves, self.deeds.hit, ended_s),
            *oracle.check_moves(stored.moves, life_of(self._state)),
            *oracle.check_epochs(stored.moves, stored.counters),
            *oracle.check_names(stored.deployments),
        ]

    def _gateway(self) -> GatewayFacts:
        status, _, data = self._ask("GET", "/status")
        assert status == 200, f"GET /status: {status}"
        return msgspec.json.decode(data, type=GatewayFacts)

    def _json(self, path: str) -> Any:
        status, _, data = self._ask("GET", path)
        assert status == 200, f"GET {path}: {status} {data[:200]!r}"
        return json.loads(data)

    def _declared(self) -> set[str]:
        """The names that the settings file wishes."""
        try:
            settings: Mapping[str, Any] = tomllib.loads((self._root / "hostler.toml").read_text())
        except (OSError, tomllib.TOMLDecodeError):
            return set()
        return {str(one.get("name")) for one in settings.get("models", ())}
