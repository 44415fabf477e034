"""Facts: what can be seen of a server from outside, as the oracle takes it. Looks; judges nothing.

Processes by the tags in their environment, moves of instances and counters from the SQLite file, the
tables of the controller and of the gateway over HTTP.
"""

import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.config import LifeConfig
from hostler.app.process import tagged
from hostler.core.lifecycle import State
from hostler.manager.workers import INSTANCE_TAG, STATE_TAG

Rows = list[dict[str, Any]]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the operators' log: an instance has moved. seq: its place in the log."""

    seq: int
    state: str
    came_from: str
    model: str
    instance_id: str
    replica: int
    epoch: int
    generation: int
    took_s: float
    reason: str = ""

    @property
    def place(self) -> tuple[str, int]:
        return self.model, self.replica


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What the SQLite file holds. problems: what its own check says, [] when it is whole."""

    problems: tuple[str, ...] = ()
    deployments: tuple[dict[str, Any], ...] = ()
    keys: Mapping[str, bool] = {}  # id → revoked
    launches: tuple[str, ...] = ()  # instance ids; what is on other machines goes on without us
    counters: Mapping[str, int] = {}
    moves: tuple[Move, ...] = ()
    ordered: Mapping[
        str, int
    ] = {}  # id of an instance → the event that orders another in its place


class GatewayRow(msgspec.Struct, frozen=True, kw_only=True):
    """One instance in a gateway's table."""

    instance_id: str
    epoch: int
    state: str
    routable: bool = False
    down: bool = False


class GatewayFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's table, and the version the controller had just before."""

    incarnation: int = 0
    version: int = 0
    instances: tuple[GatewayRow, ...] = ()


def live_instances(state_dir: Path) -> dict[str, set[int]]:
    """Return the processes of each instance of a state folder: instance id → pids."""
    ours = tagged(STATE_TAG, str(state_dir))
    found: dict[str, set[int]] = {}
    for pid, instance_id in tagged(INSTANCE_TAG).items():
        if pid in ours:
            found.setdefault(instance_id, set()).add(pid)
    return found


def zombies_of(parents: Iterable[int]) -> dict[int, int]:
    """Return the ended children that nobody reaped, of these parents: pid → parent."""
    wanted = set(parents)
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] == b"Z" and int(fields[1]) in wanted:
            found[int(name)] = int(fields[1])
    return found


def read_store(path: Path) -> Stored | None:
    """Return what a database file holds; None when there is no such file."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            told = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
            events = [
                {**msgspec.json.decode(row[1]), "seq": row[0]}
                for row in db.execute("SELECT seq, body FROM events ORDER BY seq")
            ]
            return Stored(
                problems=tuple(line for line in told if line != "ok"),
                deployments=tuple(
                    msgspec.json.decode(row[0])
                    for row in db.execute("SELECT body FROM deployments")
                ),
                keys=dict(
                    (str(row[0]), bool(row[1]))
                    for row in db.execute("SELECT key_id, revoked FROM keys")
                ),
                launches=tuple(
                    str(row[0])
                    for row in db.execute("SELECT instance_id, body FROM launches")
                    if not msgspec.json.decode(row[1]).get("host_id")
                ),
                counters=dict(db.execute("SELECT name, value FROM counters").fetchall()),
                moves=moves_of(events),
                ordered={
                    one["instance_id"]: one["seq"]
                    for one in events
                    if one["kind"] == "instance.restart"
                },
            )
    except sqlite3.Error as error:
        return Stored(problems=(f"{type(error).__name__}: {error}",))


def moves_of(events: Iterable[Mapping[str, Any]]) -> tuple[Move, ...]:
    """Return the moves among events of the operators' log, in their order."""
    states = {f"instance.{state.value}": state.value for state in State}
    found = []
    for event in events:
        fields = event.get("fields") or {}
        if event["kind"] in states and "epoch" in fields:
            found.append(
                Move(
                    seq=event["seq"],
                    state=states[event["kind"]],
                    came_from=fields["from"],
                    model=event["model"],
                    instance_id=event["instance_id"],
                    replica=fields["replica"],
                    epoch=fields["epoch"],
                    generation=fields.get("generation", 0),
                    took_s=fields["took_s"],
                    reason=event.get("message", ""),
                )
            )
    return tuple(found)


def life_of(state_dir: Path) -> LifeConfig:
    """Return the limits a server was started with; the defaults when it left none."""
    try:
        settings = msgspec.json.decode((state_dir / "run" / "settings.json").read_bytes())
        return msgspec.convert(settings.get("life", {}), LifeConfig)
    except (OSError, msgspec.MsgspecError):
        return LifeConfig()
