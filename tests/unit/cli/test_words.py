"""Small decisions of commands: names, parameters, addresses, exit codes."""

import msgspec
import pytest

from hostler.cli.chat import split_names
from hostler.cli.exits import CommandFailed, Exit, exit_of_error, exit_of_status
from hostler.cli.follow import go_on_from
from hostler.cli.meter import Meter
from hostler.cli.ps import busy
from hostler.cli.serving import Served, pick_model
from hostler.core.errors import ConfigError, ModelNotFound, StartupError
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.worker import OperatorEvent, WorkerRunData

CHAT = Served(id="small", worker_type=WorkerType.LLM, aliases=("tiny",))
OTHER = Served(id="large", worker_type=WorkerType.LLM)
VECTORS = Served(id="vectors", worker_type=WorkerType.TEXT2VEC)


def test_the_only_model_of_a_kind_is_meant_when_none_is_named() -> None:
    assert pick_model((CHAT, VECTORS), None, WorkerType.LLM) == "small"
    stopped = msgspec.structs.replace(OTHER, wanted=0)
    assert pick_model((stopped, CHAT), None, WorkerType.LLM) == "small"
    assert pick_model((stopped, CHAT), "large", WorkerType.LLM) == "large"


def test_a_name_or_an_alias_is_taken_as_it_is() -> None:
    assert pick_model((CHAT, VECTORS), "tiny", WorkerType.LLM) == "tiny"


@pytest.mark.parametrize(
    ("models", "name", "code", "said"),
    [
        ((CHAT, OTHER), None, Exit.USAGE, "small, large"),
        ((VECTORS,), None, Exit.NOT_FOUND, "hostler model start"),
        ((CHAT, VECTORS), "smal", Exit.NOT_FOUND, "did you mean small?"),
        ((CHAT,), "zzz", Exit.NOT_FOUND, "known: small"),
    ],
)
def test_a_choice_that_cannot_be_made_says_what_there_is(
    models: tuple[Served, ...], name: str | None, code: Exit, said: str
) -> None:
    with pytest.raises(CommandFailed) as failed:
        pick_model(models, name, WorkerType.LLM)
    assert failed.value.exit_code is code
    assert said in failed.value.message


@pytest.mark.parametrize(
    ("model", "prompt", "use", "expected"),
    [
        (None, None, None, (None, None)),
        ("small", None, None, ("small", None)),
        ("small", "hi", None, ("small", "hi")),
        ("how are you", None, None, (None, "how are you")),
        ("hi", None, "small", ("small", "hi")),
        ("hi", "there", "small", ("small", "hi there")),
        (None, None, "small", ("small", None)),
    ],
)
def test_a_first_word_with_spaces_is_a_prompt(
    model: str | None,
    prompt: str | None,
    use: str | None,
    expected: tuple[str | None, str | None],
) -> None:
    assert split_names(model, prompt, use) == expected


def test_a_stream_is_taken_up_after_the_last_event_seen() -> None:
    address = "/api/v1/events?follow=true&after=7&model=a%2Fb"
    assert go_on_from(address, 9) == "/api/v1/events?follow=true&model=a%2Fb&after=9"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, Exit.AUTH),
        (403, Exit.AUTH),
        (404, Exit.NOT_FOUND),
        (409, Exit.CONFLICT),
        (429, Exit.TRY_AGAIN),
        (503, Exit.TRY_AGAIN),
        (400, Exit.FAILED),
        (500, Exit.FAILED),
    ],
)
def test_an_http_status_has_an_exit_code(status: int, code: Exit) -> None:
    assert exit_of_status(status) is code


def test_a_refused_configuration_has_its_own_exit_code() -> None:
    assert exit_of_error(ConfigError("x")) is Exit.CONFIG
    assert exit_of_error(ModelNotFound("x")) is Exit.NOT_FOUND
    assert exit_of_error(StartupError("x")) is Exit.FAILED


def test_a_draining_instance_says_how_many_requests_are_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = WorkerRunData(
        worker_key="m@llm",
        worker_type=WorkerType.LLM,
        model_name="m",
        instance_id="i1",
        in_flight=3,
        limit_model_concurrency=8,
    )
    drains = msgspec.structs.replace(one, state=State.DRAINING)
    assert (busy(one), busy(drains)) == ("3/8", "3 left")
    meter = Meter(quiet=False)
    for left in (3, 3, 1):
        meter.show_drains([one, msgspec.structs.replace(drains, in_flight=left)])
    assert capsys.readouterr().err.splitlines() == ["m: i1 drains, 3 left", "m: i1 drains, 1 left"]


def test_a_download_and_a_load_are_told_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(quiet=False)
    fetch = OperatorEvent(
        kind="fetch.progress",
        model="m",
        instance_id="i1",
        message="downloading",
        fields={"done_bytes": 1 << 20, "total_bytes": 4 << 20},
    )
    load = OperatorEvent(
        kind="start.progress",
        model="m",
        instance_id="i2",
        message="loading for 12 s of 600 s at most",
        fields={"memory_bytes": 300 << 20},
    )
    for event in (fetch, fetch, load, load):
        meter.show(event)
    assert capsys.readouterr().err.splitlines() == [
        "m: downloading, 1 MB of 4 MB",
        "m: loading for 12 s of 600 s at most, 315 MB",
    ]
