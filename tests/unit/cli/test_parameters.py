"""Parameters of engines as options: made from their descriptions, checked before anything is sent."""

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.main import main
from hostler.cli.parameters import (
    NO_PARAMETERS,
    RESERVED,
    engine_meant,
    engine_of,
    options_type,
    read_parameters,
    told_limits,
    told_value,
)
from hostler.core.model import ParameterDescription, WorkerType, describe
from hostler.engines.base import ENGINES

LLAMA = describe(ENGINES["llama.cpp"].parameters)
SECRET = ParameterDescription(name="token", type="string", secret=True, valid_values=("a",))


def read(*texts: str, **options: Any) -> dict[str, Any]:
    made = options_type([ENGINES["llama.cpp"]])(**options)
    return read_parameters(made, texts, LLAMA)


def test_every_parameter_of_every_engine_has_an_option() -> None:
    for kind in ENGINES.values():
        named = {field.name for field in fields(options_type([kind]))}
        assert named == {one.name for one in describe(kind.parameters)} - RESERVED
    everything = {field.name for field in fields(options_type(list(ENGINES.values())))}
    assert {"context_length", "pooling", "worker_class"} <= everything


def test_options_and_params_mean_the_same_and_keep_their_types() -> None:
    assert read(context_length=8192, threads=2) == {"context_length": 8192, "threads": 2}
    assert read("context_length=8192", "threads=2") == {"context_length": 8192, "threads": 2}
    assert read("chat_template=123") == {"chat_template": "123"}
    with pytest.raises(CommandFailed, match="given twice"):
        read("threads=1", threads=2)


def test_without_descriptions_a_value_that_is_json_is_taken_as_that() -> None:
    given = ("a=1", "b=0.5", "c=true", "d=text", 'e=["x"]', "f=a=b", "g=")
    assert read_parameters(NO_PARAMETERS, given, None) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "text",
        "e": ["x"],
        "f": "a=b",
        "g": "",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("novalue", "need NAME=VALUE"),
        ("=1", "need NAME=VALUE"),
        ("context_length=3", "at least 128 tokens, not 3"),
        ("context_length=99999999", "at most 4194304 tokens"),
        ("context_length=many", "a value of type integer"),
        ("context_length=true", "a value of type integer"),
        ("flash_attention=maybe", "one of auto, on, off"),
        ("context_lenght=4096", "did you mean --context-length"),
        ("pooling=cls", "no parameter 'pooling'; known: context_length"),
    ],
)
def test_a_wrong_parameter_is_a_usage_error_that_says_what_is_right(text: str, reason: str) -> None:
    with pytest.raises(CommandFailed, match=reason) as failed:
        read(text)
    assert failed.value.exit_code is Exit.USAGE


def test_a_secret_is_never_echoed() -> None:
    assert told_value({"token": "hush"}, SECRET) == "***"
    assert "default" not in told_limits(SECRET)
    with pytest.raises(CommandFailed) as failed:
        read_parameters(NO_PARAMETERS, ["token=hush"], [SECRET])
    assert "hush" not in failed.value.message


def test_the_engine_is_the_one_named_or_the_catalogues_or_the_one_a_source_needs() -> None:
    names = [
        engine_of("smollm2-135m-instruct"),
        engine_of("smollm2-135m-instruct", engine="fake"),
        engine_of("mine", source="x.gguf"),
        engine_of("mine", source="x", worker_type=WorkerType.RERANKER),
        engine_of("mine", servers=("http://127.0.0.1:1",)),
        engine_of("mine"),
        engine_of("mine", engine="only-on-the-server"),
    ]
    assert [kind.name if kind else None for kind in names] == [
        "llama.cpp",
        "fake",
        "llama.cpp",
        "onnx",
        "openai",
        None,
        None,
    ]
    assert engine_meant(["--engine", "onnx", "--help"]) is ENGINES["onnx"]
    assert engine_meant(["smollm2-135m-instruct", "--engine=fake", "-h"]) is ENGINES["fake"]


@pytest.mark.parametrize("command", ["start", "update"])
def test_help_shows_the_parameters_of_the_engine_it_is_about(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*words: str) -> str:
        assert main(["model", command, *words, "--help"]) == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    chat, vectors, every = shown("smollm2-135m-instruct"), shown("bge-small-en-v1.5"), shown()
    assert "Parameters of llama.cpp" in chat
    assert "128 to 4194304 tokens; default: 4096" in chat
    assert "--pooling" not in chat
    assert "Parameters of onnx" in vectors
    assert "--normalize --no-normalize" in vectors
    assert "--context-length" in every
    assert "--pooling" in every
    if command == "start":
        assert "Parameters of python" in shown("--engine", "python")


def test_completion_knows_the_options_of_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "print", "--shell", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--context-length" in script
    assert "--worker-class" in script


def test_commands_work_when_another_package_has_brought_pydantic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it in the process Cyclopts has it check every value, defaults included."""
    importlib.import_module("pydantic")
    for words in (
        ["start", "qwen"],
        ["start", "qwen", "--context-length", "4096"],
        ["update", "q", "--replicas", "2"],
    ):
        code = main(["model", *words, "--state-dir", str(tmp_path)])
        assert code == Exit.UNREACHABLE, capsys.readouterr().err
