"""Client: one server's HTTP, for commands. Every failure is a CommandFailed that says what to do.

It knows addresses and errors, not what answers mean: commands decode and show them.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
import msgspec

from hostler.cli.exits import CommandFailed, Exit, exit_of_status
from hostler.cli.target import Target
from hostler.core.errors import ErrorBody
from hostler.wire.sse import EventCutter, SseEvent, parse_event, split_events

T = TypeVar("T")

_CONNECT_S = 5.0
ANSWER_S = 600.0  # a long answer without streaming on a slow machine
_READ_BYTES = 1024 * 1024  # of an error's body


class Client:
    """Calls to one server. Use it as a context manager. answer_s: how long what is read may take."""

    def __init__(self, target: Target, answer_s: float = ANSWER_S) -> None:
        self.target = target
        self._answer_s = answer_s
        headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        self._http = httpx2.Client(
            base_url=target.url if target.socket is None else "http://localhost",
            headers=headers,
            timeout=httpx2.Timeout(ANSWER_S, connect=_CONNECT_S),
            trust_env=not target.is_local,  # no proxy stands between us and this machine
            verify=_trust(target),
            transport=None
            if target.socket is None
            else httpx2.HTTPTransport(uds=str(target.socket)),
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def get(self, path: str, kind: type[T], **query: str | int) -> T:
        """GET and decode."""
        return self._call("GET", path, kind, query=query, timeout_s=self._answer_s)

    def post(self, path: str, body: Any, kind: type[T], timeout_s: float = ANSWER_S) -> T:
        """POST a value as JSON and decode the answer."""
        return self._call("POST", path, kind, body=body, timeout_s=timeout_s)

    def delete(self, path: str, kind: type[T], **query: str | int) -> T:
        """DELETE and decode."""
        return self._call("DELETE", path, kind, query=query)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str | int] | None = None,
        idle_s: float | None = None,
        accept: str = "*/*",
    ) -> Iterator[Iterator[bytes]]:
        """Yield the body's bytes as they come; leaving early closes the connection.

        idle_s: longest silence between two reads; None: for ever.
        """
        headers = {**_JSON, "Accept": accept}
        content = msgspec.json.encode(body) if body is not None else None
        timeout = httpx2.Timeout(idle_s, connect=_CONNECT_S)
        with (
            self._translated(path),
            self._http.stream(
                method,
                path,
                content=content,
                params=query or None,
                headers=headers,
                timeout=timeout,
            ) as answer,
        ):
            if answer.status_code >= 400:
                raise _refusal(answer.status_code, answer.read()[:_READ_BYTES], self.target)
            yield answer.iter_raw()

    @contextmanager
    def events(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str | int] | None = None,
        idle_s: float | None = None,
    ) -> Iterator[Iterator[SseEvent]]:
        """Yield server-sent events as they come."""
        with self.stream(method, path, body=body, query=query, idle_s=idle_s) as chunks:
            yield _cut(chunks)

    # Private

    def _call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: Any = None,
        query: Any = None,
        timeout_s: float = ANSWER_S,
    ) -> T:
        content = msgspec.json.encode(body) if body is not None else None
        with self._translated(path):
            answer = self._http.request(
                method,
                path,
                content=content,
                params=query or None,
                headers=_JSON,
                timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_S),
            )
        if answer.status_code >= 400:
            raise _refusal(answer.status_code, answer.content[:_READ_BYTES], self.target)
        try:
            return msgspec.json.decode(answer.content or b"null", type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CommandFailed(
                f"{self.target.url}{path}: the answer is not what this version expects ({error}); "
                "is it a Hostler server of the same version?"
            ) from error

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn the library's errors into ours."""
        url = self.target.url
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise CommandFailed(
                    f"{url}: its certificate is not one that is trusted here ({error}); name the PEM "
                    "file of who vouches for it with --ca or SSL_CERT_FILE",
                    Exit.UNREACHABLE,
                ) from error
            raise CommandFailed(
                f"{url}: nothing answers ({error}); `hostler up` starts a server, "
                "`hostler ps` says what still runs",
                Exit.UNREACHABLE,
            ) from error
        except httpx2.TimeoutException as error:
            raise CommandFailed(f"{url}{path}: no answer in time", Exit.UNREACHABLE) from error
        except httpx2.TransportError as error:
            raise CommandFailed(
                f"{url}{path}: the connection ended before the answer did "
                f"({error or type(error).__name__})"
            ) from error


class _ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorBody


def error_message(data: bytes | str) -> str | None:
    """Return the message in an OpenAI error object, None when it is not one."""
    try:
        return msgspec.json.decode(data, type=_ErrorAnswer).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


# Private


def _trust(target: Target) -> ssl.SSLContext | bool:
    """Whose word counts for an https server: those of `ca`, or of this system."""
    if target.ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(target.ca))
    except (OSError, ssl.SSLError) as error:
        raise CommandFailed(f"--ca {target.ca}: not a PEM file ({error})", Exit.USAGE) from error


_JSON = {"Content-Type": "application/json"}


def _refusal(status: int, body: bytes, target: Target) -> CommandFailed:
    message = error_message(body) or f"{target.url}: HTTP status {status}"
    if target.standby and status in (401, 503):
        return CommandFailed(target.standby, Exit.TRY_AGAIN)
    if status == 401 and target.key is None:
        message = (
            f"{target.url}: no API key was found; give one with --key or HOSTLER_API_KEY, "
            "or name the server's state folder with --state-dir"
        )
    return CommandFailed(message, exit_of_status(status))


def _cut(chunks: Iterator[bytes]) -> Iterator[SseEvent]:
    cutter = EventCutter()
    for chunk in chunks:
        for event in split_events(cutter.feed(chunk)):
            if (parsed := parse_event(event)) is not None:
                yield parsed
