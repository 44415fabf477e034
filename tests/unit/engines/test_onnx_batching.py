"""Batches form under load, stay in their budget, and one bad text harms only its own request."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.core.errors import EngineError, Overloaded
from hostler.engines.onnx_batching import Batcher


class Machine:
    """Computes len(text); holds the first batch until told; raises for a text with "bad" in it."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        if not held:
            self.go.set()

    def compute(self, batch: Sequence[str]) -> list[int]:
        self.batches.append(list(batch))
        assert self.go.wait(10.0)
        if any("bad" in text for text in batch):
            raise ValueError("bad text")
        return [len(text) for text in batch]


def batcher(machine: Machine, *, tokens: int = 100, queue: int = 1000) -> Batcher[str, int]:
    return Batcher(machine.compute, len, batch_tokens=tokens, queue_length=queue)


async def held_by(machine: Machine) -> None:
    """Wait until the first batch is being computed."""
    async with asyncio.timeout(10.0):
        while not machine.batches:  # noqa: ASYNC110
            await asyncio.sleep(0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.text("ab", max_size=40), max_size=6), min_size=1, max_size=8),
    st.integers(1, 120),
)
def test_every_request_gets_its_own_results_in_order_within_the_budget(
    requests: list[list[str]], tokens: int
) -> None:
    machine = Machine()

    async def main() -> None:
        one = batcher(machine, tokens=tokens)
        answers = await asyncio.gather(*(one.run(texts) for texts in requests))
        assert answers == [[len(text) for text in texts] for texts in requests]
        one.close()

    asyncio.run(main())
    for batch in machine.batches:
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= tokens
    computed = sorted(text for batch in machine.batches for text in batch)
    assert computed == sorted(text for texts in requests for text in texts)


def test_requests_that_come_while_one_is_computed_go_together() -> None:
    machine = Machine(held=True)

    async def main() -> None:
        one = batcher(machine)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.run(["alone"]))
            await held_by(machine)
            for text in ("aaaa", "bbbbb", "cccccc"):
                tasks.create_task(one.run([text]))
            await asyncio.sleep(0)
            machine.go.set()
        assert machine.batches[0] == ["alone"]
        assert sorted(machine.batches[1]) == ["aaaa", "bbbbb", "cccccc"]
        one.close()

    asyncio.run(main())


def test_a_long_list_does_not_hold_up_a_short_one() -> None:
    machine = Machine(held=True)

    async def main() -> None:
        one = batcher(machine, tokens=20)
        async with asyncio.TaskGroup() as tasks:
            long = tasks.create_task(one.run(["x" * 10] * 50))
            await held_by(machine)
            short = tasks.create_task(one.run(["y" * 10]))
            await asyncio.sleep(0)
            machine.go.set()
            await short
            assert not long.done()
        turn = next(n for n, batch in enumerate(machine.batches) if "y" * 10 in batch)
        assert turn <= 2
        one.close()

    asyncio.run(main())


def test_a_text_that_raises_fails_its_own_request_only() -> None:
    machine = Machine(held=True)

    async def main() -> None:
        one = batcher(machine)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.run(["first"]))
            await held_by(machine)
            good = [tasks.create_task(one.run([text])) for text in ("aaa", "bbbb", "cc")]
            bad = asyncio.gather(one.run(["bad"]), return_exceptions=True)
            await asyncio.sleep(0)
            machine.go.set()
            (error,) = await bad
        assert isinstance(error, EngineError)
        assert [task.result() for task in good] == [[3], [4], [2]]
        assert await one.run(["after"]) == [5]
        one.close()

    asyncio.run(main())


def test_a_full_queue_refuses_and_a_cancelled_request_leaves_it() -> None:
    machine = Machine(held=True)

    async def main() -> None:
        one = batcher(machine, queue=3)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.run(["first"]))
            await held_by(machine)
            waits = tasks.create_task(one.run(["aa", "bb", "cc"]))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as raised:
                await one.run(["dd"])
            assert raised.value.retry_after_s == 1
            waits.cancel()
            await asyncio.sleep(0)
            later = tasks.create_task(one.run(["ee"]))
            await asyncio.sleep(0)
            machine.go.set()
            assert await later == [2]
        assert [text for batch in machine.batches for text in batch] == ["first", "ee"]
        one.close()

    asyncio.run(main())


def test_closing_tells_those_who_wait() -> None:
    machine = Machine(held=True)

    async def main() -> None:
        one = batcher(machine)
        running = asyncio.gather(one.run(["first"]), return_exceptions=True)
        await held_by(machine)
        waiting = asyncio.gather(one.run(["second"]), return_exceptions=True)
        await asyncio.sleep(0)
        one.close()
        for error in (*await waiting, *await running):
            assert isinstance(error, EngineError)
        machine.go.set()

    asyncio.run(main())
