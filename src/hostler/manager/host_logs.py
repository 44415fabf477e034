"""Logs of instances on hosts: what a host tells of one at its relay, and how its controller asks for it.

The host knows nothing of who follows a log: each question names the place to read on from.
"""

import time
from collections.abc import Callable
from urllib.parse import parse_qsl

import msgspec

from hostler.app.log_file import LogFile
from hostler.app.paths import StatePaths
from hostler.app.telemetry import redact
from hostler.core.errors import BadRequest, NotFound
from hostler.core.hosts import LOG_LINES, HostLog, LogQuestion
from hostler.core.refusal import refusal_in
from hostler.core.snapshot import Endpoint
from hostler.core.trust import LogUnavailable
from hostler.registry.host import Host
from hostler.wire.client import Pool, UpstreamLost, fetch
from hostler.wire.identity import ClientContexts
from hostler.wire.relay import LOGS

LAST_S = 5.0  # for the last lines, which may be a MiB
NEW_S = 2.0  # for new ones: who follows several logs waits for the slowest of them
ANSWER_BYTES = 8 * 1024 * 1024
QUIET_S = 1.0  # the longest between two questions for new lines
_FIRST_QUIET_S = 0.25


def tell_log(
    paths: StatePaths, own_name: Callable[[str], str], instance_id: str, query: str
) -> bytes:
    """Answer a question about the log of an instance here, as JSON. It reads a file: for a thread.

    own_name: what an instance of this name is called here, "" for none; the name is well-formed.

    Raises:
        BadRequest: the question is none. NotFound: there is no such instance. OSError.
    """
    try:
        question = msgspec.convert(dict(parse_qsl(query)), LogQuestion, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(f"a question about a log: {error}") from error
    if not (own := own_name(instance_id)):
        raise NotFound(f"no instance {instance_id!r} here")
    file = LogFile(paths.worker_log(own), question.after or 0)
    lines = file.last_lines(question.tail) if question.after is None else file.new_lines()
    return msgspec.json.encode(HostLog(lines=tuple(lines), next=file.place))


class DistantLog:
    """The log of one instance on a host, for its controller. Used by one task at a time."""

    def __init__(
        self,
        instance_id: str,
        host: Callable[[], Host | None],
        tls: Callable[[], ClientContexts | None],
    ) -> None:
        """host: where it is; None: that one was removed. tls: who we are."""
        self._instance_id = instance_id
        self._host = host
        self._tls = tls
        self._pool: Pool | None = None
        self._next: int | None = None  # where to read on; None: nothing was read yet
        self._count = 0
        self._quiet_s = 0.0
        self._due_s = 0.0

    async def last_lines(self, count: int) -> list[str]:
        """Return the last lines, and stand behind them.

        Raises:
            LogUnavailable: its host does not answer, or has no such log to tell of.
        """
        self._count = count
        return await self._ask(f"tail={count}", LAST_S)

    async def new_lines(self) -> list[str]:
        """Return the lines since the last look; of a quiet log nothing, without asking each time.

        Raises:
            LogUnavailable: as `last_lines`.
        """
        if self._next is None:
            return await self.last_lines(self._count)
        if time.monotonic() < self._due_s:
            return []
        lines = await self._ask(f"after={self._next}", NEW_S)
        grown_s = min(QUIET_S, max(_FIRST_QUIET_S, self._quiet_s * 1.5))
        self._quiet_s = 0.0 if lines else grown_s
        self._due_s = time.monotonic() + self._quiet_s
        return lines

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    # Private

    async def _ask(self, query: str, timeout_s: float) -> list[str]:
        host, tls = self._host(), self._tls()
        if host is None:
            raise LogUnavailable(f"the host of instance {self._instance_id} was removed")
        if tls is None or not host.address or not host.port:
            raise LogUnavailable(f"host {host.name!r} cannot be asked: {_lacks(tls)}")
        pool = await self._connections(host.endpoint(), tls)
        path = f"{LOGS}{self._instance_id}?{query}"
        try:
            answer = await fetch(
                pool.endpoint, "GET", path, timeout_s=timeout_s, most_bytes=ANSWER_BYTES, pool=pool
            )
        except (UpstreamLost, TimeoutError, OSError) as error:
            raise LogUnavailable(
                f"host {host.name!r} does not answer ({error}); the log is in its state folder"
            ) from error
        if answer.status != 200:
            raise LogUnavailable(f"host {host.name!r} does not tell it: {_said(answer.body)}")
        try:
            log = msgspec.json.decode(answer.body, type=HostLog)
        except msgspec.MsgspecError as error:
            raise LogUnavailable(
                f"host {host.name!r}: its answer cannot be read ({error})"
            ) from error
        self._next = log.next
        return [redact(line) for line in log.lines[-LOG_LINES:]]

    async def _connections(self, endpoint: Endpoint, tls: ClientContexts) -> Pool:
        """To where the host is now: it may have got another address."""
        if self._pool is None or self._pool.endpoint != endpoint:
            await self.close()
            self._pool = Pool(endpoint, connect_timeout_s=NEW_S, idle_s=10.0, tls=tls)
        return self._pool


# Private


def _lacks(tls: ClientContexts | None) -> str:
    return "its address is not known yet" if tls else "this controller has no certificate"


def _said(body: bytes) -> str:
    return redact(refusal_in(body, "its answer cannot be read")[1])[:500]
