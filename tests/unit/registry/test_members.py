"""Which machines belong here, and which gateways relays must refuse."""

import asyncio

import pytest

from hostler.app.tokens import DAY_S, GIVEN, KEPT_S, StoredHost
from hostler.core.hosts import HostFacts, Role
from hostler.registry import members
from hostler.registry.members import LASTS_S, Members
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer
from hostler.testing.clock import ManualClock


def machine(host_id: str, role: Role = Role.GATEWAY, key_hash: str = "") -> StoredHost:
    facts = HostFacts(name=host_id)
    return StoredHost(host_id=host_id, role=role, name=host_id, facts=facts, key_hash=key_hash)


def store_of(*machines: StoredHost) -> MemoryStore:
    store = MemoryStore()
    for one in machines:
        store.save_host(one)
    return store


def test_F118_a_removed_gateway_is_refused_until_its_certificate_has_ended() -> None:
    async def main() -> None:
        clock, writer = ManualClock(), Writer("test")
        store = store_of(machine("gate1"), machine("gate2"), machine("host1", Role.HOST))
        ours = Members(store, writer, clock)
        seen: list[tuple[str, ...]] = []
        ours.removed.append(lambda host: seen.append(ours.refused()))
        assert ours.refused() == ()
        async with writer.running():
            await ours.remove("gate1")
            await ours.remove("host1")  # no relay serves hosts
            clock.advance(DAY_S)
            await ours.remove("gate2")
        assert seen == [("gate1",), ("gate1",), ("gate1", "gate2")]
        clock.advance(LASTS_S - DAY_S - 1)
        assert ours.refused() == Members(store, writer, clock).refused() == ("gate1", "gate2")
        clock.advance(1)
        assert ours.refused() == Members(store, writer, clock).refused() == ("gate2",)
        clock.advance(DAY_S)
        assert ours.refused() == Members(store, writer, clock).refused() == ()

    asyncio.run(main())


def test_one_with_a_given_certificate_is_refused_as_long_as_it_is_remembered() -> None:
    async def main() -> None:
        clock, writer = ManualClock(), Writer("test")
        ours = Members(store_of(machine("gate1", key_hash=f"{GIVEN}gate1")), writer, clock)
        async with writer.running():
            await ours.remove("gate1")
        clock.advance(KEPT_S - 1)
        assert ours.refused() == ("gate1",)
        clock.advance(1)
        assert ours.refused() == ()

    asyncio.run(main())


def test_the_newest_are_refused_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "REFUSED_MOST", 2)

    async def main() -> None:
        clock, writer = ManualClock(), Writer("test")
        names = ("gate3", "gate1", "gate2")
        ours = Members(store_of(*map(machine, names)), writer, clock)
        async with writer.running():
            for name in names:
                await ours.remove(name)
                clock.advance(1)
        assert ours.refused() == ("gate1", "gate2")

    asyncio.run(main())
