"""Events: those that come while others are written are written together, and none is lost."""

import asyncio

from hostler.core.worker import OperatorEvent
from hostler.manager.journal import Journal
from hostler.storage.memory import MemoryStore


class Counting(MemoryStore):
    """Counts its writes."""

    writes = 0

    def append_event(self, event: OperatorEvent, *more: OperatorEvent) -> int:
        self.writes += 1
        return super().append_event(event, *more)


def test_many_at_once_are_few_writes_and_all_are_kept() -> None:
    store = Counting()

    async def main() -> None:
        journal = Journal(store)
        async with journal.running():
            for number in range(3000):
                journal.tell(OperatorEvent(kind="k", message=str(number)))

    asyncio.run(main())
    kept = store.events(0, 3000)
    assert [event.message for event in kept] == [str(number) for number in range(3000)]
    assert store.writes <= 5


def test_who_waits_hears_of_an_event_when_it_is_kept() -> None:
    async def main() -> list[str]:
        journal = Journal(MemoryStore())
        async with journal.running():
            journal.tell(OperatorEvent(kind="a"))
            journal.tell(OperatorEvent(kind="b"))
            while journal.last_seq() < 2:
                await journal.wait(journal.last_seq(), 5.0)
            return [event.kind for event in journal.after(0, 10, None)]

    assert asyncio.run(main()) == ["a", "b"]
