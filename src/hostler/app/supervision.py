"""Supervision: what a supervisor tells of its gateways, and can be asked, on a Unix socket of its own.

One line of JSON each way. The folder of the socket is its owner's alone, so nothing is proven here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from hostler.core.errors import Conflict, HostlerError, Unavailable

OWNER_VARIABLE = "HOSTLER_LEASE_OWNER"  # who a supervisor's controllers are, at a shared store
_LINE_BYTES = 64 * 1024
_ASK_S = 2.0  # for a list
_RENEW_S = 120.0  # for a renewal of all gateways


class Wish(StrEnum):
    """What can be asked."""

    LIST = "list"
    RENEW = "renew"


class GatewayProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway process. state: serving, or leaving: it finishes what it has."""

    number: int
    pid: int
    state: str
    started_at_s: float
    socket: str = ""  # its own, on which it answers what it does on the port


class Gateways(msgspec.Struct, frozen=True, kw_only=True):
    """The gateways of one machine. notes: settings that have changed and are not taken yet, and why."""

    gateways: tuple[GatewayProcess, ...] = ()
    notes: tuple[str, ...] = ()


class _Question(msgspec.Struct, frozen=True):
    wish: Wish


class _Answer(msgspec.Struct, frozen=True):
    gateways: Gateways | None = None
    refused: str = ""


async def ask_supervisor(path: Path, wish: Wish) -> Gateways:
    """Ask the supervisor that listens there.

    Raises:
        Unavailable: nobody listens: this server was not started by `hostler up`; or it takes too long.
        Conflict: it cannot be done; the text says why, and what is true now.
    """
    wait_s = _ASK_S if wish is Wish.LIST else _RENEW_S
    try:
        async with asyncio.timeout(wait_s):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=_LINE_BYTES)
            try:
                writer.write(msgspec.json.encode(_Question(wish)) + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
        answer = msgspec.json.decode(line, type=_Answer)
    except TimeoutError as error:
        raise Unavailable(
            f"the supervisor has not answered within {wait_s:g} s; what was asked may still come: "
            "`hostler gateway list` tells",
            retry_after_s=5,
        ) from error
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise Unavailable(
            "no supervisor answers: gateways that `hostler up` did not start are restarted by what "
            "started them",
            retry_after_s=5,
        ) from error
    if answer.gateways is None:
        raise Conflict(answer.refused)
    return answer.gateways


@asynccontextmanager
async def answering(
    path: Path, answer: Callable[[Wish], Awaitable[Gateways]]
) -> AsyncIterator[None]:
    """Answer there while the block lasts."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_ASK_S):
                question = msgspec.json.decode(await reader.readline(), type=_Question)
            told = _Answer(await answer(question.wish))
        except HostlerError as error:
            told = _Answer(refused=error.message)
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            told = _Answer(refused="the question cannot be read")
        writer.write(msgspec.json.encode(told) + b"\n")
        writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(serve, str(path), limit=_LINE_BYTES)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
