"""When Ray is asked: at once, not at the next look."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from hostler.core.placing import Needs
from hostler.manager import ray_calls, ray_seats
from hostler.manager.ray_cluster import RayCluster
from tests.unit.manager.test_ray_seats import Story


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_a_place_is_asked_for_and_given_back_without_waiting_for_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_seats, "LOOK_EVERY_S", 3600.0)
    story = Story()

    async def main() -> None:
        async with story.seats.running():
            await until(lambda: story.ray.connects)
            await until(lambda: story.why() and story.ray.asked)
            story.seats.leave("i1")
            await until(lambda: not story.ray.held)

    asyncio.run(main())
    assert story.ray.asked == [("i1", "")]


def test_what_ray_answers_is_told_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Future[ray_calls.Told] = Future()
    monkeypatch.setattr(ray_calls, "reserve", lambda *_, **__: object())
    monkeypatch.setattr(ray_calls, "where", lambda _: found)

    async def main() -> None:
        answered = asyncio.Event()
        cluster = RayCluster("127.0.0.1:1", answered=answered.set)
        await cluster.reserve("i1", Needs(cpus=1), {})
        assert not cluster.place("i1").node_id
        assert not answered.is_set()
        told: ray_calls.Told = {"node_id": "n1", "gpus": (), "python": "", "folder": ""}
        await asyncio.to_thread(found.set_result, told)
        async with asyncio.timeout(20):
            await answered.wait()
        assert cluster.place("i1").node_id == "n1"
        late: Future[ray_calls.Told] = Future()
        monkeypatch.setattr(ray_calls, "where", lambda _: late)
        await cluster.reserve("i2", Needs(cpus=1), {})
        pending.append(late)

    pending: list[Future[ray_calls.Told]] = []
    asyncio.run(main())
    pending[0].set_result({})  # its loop is gone: nobody is told, and nothing breaks
