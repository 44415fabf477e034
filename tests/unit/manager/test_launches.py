"""LaunchBook: a record that a locked store kept is deleted with the next one."""

import asyncio

from hostler.core.errors import StorageBusy
from hostler.core.fleet import WorkerSpec
from hostler.core.launch import order
from hostler.core.model import WorkerType
from hostler.manager.launches import LaunchBook
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer


class LockedNowAndThen(MemoryStore):
    """Refuses to delete while somebody else holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_locked = False

    def delete_launch(self, instance_id: str) -> bool:
        if self.is_locked:
            raise StorageBusy("locked")
        return super().delete_launch(instance_id)


def spec(instance_id: str) -> WorkerSpec:
    return WorkerSpec(
        instance_id=instance_id,
        epoch=1,
        secret="s",
        model_name="m",
        worker_type=WorkerType.LLM,
        engine="fake",
        engine_socket="e",
        agent_socket="a",
        registry_socket="r",
    )


def test_F79_I16_a_record_that_stayed_goes_with_the_next_one() -> None:
    async def main() -> None:
        store = LockedNowAndThen()
        writer = Writer("launches", patience_s=0.01)
        async with writer.running():
            book = LaunchBook(store, writer)
            for name in ("a", "b", "c"):
                launch = order(spec(name), worker_key="m@llm", replica=0, generation=1)
                await book.intend(launch)
            store.is_locked = True
            book.drop("a")
            book.drop("b")
            await writer.flush()
            await asyncio.sleep(0)
            assert {launch.instance_id for launch in book.all()} == {"a", "b", "c"}
            store.is_locked = False
            async with asyncio.timeout(30):
                while book.all():
                    book.drop("c")  # again: on a busy machine this one may come too late as well
                    await writer.flush()
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_F79_an_order_waits_behind_few_launches_however_many_there_are() -> None:
    async def main() -> None:
        store, writer = MemoryStore(), Writer("launches", most_waiting=32)
        async with writer.running():
            book = LaunchBook(store, writer)
            async with asyncio.TaskGroup() as tasks:
                for number in range(200):
                    tasks.create_task(book.next_epoch("m@llm", number))
                await asyncio.sleep(0)
                await writer.do(lambda: None)  # no StorageBusy: there is room for others
            assert await book.next_epoch("m@llm", 199) == 2

    asyncio.run(main())
