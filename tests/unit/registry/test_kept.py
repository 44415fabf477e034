"""What a gateway leaves for the next one, and when it is not taken."""

import asyncio
import socket
from pathlib import Path

from hostler.core.change import Change
from hostler.core.lifecycle import State
from hostler.core.snapshot import Endpoint, Snapshot
from hostler.registry.kept import OLDEST_S, KeptSnapshot
from hostler.registry.mirror import SnapshotMirror
from tests.unit.routing.fleet import instance, snapshot


def listening(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.bind(str(path))
    line.listen()
    return line


def test_F22_only_instances_that_somebody_listens_for_are_remembered(tmp_path: Path) -> None:
    kept = KeptSnapshot(tmp_path / "kept")
    assert kept.load() is None
    dead = tmp_path / "dead.sock"
    listening(dead).close()
    with listening(tmp_path / "a.sock"):
        views = [
            instance("a", endpoint=Endpoint(socket=str(tmp_path / "a.sock"))),
            instance("b", endpoint=Endpoint(socket=str(dead))),
            instance("c", endpoint=Endpoint(socket=str(tmp_path / "never.sock"))),
            instance("d", endpoint=Endpoint(host="127.0.0.1", port=1)),
        ]
        kept.save(snapshot(*views))
        found = kept.load()
    assert found is not None
    assert [one.instance_id for one in found.instances] == ["a", "d"]
    assert found.models == snapshot(*views).models
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600


def test_what_is_too_old_of_another_boot_or_damaged_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    now_s = 1000.0
    kept = KeptSnapshot(path, lambda: now_s)
    kept.save(Snapshot(version=3))
    now_s += OLDEST_S - 1
    assert kept.load() is not None
    now_s += 2
    assert kept.load() is None
    kept.save(Snapshot(version=3))
    text = path.read_text()
    path.write_text(text.replace('"boot_id":"', '"boot_id":"x'))
    assert kept.load() is None
    path.write_text(text[:-5])
    assert kept.load() is None


def test_a_folder_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    KeptSnapshot(tmp_path / "gone" / "kept").save(Snapshot(version=1))


def test_whatever_a_controller_tells_is_newer_than_what_was_recalled(tmp_path: Path) -> None:
    async def main() -> None:
        kept = KeptSnapshot(tmp_path / "kept")
        kept.save(Snapshot(incarnation=9, version=9))
        mirror = SnapshotMirror(tmp_path / "nobody.sock", lambda: 0.0, kept)
        seen: list[int] = []
        mirror.listen(lambda one: seen.append(one.version))
        mirror.recall()
        assert (mirror.snapshot.version, mirror.connected, seen) == (9, False, [9])
        mirror._take(Change(incarnation=1, version=2))  # the store was made anew
        mirror.recall()
        assert (mirror.snapshot.version, seen) == (2, [9, 2])
        mirror._take(Change(incarnation=1, version=1))
        assert mirror.snapshot.version == 2

    asyncio.run(main())


def test_a_model_without_living_instances_is_still_known(tmp_path: Path) -> None:
    kept = KeptSnapshot(tmp_path / "kept")
    kept.save(snapshot(instance("a", state=State.READY)))
    found = kept.load()
    assert found is not None
    assert (len(found.models), found.instances) == (1, ())
