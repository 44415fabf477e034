"""Pressure: clients that ask without a pause while a test breaks things, and the verdict on what they saw."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from openai import AsyncOpenAI

from hostler.app.process import tagged
from hostler.testing.clients import Clients
from hostler.testing.cluster import Cluster
from hostler.testing.ledger import check_answers, check_ends, check_survival
from hostler.testing.load import Outcome, Seen, Target, ask, chat_body
from tests.chaos.sdk import ask_with_sdk, sdk_for


def target_of(cluster: Cluster) -> Target:
    address = urlsplit(cluster.url)
    return Target(
        host=address.hostname or "",
        port=address.port or 0,
        headers={"authorization": f"Bearer {cluster.admin_key}"},
    )


class Pressure(Clients):
    """Closed-loop clients in a thread of their own; every other request is a stream.

    clients: on raw connections, a new one each time. sdk: so many more that are the OpenAI SDK.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        models: Sequence[str] = ("echo",),
        clients: int = 10,
        sdk: int = 0,
        tokens: int = 6,
        pause_s: float = 0.01,
        name: str = "p",
    ) -> None:
        super().__init__(clients + sdk)
        self.seen: list[Seen] = []
        self.ended_at_s: dict[str, float] = {}  # by request id
        self._target = target_of(cluster)
        self._models, self._raw = models, clients
        self._tokens, self._pause_s, self._name = tokens, pause_s, name

    async def client(self, number: int) -> None:
        if number < self._raw:
            await self._ask_again_and_again(number, None)
        else:
            async with sdk_for(self._target) as sdk:
                await self._ask_again_and_again(number, sdk)

    async def _ask_again_and_again(self, number: int, sdk: AsyncOpenAI | None) -> None:
        turn = 0
        while not self.is_over:
            turn += 1
            request_id = f"{self._name}-{number}-{turn}"
            model = self._models[turn % len(self._models)]
            is_stream = (number // 2 + turn) % 2 == 0  # not in step with instances that take turns
            body = chat_body(model, request_id, is_stream, self._tokens)
            if sdk is None:
                one = await ask(self._target, body, request_id=request_id)
            else:
                one = await ask_with_sdk(sdk, body, request_id=request_id)
            self.seen.append(one)
            self.ended_at_s[request_id] = time.monotonic()
            await asyncio.sleep(self._pause_s)

    # Verdicts

    @property
    def slowest_s(self) -> float:
        return max(one.seconds for one in self.seen)

    @property
    def failed(self) -> list[str]:
        """Requests that did not end well, in words."""
        return [
            f"{one.request_id} {one.outcome} {one.status} {one.error_code}"
            for one in self.seen
            if one.outcome is not Outcome.OK
        ]

    def assert_true(self, *, at_least: int) -> None:
        """Every answer is the right one or its beginning, and none ended silently."""
        assert len(self.seen) >= at_least
        assert check_answers(self.seen, {}, self._tokens) == []
        assert check_ends(self.seen) == []

    def assert_survived(self, *, at_least: int) -> None:
        """Who had no byte yet noticed nothing; the others were told the truth."""
        self.assert_true(at_least=at_least)
        assert check_survival(self.seen) == []
        assert {one.error_code for one in self.seen if one.error_code} <= {"worker_lost"}

    def assert_unharmed(self, *, at_least: int) -> None:
        """No client noticed anything."""
        assert self.failed == [], self.failed[:5]
        self.assert_true(at_least=at_least)


def engines_of(instance: dict[str, object]) -> list[int]:
    """The processes of an instance's engine: all that carry its tag but the worker itself."""
    found = tagged("HOSTLER_INSTANCE", str(instance["instance_id"]))
    return [pid for pid in found if pid != instance["pid"]]


def is_engine(pid: int) -> bool:
    """A fake engine itself, not its warden or what made its namespace."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return (
        b"hostler.testing.fake_engine" in text and b"warden" not in text and b"unshare" not in text
    )
