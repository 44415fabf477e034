"""Log lines: their form, their fields, and what never stands in them."""

import io
import logging
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app.auth import new_key
from hostler.app.telemetry import (
    JsonFormatter,
    PlainFormatter,
    configure_logging,
    logger,
    redact,
    request_id,
)


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


def test_redaction_leaves_other_text_alone() -> None:
    text = "the bearer of hst_short_1 went 3 m"
    assert redact("plain text " * 3) == "plain text " * 3
    assert "hst_short_1" in redact(text)
