"""Log lines: their form, their fields, and what never stands in them."""

import asyncio
import io
import logging
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app.auth import new_key
from hostler.app.telemetry import (
    OFTEN_LINES,
    JsonFormatter,
    PlainFormatter,
    configure_logging,
    logger,
    redact,
    request_id,
)
from hostler.app.tokens import new_token, parse_token
from hostler.core.hosts import Role
from hostler.gateway.timeline import Timeline


@pytest.fixture
def lines() -> Iterator[Callable[..., list[str]]]:
    """Set logging up and return what was written so far."""
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    stream = io.StringIO()

    def start(json_lines: bool) -> Callable[[], list[str]]:
        configure_logging(json_lines=json_lines, level="INFO", stream=stream)
        return lambda: stream.getvalue().splitlines()

    yield start  # type: ignore[misc]
    logging.captureWarnings(False)
    root.handlers[:] = kept
    root.setLevel(level)


def test_a_json_line_has_the_event_its_fields_and_the_request(lines: Callable[..., object]) -> None:
    written = lines(json_lines=True)
    token = request_id.set("req_1")
    logger("hostler.x").info("instance.ready", worker_key="a@llm", took_s=1.5, level="mine")
    request_id.reset(token)
    logger("hostler.x").debug("not.shown")
    (line,) = written()  # type: ignore[operator]
    told = msgspec.json.decode(line)
    assert told.pop("at").endswith("Z")
    assert told == {
        "level": "info",
        "event": "instance.ready",
        "logger": "hostler.x",
        "request_id": "req_1",
        "worker_key": "a@llm",
        "took_s": 1.5,
        "field_level": "mine",
    }


def test_a_plain_line_is_for_people(lines: Callable[..., object]) -> None:
    written = lines(json_lines=False)
    logger("x").warning("fetch.slow", model="a", reason="two words", odd="a\nb")
    (line,) = written()  # type: ignore[operator]
    assert line[9:] == 'warning fetch.slow model=a reason="two words" odd=a\\u000ab'


def test_S23_no_key_token_or_prompt_is_ever_written(lines: Callable[..., object]) -> None:
    written = lines(json_lines=True)
    key = new_key(["admin"]).plain
    log = logger("x")
    log.info("a", header=f"Authorization: Bearer {key}", other="bearer sk-abc.def")
    log.info("b", secret="s3cr3t", api_key="k3y", admin_token="t0k3n", prompt="pr0mpt")
    log.info("c", nested={"deep": [key]})
    logging.getLogger("library").warning("key %s", key)
    try:
        raise ValueError(f"bad key {key}")
    except ValueError as error:
        log.error("d", error=error)
    text = "\n".join(written())  # type: ignore[operator]
    assert key.split("_")[2] not in text
    for secret in ("sk-abc", "s3cr3t", "k3y", "t0k3n", "pr0mpt"):
        assert secret not in text
    assert text.count("[redacted]") >= 9
    assert key.split("_")[1] in text  # which key it was can be told


def test_counts_of_tokens_are_no_secrets(lines: Callable[..., object]) -> None:
    written = lines(json_lines=False)
    logger("x").info("done", prompt_tokens=3, completion_tokens=4)
    assert written()[0].endswith("prompt_tokens=3 completion_tokens=4")  # type: ignore[operator]


@given(st.text(max_size=60), st.text(max_size=60))
def test_F96_whatever_is_logged_stays_on_one_line(event: str, value: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, event, (), None)
    record.fields = {"value": value}
    for formatter in (JsonFormatter(), PlainFormatter()):
        text = formatter.format(record)
        assert len(text.splitlines()) == 1
        assert text.isprintable() or isinstance(formatter, JsonFormatter)


def test_a_join_token_is_shown_by_its_id_alone() -> None:
    made = new_token(Role.HOST, "f" * 64)
    secret = parse_token(made.plain).secret
    told = redact(f"hostler host join --token {made.plain} --name b")
    assert secret not in told
    assert secret[:16] not in redact(made.plain[:40])
    assert f"hstj_{made.stored.token_id}_[redacted]" in told


def test_redaction_leaves_other_text_alone() -> None:
    text = "the bearer of hst_short_1 went 3 m"
    assert redact("plain text " * 3) == "plain text " * 3
    assert "hst_short_1" in redact(text)


class Told:
    """A story of one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def plain(self) -> str:
        return f"number={self.number}"

    def fields(self) -> dict[str, object]:
        return {"number": self.number}


@pytest.mark.parametrize("json_lines", [True, False])
@pytest.mark.parametrize("code", ["", "worker_lost"])
def test_a_frequent_line_reads_like_any_other(
    lines: Callable[..., Callable[[], list[str]]], json_lines: bool, code: str
) -> None:
    written = lines(json_lines=json_lines)
    secret = "hst_0123456789_" + "s" * 40  # a client may give anything of these letters as its id
    story = Timeline(secret, "k1", "org/model-1.5b", "chat", True, 100.0)
    story.tried("i1", "least in flight", 100.0)
    story.started(100.125)
    story.ended(502 if code else 200, code, 100.25)

    async def main() -> None:
        logger("hostler.x").often("request", story)
        logger("hostler.x").info("request", **story.fields())

    asyncio.run(main())
    often, once = written()
    start = len('{"at":"2026-01-01T00:00:00.000Z"') if json_lines else len("12:00:00")
    assert often[start:].replace("took_s=0.250000", "took_s=0.25") == once[start:]
    assert "sss" not in often


def test_frequent_lines_are_written_in_order_when_they_are_many_or_time_is_up(
    lines: Callable[..., Callable[[], list[str]]],
) -> None:
    written = lines(json_lines=False)
    log = logger("hostler.x")

    async def main() -> None:
        for number in range(OFTEN_LINES - 1):
            log.often("request", Told(number))
        assert written() == []
        log.often("request", Told(OFTEN_LINES - 1))
        assert len(written()) == OFTEN_LINES
        log.often("request", Told(OFTEN_LINES))
        log.warning("other")

    asyncio.run(main())
    assert [line.split("=")[-1] for line in written()[:-1]] == [
        str(number) for number in range(OFTEN_LINES + 1)
    ]
    assert written()[-1].endswith("warning other")


def test_what_is_held_is_written_when_the_process_ends(
    lines: Callable[..., Callable[[], list[str]]],
) -> None:
    written = lines(json_lines=False)

    async def main() -> None:
        logger("hostler.x").often("request", Told(1))

    asyncio.run(main())
    assert written() == []
    logging.getLogger().handlers[0].flush()  # as logging.shutdown does
    assert len(written()) == 1
