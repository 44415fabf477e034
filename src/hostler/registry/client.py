"""The registry seen from another process that reports to it. Who watches it: mirror.py."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hostler.core.errors import (
    Conflict,
    ControllerUnavailable,
    HostlerError,
    StaleEpoch,
    UnknownInstance,
)
from hostler.core.fleet import Beat, BeatAnswer, Departure, Doubt, Registration
from hostler.core.loads import LoadAnswer, LoadReport
from hostler.core.refusal import refusal_in
from hostler.core.scaling import DemandReport
from hostler.core.snapshot import Endpoint
from hostler.core.usage import UsageBatch
from hostler.wire.client import Pool, Response, UpstreamLost, fetch
from hostler.wire.identity import ClientContexts

_RAISED: Mapping[int, type[HostlerError]] = {409: StaleEpoch, 410: UnknownInstance}
_JSON = ((b"content-type", b"application/json"),)
IDLE_S = 60.0  # of a connection to another machine; a server of ours closes after 75


class RegistryClient:
    """How a worker agent reports, and a gateway what it counted."""

    def __init__(
        self,
        where: str | Path | Endpoint,
        *,
        timeout_s: float = 2.0,
        tls: ClientContexts | None = None,
        newest: Callable[[], Endpoint] | None = None,
    ) -> None:
        """where: the registry's socket, or the control port of another machine. tls: who we are there.
        newest: of several controllers the one to tell now.
        """
        self._endpoint = endpoint_of(where)
        self._newest = newest
        self._timeout_s = timeout_s
        self._tls = tls
        self._pool: Pool | None = None  # to another machine a connection is kept

    async def register(self, registration: Registration) -> BeatAnswer:
        """Say that the worker has loaded.

        Raises:
            StaleEpoch, UnknownInstance: this process is not wanted (any more).
            ControllerUnavailable: nobody answers; try again.
        """
        return await self._post("/register", registration)

    async def beat(self, beat: Beat) -> BeatAnswer:
        """Say that the worker lives. Raises as `register`."""
        return await self._post("/beat", beat)

    async def deregister(self, departure: Departure) -> None:
        """Say that the worker leaves. Raises as `register`."""
        await self._post("/deregister", departure)

    async def doubt(self, doubt: Doubt) -> None:
        """Say that an engine takes requests and says nothing. Raises as `register`."""
        await self._post("/doubt", doubt)

    async def demand(self, report: DemandReport) -> None:
        """Say what there is to do of models that are scaled. Raises as `register`."""
        await self._post("/demand", report)

    async def loads(self, report: LoadReport) -> LoadAnswer:
        """Say what we have in instances; hear what gateways of other machines have.

        Raises:
            ControllerUnavailable: nobody answers, or one of the version before.
        """
        answer = await self._send("/loads", report)
        if answer.status != 200:
            raise ControllerUnavailable(refusal_in(answer.body)[1])
        try:
            return msgspec.json.decode(answer.body, type=LoadAnswer)
        except msgspec.MsgspecError as error:
            raise ControllerUnavailable(f"its answer cannot be read: {error}") from error

    async def report_usage(self, batch: UsageBatch) -> None:
        """Say what was used; when this returns it is kept.

        Raises:
            ControllerUnavailable: nobody answers, or it could not be kept now; send the same again.
        """
        answer = await self._send("/usage", batch)
        if answer.status != 200:
            raise ControllerUnavailable(refusal_in(answer.body)[1])

    def is_held(self) -> bool:
        """Whether a process holds the registry's socket, answering or not. Does not block."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(self._endpoint.socket)
            except BlockingIOError:
                return True  # more connections wait there than may
            except OSError:
                return False
        return True

    async def close(self) -> None:
        """Close the connection that is kept."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    # Private

    async def _post(self, path: str, message: msgspec.Struct) -> BeatAnswer:
        answer = await self._send(path, message)
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=BeatAnswer)
        code, text = refusal_in(answer.body)
        if code == Conflict.code:
            raise UnknownInstance(text)
        raise _RAISED.get(answer.status, ControllerUnavailable)(text)

    async def _send(self, path: str, message: msgspec.Struct) -> Response:
        if self._newest is not None and (newest := self._newest()) != self._endpoint:
            self._endpoint = newest
            await self.close()
        if self._endpoint.host_id and self._pool is None:
            self._pool = Pool(
                self._endpoint, connect_timeout_s=self._timeout_s, idle_s=IDLE_S, tls=self._tls
            )
        try:
            return await fetch(
                self._endpoint,
                "POST",
                path,
                headers=_JSON,
                body=msgspec.json.encode(message),
                timeout_s=self._timeout_s,
                pool=self._pool,
            )
        except (UpstreamLost, TimeoutError, OSError) as error:
            if self._pool is not None:
                self._pool.drop_idle()
            raise ControllerUnavailable() from error


# Private


def endpoint_of(where: str | Path | Endpoint) -> Endpoint:
    return where if isinstance(where, Endpoint) else Endpoint(socket=str(where))
