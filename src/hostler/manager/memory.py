"""Memory: who was promised how much of this machine's, so that two starts never share the last room.

Estimates come from the files' headers (catalog/needs.py). It starts and stops nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import psutil

from hostler.app.config import LifeConfig
from hostler.catalog.needs import estimate_memory_bytes, free_memory_bytes
from hostler.core.errors import HostlerError, PlacementUnavailable
from hostler.core.fleet import WorkerSpec


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance may take when it is full of work."""

    model: str
    need_bytes: int


def missing_bytes(
    need_bytes: int,
    free_bytes: int,
    promises: Mapping[str, Promise],
    taken: Mapping[str, int],
    reserve_bytes: int,
) -> int:
    """Return how much is missing for one instance more; 0 or less: it fits. Pure.

    promises: of the instances that live. taken: what each has for itself already; pages of a mapped
        model file are not counted, as the system calls them free.
    """
    promised = sum(
        max(0, promise.need_bytes - taken.get(one, 0)) for one, promise in promises.items()
    )
    return need_bytes + promised + reserve_bytes - free_bytes


class Memory:
    """The table of promises of one machine. Looking and promising is one step in the event loop."""

    def __init__(
        self,
        life: LifeConfig,
        pid_of: Callable[[str], int | None],
        free_bytes: Callable[[], int | None] = free_memory_bytes,
        most_bytes: int | None = None,
    ) -> None:
        """pid_of: the process of an instance, if it has one by now. most_bytes: for all together."""
        self._life = life
        self._most_bytes = most_bytes
        self._pid_of = pid_of
        self._free_bytes = free_bytes
        self._promises: dict[str, Promise] = {}

    def claim(self, spec: WorkerSpec) -> None:
        """Promise an instance its memory until it is released.

        Raises:
            PlacementUnavailable: there is not so much; the message names what would make room.
        """
        need_bytes, free = need_of(spec), self._free_bytes()
        if self._most_bytes is not None and self.promised_bytes + need_bytes > self._most_bytes:
            raise PlacementUnavailable(self._over_limit(spec.model_name, need_bytes))
        if (missing := self._missing(need_bytes, free)) > 0:
            raise PlacementUnavailable(
                self._refusal(spec.model_name, need_bytes, free or 0, missing)
            )
        self._promises[spec.instance_id] = Promise(model=spec.model_name, need_bytes=need_bytes)

    @property
    def promised_bytes(self) -> int:
        """What all of them may take together."""
        return sum(promise.need_bytes for promise in self._promises.values())

    def fits(self, need_bytes: int) -> bool:
        """Whether a claim of so much would be granted now."""
        return self._missing(need_bytes, self._free_bytes()) <= 0

    def left_bytes(self, free: int | None) -> int | None:
        """What one claim more may be for, of so much that is free; None: any."""
        if not self._life.memory_check or free is None:
            return None
        return max(0, -self._missing_of(0, free))

    def adopt(self, spec: WorkerSpec) -> None:
        """As claim, for a process that runs already: it is never refused."""
        self._promises[spec.instance_id] = Promise(model=spec.model_name, need_bytes=need_of(spec))

    def release(self, instance_id: str) -> None:
        """Take the promise back; its process is gone, or there never was one."""
        self._promises.pop(instance_id, None)

    # Private

    def _missing(self, need_bytes: int, free: int | None) -> int:
        if not self._life.memory_check or not need_bytes or free is None:
            return 0
        return self._missing_of(need_bytes, free)

    def _missing_of(self, need_bytes: int, free: int) -> int:
        taken = {one: private_bytes(self._pid_of(one)) for one in self._promises}
        reserve = self._life.memory_reserve_bytes
        return missing_bytes(need_bytes, free, self._promises, taken, reserve)

    def _over_limit(self, model: str, need: int) -> str:
        return (
            f"model {model!r} needs about {_mib(need)} of memory; models may take "
            f"{_mib(self._most_bytes or 0)} here in all, and {_mib(self.promised_bytes)} are promised: "
            f"{self._named()}"
        )

    def _refusal(self, model: str, need: int, free: int, missing: int) -> str:
        return (
            f"model {model!r} needs about {_mib(need)} of memory; {_mib(free)} are free, and what the "
            f"running models may still take and life.memory_reserve_bytes is kept: {_mib(missing)} are "
            f"missing. Stop one of: {self._named()}; choose a smaller context or fewer "
            "slots; or set life.memory_check = false"
        )

    def _named(self) -> str:
        """The largest of those that were promised some."""
        others = sorted(self._promises.values(), key=lambda one: -one.need_bytes)
        named = ", ".join(f"{one.model} ({_mib(one.need_bytes)})" for one in others[:5])
        return named or "none of ours runs"


def need_of(spec: WorkerSpec) -> int:
    """Return what one instance may take; 0 when nobody knows."""
    if not spec.model_path:
        told = spec.params.get("memory_bytes")
        return told if isinstance(told, int) else 0
    try:
        return estimate_memory_bytes(
            Path(spec.model_path), spec.engine, spec.params, slots=spec.concurrency
        )
    except (HostlerError, OSError):
        return 0  # what is wrong with its files is told by those who open them


def private_bytes(pid: int | None) -> int:
    """Return the memory that a process and its children have for themselves, mapped files left out."""
    total = 0
    try:
        for one in _family(pid):
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
    except (OSError, psutil.Error):
        pass  # it has ended
    return total


# Private


def _family(pid: int | None) -> list[int]:
    if pid is None:
        return []
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _mib(number: int) -> str:
    return f"{number / (1 << 20):,.0f} MiB"
