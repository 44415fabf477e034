"""Waiting for several things at once."""

import asyncio

import pytest

from hostler.app.tasks import first_of


class Broken(Exception):
    pass


def test_what_breaks_is_raised_and_the_others_are_ended() -> None:
    async def main() -> None:
        other = asyncio.Event()

        async def breaks() -> None:
            raise Broken

        async def waits() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                other.set()

        with pytest.raises(ExceptionGroup) as told:
            await first_of(waits(), breaks())
        assert told.group_contains(Broken)
        assert other.is_set()

    asyncio.run(main())


@pytest.mark.parametrize("is_first", [True, False])
def test_who_is_cancelled_in_the_moment_in_which_something_breaks_is_cancelled(
    is_first: bool,
) -> None:
    """A group of tasks would tell of what broke alone, and a loop around it would go on for ever."""

    async def main() -> None:
        broken = asyncio.Event()
        rounds = 0

        async def breaks() -> None:
            await broken.wait()
            raise Broken

        async def loop() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                try:
                    await first_of(breaks(), asyncio.Event().wait())
                except* Broken:
                    broken.clear()

        task = asyncio.create_task(loop())
        await asyncio.sleep(0.01)
        if is_first:
            task.cancel()
            broken.set()
        else:
            broken.set()
            await asyncio.sleep(0)  # it has broken, and the group has not ended
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task], timeout=1)
        assert task.cancelled()
        assert rounds == 1

    asyncio.run(main())


def test_a_deadline_around_it_stays_one() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await first_of(asyncio.Event().wait())
        await first_of(asyncio.Event().wait(), timeout_s=0.01)

    asyncio.run(main())
