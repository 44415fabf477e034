"""A simulated fleet: workers without processes that speak the real protocol to a real registry's socket.

For figures and tests of size. No engine answers for them; what a host does for its own is not simulated.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

from hostler.core.errors import HostlerError
from hostler.core.fleet import Beat, Departure, Registration
from hostler.core.lifecycle import Instance, Signal
from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.snapshot import REPORTED, Endpoint, ModelView
from hostler.registry.client import RegistryClient
from hostler.registry.expected import Expected
from hostler.registry.registry import Registry

SECRET = "simulated-simulated-simulated-"  # noqa: S105 - of nobody
AGAIN_S = 0.5  # between tries to reach an absent controller, as a real worker


def name_of(number: int) -> str:
    """The id of a simulated instance."""
    return f"sim{number:021d}"


def expect_fleet(registry: Registry, count: int, models: int, *, adopted: bool = False) -> None:
    """Have a registry expect so many instances, evenly of so many models."""
    secret_hash = hashlib.sha256(SECRET.encode()).hexdigest()
    registry.describe(
        [
            ModelView(
                name=f"m{n}", worker_type=WorkerType.LLM, engine="fake", wanted=count // models
            )
            for n in range(models)
        ]
    )
    for number in range(count):
        model = f"m{number % models}"
        registry.add(
            Instance(
                instance_id=name_of(number),
                worker_key=f"{model}@llm",
                model_name=model,
                replica=number // models,
            ),
            Expected(
                worker_type=WorkerType.LLM, engine="fake", secret_hash=secret_hash, concurrency=4
            ),
            adopted=adopted,
        )
        registry.post(name_of(number), Signal.LAUNCH)


class Fleet:
    """Simulated workers, all in this process. They register, beat when they are told to, and leave.

    registered_s: when each was let in, by time.monotonic. beats_s: how long each beat took. asked: how
    often one of them asked to be let in.
    """

    def __init__(self, socket: Path, count: int, models: int, folder: Path) -> None:
        self.registered_s: list[float] = []
        self.beats_s: list[float] = []
        self.asked = 0
        self._count = count
        self._models = models
        self._folder = folder
        self._client = RegistryClient(socket, timeout_s=10.0)

    async def run(self) -> None:
        """Until cancelled. They begin within half a second, as after a restart of their controller; more
        than 500 later, for one process plays them all.
        """
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._count):
                tasks.create_task(self._live(number))

    async def leave(self, number: int) -> None:
        """Say goodbye for one of them."""
        await self._client.deregister(
            Departure(instance_id=name_of(number), epoch=1, secret=SECRET, reason="simulated")
        )

    # Private

    async def _live(self, number: int) -> None:
        await asyncio.sleep(random.random() * max(AGAIN_S, self._count / 1000))
        is_registered, seq = False, 0
        while True:
            wait_s = AGAIN_S * random.uniform(0.8, 1.2)
            try:
                if not is_registered:
                    self.asked += 1
                    answer = await self._client.register(self._registration(number))
                    if answer.registered:
                        self.registered_s.append(time.monotonic())
                else:
                    seq += 1
                    began_s = time.monotonic()
                    answer = await self._client.beat(
                        Beat(instance_id=name_of(number), epoch=1, secret=SECRET, seq=seq)
                    )
                    self.beats_s.append(time.monotonic() - began_s)
            except HostlerError as error:
                is_registered, seq = False, 0
                if error.http_status in (409, 410):
                    return  # it is not wanted any more
            else:
                is_registered, wait_s = answer.registered, answer.next_beat_s
            await asyncio.sleep(wait_s)

    def _registration(self, number: int) -> Registration:
        model = f"m{number % self._models}"
        return Registration(
            protocol=REPORTED,
            instance_id=name_of(number),
            epoch=1,
            secret=SECRET,
            pid=number + 2,
            endpoint=Endpoint(socket=str(self._folder / f"{name_of(number)}.sock")),
            metadata=ModelMetadata(model=model, worker_type=WorkerType.LLM, context_length=4096),
            concurrency=4,
        )


def most_in_a_second(at_s: list[float]) -> int:
    """How many of these moments lie in the fullest second."""
    ordered = sorted(at_s)
    return max(_counts(ordered), default=0)


# Private


def _counts(ordered: list[float]) -> Iterator[int]:
    first = 0
    for last, at_s in enumerate(ordered):
        while ordered[first] < at_s - 1.0:
            first += 1
        yield last - first + 1
