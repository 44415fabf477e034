"""A host whose beats do not arrive is asked at its relay, over mutual TLS, before its silence counts."""

import asyncio

import msgspec

from hostler.app.config import HeartbeatConfig
from hostler.app.tokens import StoredHost
from hostler.core.hosts import HostBeat, HostFacts, Role, Standing
from hostler.manager.host_silence import HostSilence
from hostler.registry.hosts import FIRST_S, HostBook
from hostler.registry.registry import Registry
from hostler.testing.clock import ManualClock
from tests.integration.wire.relaying import HOST, Town, town
from tests.integration.wire.running import until


def beat_of(host_id: str) -> bytes:
    return msgspec.json.encode(HostBeat(host_id=host_id, run_id="r1", seq=7))


def known(port: int, clock: ManualClock, host_id: str = HOST.id) -> HostBook:
    """A controller that has not heard its host for so long that somebody should ask."""
    beats = HeartbeatConfig()
    book = HostBook(Registry(beats, clock, incarnation=1), beats, clock)
    facts = HostFacts(name="b")
    book.learn(
        StoredHost(
            host_id=host_id, role=Role.HOST, name="b", facts=facts, address="127.0.0.1", port=port
        )
    )
    clock.advance(FIRST_S + 2.0)
    return book


def test_F20_a_host_whose_beats_are_lost_is_asked_and_stays_alive() -> None:
    async def main() -> None:
        async with town(beat=lambda: beat_of(HOST.id)) as ours:
            clock = ManualClock()
            book = known(ours.port, clock)
            async with HostSilence(book, clock, lambda: ours.controller).running():
                await until(lambda: book.host(HOST.id).is_heard)
            clock.advance(1.0)
            book.judge()
            assert book.host(HOST.id).standing is Standing.ALIVE

    asyncio.run(main())


def test_F27_nobody_else_answers_for_a_silent_host() -> None:
    """Another machine has its address now; the same machine speaks for another host; a gateway asks."""

    async def ask(ours: Town, host_id: str, *, as_gateway: bool = False) -> bool:
        clock = ManualClock()
        book = known(ours.port, clock, host_id)
        silence = HostSilence(book, clock, lambda: ours.gateway if as_gateway else ours.controller)
        answered = await silence.ask(book.host(host_id))
        assert book.host(host_id).is_heard is answered
        return answered

    async def main() -> None:
        async with town(beat=lambda: beat_of(HOST.id)) as ours:
            assert await ask(ours, HOST.id)
            assert not await ask(ours, "host7")
            assert not await ask(ours, HOST.id, as_gateway=True)
        async with town(beat=lambda: beat_of("host7")) as liar:
            assert not await ask(liar, HOST.id)

    asyncio.run(main())


def test_a_controller_without_a_certificate_asks_nobody() -> None:
    async def main() -> None:
        clock = ManualClock()
        book = known(1, clock)
        assert not await HostSilence(book, clock, lambda: None).ask(book.host(HOST.id))

    asyncio.run(main())
