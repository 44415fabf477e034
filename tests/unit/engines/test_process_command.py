"""Commands of engine processes: typed values in, exactly these arguments out."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.core.errors import BadRequest
from hostler.core.fleet import WorkerSpec
from hostler.core.model import WorkerType
from hostler.engines.command import check_argv, check_value, metric, option, options
from hostler.engines.fake import fake_command
from hostler.engines.output import RING_BYTES, EngineOutput
from hostler.engines.process import exit_text
from tests.amounts import many


def spec(**params: object) -> WorkerSpec:
    return WorkerSpec(
        instance_id="i1",
        epoch=1,
        secret="",
        model_name="m",
        worker_type=WorkerType.LLM,
        engine="fake",
        params=params,
        engine_socket="/tmp/i1.sock",
        agent_socket="",
        registry_socket="",
    )


def is_allowed(value: str) -> bool:
    bad = {"Cc", "Cs"}
    begins_bad = bool(value) and unicodedata.category(value[0]) == "Pd"
    return not begins_bad and all(unicodedata.category(c) not in bad for c in value)


hostile = st.one_of(
    st.text(),
    st.text(alphabet="-—\u2010$()`;|&<>\"'\\ \n\0\t=x\ud800"),
    st.sampled_from(
        ["--socket=/tmp/x", "-x", "—x", "$(id)", "`id`", "a b", "a\nb", "a\0b", "; rm"]
    ),
)


@settings(max_examples=many(3000))
@given(hostile)
def test_F103_a_text_is_one_argument_or_refused(value: str) -> None:
    if is_allowed(value):
        assert option("key", value) == f"--key={value}"
    else:
        with pytest.raises(BadRequest) as raised:
            option("key", value)
        assert raised.value.param == "key"


@settings(max_examples=many(1000))
@given(hostile, hostile)
def test_F103_no_parameter_adds_an_argument(model: str, ledger: str) -> None:
    plain = len(fake_command(spec(model="m", ledger="l")).argv)
    try:
        command = fake_command(spec(model=model, ledger=ledger))
    except BadRequest:
        assert not (is_allowed(model) and is_allowed(ledger))
        return
    assert len(command.argv) == plain - (not ledger)
    assert [item for item in command.argv if item.startswith("--model")] == [
        f"--model={model or 'm'}"
    ]
    allowed = ("-P", "-m")
    assert all(not item.startswith("-") or item in allowed or "=" in item for item in command.argv)


def test_numbers_may_be_negative_and_none_is_left_out() -> None:
    assert options({"gpu-layers": -1, "x": None, "y": 0.5}) == ["--gpu-layers=-1", "--y=0.5"]


def test_an_empty_text_is_a_value() -> None:
    assert check_value("key", "") == ""


def test_a_command_needs_a_program_and_no_nul() -> None:
    for argv in ([], [""], ["x", "a\0b"]):
        with pytest.raises(BadRequest):
            check_argv(argv)


def test_script_and_typed_parameters_meet_in_the_script() -> None:
    command = fake_command(spec(tokens=3, script='{"delay_ms": 2}'))
    (script,) = (item for item in command.argv if item.startswith("--script="))
    assert json.loads(script.partition("=")[2]) == {"tokens": 3, "delay_ms": 2}


@pytest.mark.parametrize("params", [{"script": "[1]"}, {"script": "{"}, {"tokens": -1}, {"x": 1}])
def test_wrong_parameters_are_the_askers_fault(params: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        fake_command(spec(**params))


def test_a_metric_is_summed_over_its_labels() -> None:
    text = '# HELP a b\nx:running{gpu="0"} 2\nx:running{gpu="1"} 1.0\nx:running_total 9\n'
    assert metric(text, "x:running") == 3
    assert metric(text, "y") is None


def test_F18_a_flood_stays_within_its_bounds() -> None:
    output = EngineOutput(None)
    line = b"y" * 99 + b"\n"
    for _ in range(100):
        output.feed(line * 1000)
    kept = output.last_lines(10**9)
    assert sum(len(text) + 1 for text in kept) <= RING_BYTES
    assert output.last_lines(2) == [line.decode().strip()] * 2


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exit code 0"), (137, "killed by signal 9"), (-11, "killed by signal 11"), (None, "gone")],
)
def test_an_end_is_told_in_words(code: int | None, text: str) -> None:
    assert text in exit_text(code)
