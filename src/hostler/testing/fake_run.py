"""How the fake engine writes one answer that takes time or goes wrong half-way."""

import asyncio
import time

from hostler.testing import fake_faults, fake_http
from hostler.testing.executions import Execution, ExecutionLog
from hostler.testing.fake_answers import Answer
from hostler.testing.fake_http import Connection
from hostler.testing.fake_memory import Memory

GARBAGE = b"\x16\x03\x01\x02\x00this is no HTTP\r\n\r\n"


async def run_answer(
    connection: Connection, answer: Answer, execution: Execution, log: ExecutionLog, memory: Memory
) -> None:
    """Send the answer as its script says. Cancelled when the client leaves."""
    script = answer.script
    fake_faults.print_megabytes(script.stdout_mb)
    held = [b"x" * 1_000_000 for _ in range(script.allocate_mb)]
    if script.first_delay_ms:
        await asyncio.sleep(script.first_delay_ms / 1000)
    if script.read_ms:
        execution.read_tokens = memory.missing(answer.blocks, answer.prompt_tokens)
        await asyncio.sleep(execution.read_tokens * script.read_ms / 1000)
        memory.keep(answer.blocks)
    await _point(0, connection, answer, execution, log)
    if answer.stream:
        await _run_stream(connection, answer, execution, log)
    else:
        await _run_whole(connection, answer, execution, log)
    held.clear()


# Private


async def _run_whole(
    connection: Connection, answer: Answer, execution: Execution, log: ExecutionLog
) -> None:
    script = answer.script
    head = answer.whole[: answer.whole.index(b"\r\n\r\n") + 4]
    if script.half_alive:
        connection.send(head)
        await _for_ever()
    if script.delay_ms:
        await asyncio.sleep(script.delay_ms * answer.tokens / 1000)
    for place in (script.crash_at, script.hang_at):
        if place:  # in a whole answer any token is before the first byte
            await _point(place, connection, answer, execution, log)
    if await _spoil_head(connection, answer, head):
        return
    if script.spoil or script.half_at is not None or script.ending in ("cut", "reset"):
        await _send(connection, answer, answer.whole[: len(answer.whole) // 2])
        await _stop_short(connection, answer, execution, log)
        return
    execution.tokens = answer.tokens
    await _send(connection, answer, answer.whole)


async def _run_stream(
    connection: Connection, answer: Answer, execution: Execution, log: ExecutionLog
) -> None:
    script = answer.script
    kind = script.content_type or "text/event-stream; charset=utf-8"
    head = fake_http.head(200, "cache-control: no-cache\r\n", kind, None)
    if await _spoil_head(connection, answer, head):
        return
    connection.send(head)
    if script.half_alive:
        await _for_ever()
    for event in answer.events:
        if script.delay_ms:
            await asyncio.sleep(script.delay_ms / 1000)
        if execution.tokens == script.half_at:
            await _send(connection, answer, fake_http.chunk(event[: len(event) // 2]))
            await _stop_short(connection, answer, execution, log)
            return
        if script.spoil and 2 * execution.tokens >= len(answer.events):
            frame = fake_http.chunk(event)
            await _send(connection, answer, frame[: len(frame) // 2])
            await _stop_short(connection, answer, execution, log)
            return
        await _send(connection, answer, fake_http.chunk(event))
        execution.tokens += 1
        if execution.first_token_at_s is None:
            execution.first_token_at_s = time.monotonic()
        await _point(execution.tokens, connection, answer, execution, log)
    if script.ending in ("cut", "reset"):
        await _stop_short(connection, answer, execution, log)
        return
    for event in answer.tail:
        await _send(connection, answer, fake_http.chunk(event))
    if script.ending == "open":
        await _for_ever()
    await _send(connection, answer, fake_http.LAST_CHUNK)


async def _send(connection: Connection, answer: Answer, data: bytes) -> None:
    """Write in one piece, or drop by drop; lets other requests run in between."""
    step = answer.script.drip_bytes
    if not step:
        connection.send(data)
        await asyncio.sleep(0)
    for start in range(0, len(data) if step else 0, step or 1):
        connection.send(data[start : start + step])
        await asyncio.sleep(answer.script.drip_ms / 1000)
    await connection.writable()


async def _point(
    place: int, connection: Connection, answer: Answer, execution: Execution, log: ExecutionLog
) -> None:
    """Do what the script says of this place in the answer."""
    script = answer.script
    if script.crash_at == place:
        await _crash(script.crash_with, execution, log)
    if script.hang_at == place:
        await _for_ever()


async def _stop_short(
    connection: Connection, answer: Answer, execution: Execution, log: ExecutionLog
) -> None:
    script = answer.script
    if script.half_at is not None:
        await _crash(script.crash_with, execution, log)
    if script.ending == "reset" or script.spoil:
        await _reset(connection)
    else:
        connection.close()


async def _spoil_head(connection: Connection, answer: Answer, head: bytes) -> bool:
    """Say half of a head, or what is none, if the script wants that; return whether it did."""
    match answer.script.spoil:
        case "head":
            await _send(connection, answer, head[: len(head) // 2])
            await _reset(connection)
        case "garbage":
            await _send(connection, answer, GARBAGE)
            connection.close()
        case _:
            return False
    return True


async def _reset(connection: Connection) -> None:
    await asyncio.sleep(0.01)  # what was written arrives first
    connection.reset()


async def _crash(how: str, execution: Execution, log: ExecutionLog) -> None:
    await asyncio.sleep(0.01)  # what was written leaves the process first
    fake_faults.crash(how, execution, log)


async def _for_ever() -> None:
    await asyncio.Event().wait()
