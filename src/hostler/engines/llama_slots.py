"""SlotFiles: what one slot of llama.cpp has read is lent to the others, through a file.

Slots share nothing, and llama.cpp's own prompt cache carries a prompt to one slot only. Its files hold the
tokens and their state, so a prompt could be read from one: they are in a folder that only this user can
enter, exist for the moment of a loan, one at a time, and are bounded in bytes. A slot that answers cannot
be saved, so the prompt is read by a request of our own that wants no answer.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec

from hostler.core.errors import BadRequest, EngineError
from hostler.core.request import Route
from hostler.core.snapshot import Endpoint
from hostler.engines.lending import LendOrder, PrefixLent, PrefixRead, ReadOrder
from hostler.wire.client import UpstreamLost, UpstreamStatus, fetch, stream

BYTES_MAX = 1024**3  # of one file
SPARE = 2  # times its size must be free, so that a loan never fills the disk
TOKEN_BYTES = 256 * 1024  # of a token's state before one was measured: a model of 70 B parameters
_NAME = "prefix.slot"
_JSON = ((b"content-type", b"application/json"),)
_ASK_S = 10.0  # a question; the inference loop answers it between two batches
_READ_S = 120.0  # a prompt; whoever ordered it waits less
_COPY_S = 5.0  # one save, one restore
_LEAVE_S = 3.0  # until a request that was taken back has left its slot
_POLL_S = 0.01


class SlotFiles:
    """The loans of one engine."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._token_bytes: float = TOKEN_BYTES
        self._lending = asyncio.Lock()

    async def read(self, order: ReadOrder) -> PrefixRead:
        """See PrefixLender."""
        prompt = await self._prompt(order)
        await self._wait_for_slot(order.others)
        asked = {"prompt": prompt, "n_predict": 0, "stream": True, "return_progress": True}
        last: dict[str, Any] = {}
        try:
            async with asyncio.timeout(_READ_S), aclosing(self._events(asked)) as events:
                async for event in events:
                    last = event
            return PrefixRead(slot=int(last["id_slot"]), tokens=int(last["tokens_evaluated"]))
        except TimeoutError as error:
            raise EngineError(f"llama.cpp has not read a prompt in {_READ_S:g} s") from error
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError("llama.cpp does not say where it has read a prompt") from error

    async def lend(self, order: LendOrder) -> PrefixLent:
        """See PrefixLender."""
        async with self._lending:
            self._check_space(order.tokens)
            path = self._folder / _NAME
            try:
                await self._copy(order.slot, "save")
                self._token_bytes = path.stat().st_size / max(1, order.tokens)
                done = 0
                for slot in await self._idle(order.slot, order.copies):
                    with suppress(EngineError):  # a request took this one just now
                        await self._copy(slot, "restore")
                        done += 1
                return PrefixLent(slots=done)
            except OSError as error:
                raise EngineError(f"the file of a loan: {error.strerror}") from error
            finally:
                path.unlink(missing_ok=True)

    # Private

    async def _prompt(self, order: ReadOrder) -> Any:
        """The prompt as the engine will read it."""
        if order.route is Route.COMPLETIONS:
            return order.body.get("prompt")
        for message in order.body.get("messages") or ():
            content = message.get("content")
            if isinstance(content, list) and any(part.get("type") != "text" for part in content):
                raise BadRequest("only prompts of text are lent", param="messages")
        found = await self._ask("POST", "/apply-template", order.body)
        return found.get("prompt")

    async def _wait_for_slot(self, others: int) -> None:
        """Wait until nothing runs that should not: what it has read could not be used before."""
        until_s = time.monotonic() + _LEAVE_S
        while time.monotonic() < until_s:
            slots = await self._slots()
            if sum(1 for one in slots if one["is_processing"]) <= others:
                return
            await asyncio.sleep(_POLL_S)

    async def _idle(self, but_not: int, count: int) -> list[int]:
        """Slots without a request: those first that lose least."""
        slots = [
            (int(one.get("n_prompt_tokens") or 0), int(one["id"]))
            for one in await self._slots()
            if not one["is_processing"] and one["id"] != but_not
        ]
        return [slot for _, slot in sorted(slots)[: max(0, count)]]

    async def _slots(self) -> list[dict[str, Any]]:
        answer = await self._fetch("GET", "/slots", b"", _ASK_S)
        return msgspec.json.decode(answer, type=list[dict[str, Any]])

    async def _copy(self, slot: int, action: str) -> None:
        body = msgspec.json.encode({"filename": _NAME})
        await self._fetch("POST", f"/slots/{slot}?action={action}", body, _COPY_S)

    async def _ask(self, method: str, path: str, body: Any) -> dict[str, Any]:
        answer = await self._fetch(method, path, msgspec.json.encode(body), _ASK_S)
        return msgspec.json.decode(answer, type=dict[str, Any])

    async def _fetch(self, method: str, path: str, body: bytes, timeout_s: float) -> bytes:
        try:
            answer = await fetch(
                self._endpoint, method, path, headers=_JSON, body=body, timeout_s=timeout_s
            )
        except (UpstreamLost, OSError) as error:
            raise EngineError(f"llama.cpp does not answer {method} {path}: {error}") from error
        if answer.status != 200:
            raise _refusal(answer.status, path)
        return answer.body

    async def _events(self, asked: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a completion. It is given up by closing this."""
        rest = b""
        body = msgspec.json.encode(asked)
        try:
            async with aclosing(
                stream(
                    self._endpoint,
                    "POST",
                    "/completion",
                    headers=_JSON,
                    body=body,
                    timeout_s=_READ_S,
                    idle_s=_READ_S,
                )
            ) as parts:
                async for part in parts:
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data: {"):
                            yield msgspec.json.decode(line[6:], type=dict[str, Any])
        except UpstreamStatus as error:
            raise _refusal(error.status, "/completion") from error
        except (UpstreamLost, OSError, msgspec.MsgspecError) as error:
            raise EngineError(f"llama.cpp does not read a prompt: {error}") from error

    def _check_space(self, tokens: int) -> None:
        need = tokens * self._token_bytes
        if need > BYTES_MAX:
            raise EngineError(f"a loan of {tokens} tokens would need {need / 1024**2:.0f} MiB")
        if SPARE * need > shutil.disk_usage(self._folder).free:
            raise EngineError(f"no space for a loan of {need / 1024**2:.0f} MiB")


def make_folder(folder: Path) -> bool:
    """Make an empty folder that nobody else can enter; False when that cannot be."""
    try:
        remove_folder(folder)
        folder.mkdir(mode=0o700)
    except OSError:
        return False
    return True


def remove_folder(folder: Path) -> None:
    """Leave nothing of it."""
    shutil.rmtree(folder, ignore_errors=True)


# Private


def _refusal(status: int, path: str) -> BadRequest | EngineError:
    """A prompt that it does not take is no fault of the engine."""
    text = f"llama.cpp answers {status} to {path}"
    return BadRequest(text) if status in (400, 413) and "/slots" not in path else EngineError(text)
