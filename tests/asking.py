"""Asking: a load of chats, for tests that break something meanwhile."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hostler.testing.cluster import Answer


class Asking:
    """Threads that ask, one request after the other; what was no answer is kept.

    chats: by name: who is asked, and answers a text with status, headers and body; threads: for each.
    """

    def __init__(
        self, chats: Mapping[str, Callable[[str], Answer]], threads: int = 2, pause_s: float = 0.02
    ) -> None:
        self._chats = chats
        self._count = threads
        self._pause_s = pause_s
        self._over = threading.Event()
        self.answered: Counter[str] = Counter()  # by name
        self.served: Counter[str] = Counter()  # by instance
        self.failed: list[Any] = []
        self.slowest_s = 0.0

    def __enter__(self) -> "Asking":
        self._threads = [
            threading.Thread(target=self._ask, args=(name,))
            for name in self._chats
            for _ in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(40)

    def _ask(self, name: str) -> None:
        while not self._over.is_set():
            began_s = time.monotonic()
            try:
                status, headers, body = self._chats[name](f"hello {began_s}")
            except OSError as error:
                self.failed.append(repr(error))
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            if status == 200:
                self.answered[name] += 1
                self.served[headers["x-hostler-instance"]] += 1
            else:
                self.failed.append((status, body[:200]))
            self._over.wait(self._pause_s)
