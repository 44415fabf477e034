"""Engines as the controller sees them: names, parameters, and that looking costs nothing."""

import subprocess
import sys

import msgspec
import pytest

from hostler.core.errors import BadRequest, EngineError
from hostler.core.model import WorkerType, describe
from hostler.engines.base import ENGINES, check_parameters, find_engine, load_engine
from hostler.engines.parameters import LlamaParameters, OnnxParameters


@pytest.mark.parametrize("engine", ENGINES)
def test_every_parameter_is_described_for_people(engine: str) -> None:
    for parameter in describe(ENGINES[engine].parameters):
        assert parameter.label, parameter.name
        assert parameter.help.endswith("."), parameter.name
        if parameter.type in ("integer", "number"):
            assert parameter.minimum is not None, parameter.name
            assert parameter.unit, parameter.name


def test_units_ranges_and_choices_reach_the_description() -> None:
    found = {item.name: item for item in describe(LlamaParameters)}
    context = found["context_length"]
    assert (context.type, context.unit, context.default) == ("integer", "tokens", 4096)
    assert context.minimum == 128
    assert found["flash_attention"].valid_values == ("auto", "on", "off")


def test_an_unknown_engine_is_named_with_its_nearest_neighbour() -> None:
    with pytest.raises(BadRequest, match=r"no engine 'lama.cpp'; did you mean 'llama.cpp'\?"):
        find_engine("lama.cpp")
    with pytest.raises(BadRequest, match=r"known: .*onnx"):
        find_engine("zzzzzz")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"context_lenght": 1}, "context_lenght"),
        ({"context_length": "many"}, "context_length"),
        ({"context_length": 1}, ">= 128"),
        ({"cache_type_k": "f12"}, "f12"),
        ({"chat_template": "--evil $(x)"}, "chat_template"),
    ],
)
def test_wrong_parameters_are_refused_by_name(params: dict[str, object], reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as raised:
        check_parameters(find_engine("llama.cpp"), params)
    assert raised.value.param == "params"


def test_parameters_left_out_have_their_defaults() -> None:
    assert check_parameters(find_engine("onnx"), {}) == OnnxParameters()
    assert msgspec.structs.asdict(OnnxParameters())["batching"] == "auto"


def test_an_engine_without_a_process_cannot_be_loaded() -> None:
    with pytest.raises(EngineError, match="no process of ours"):
        load_engine("openai")


def test_looking_at_engines_imports_none_of_their_libraries() -> None:
    code = (
        "import sys, hostler.engines.base, hostler.engines.dialect; "
        "print([m for m in ('xllamacpp', 'onnxruntime', 'numpy', 'tokenizers') if m in sys.modules])"
    )
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=path, check=True)
    assert done.stdout.strip() == b"[]"


def test_each_engine_says_what_it_is_for() -> None:
    for kind in ENGINES.values():
        assert kind.worker_types
        assert all(isinstance(item, WorkerType) for item in kind.worker_types)
        assert kind.description.endswith(".")
