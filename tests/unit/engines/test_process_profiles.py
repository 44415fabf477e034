"""Command lines of programs that we cannot run here: exact lists, and nothing slips in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.errors import BadRequest
from hostler.core.fleet import WorkerSpec
from hostler.core.model import WorkerType
from hostler.engines.profiles import (
    LlamaServerParameters,
    VllmParameters,
    llama_server_command,
    vllm_command,
)


def spec(model_path: str = "/models/m", model_name: str = "m") -> WorkerSpec:
    return WorkerSpec(
        instance_id="i1",
        epoch=1,
        secret="",
        model_name=model_name,
        worker_type=WorkerType.LLM,
        engine="",
        model_path=model_path,
        concurrency=4,
        engine_socket="/run/i1.sock",
        agent_socket="",
        registry_socket="",
    )


def test_vllm_listens_on_the_socket_under_our_name() -> None:
    command = vllm_command(spec(), VllmParameters(max_model_len=8192, tool_call_parser="hermes"))
    assert command.argv == (
        "vllm",
        "serve",
        "/models/m",
        "--uds=/run/i1.sock",
        "--served-model-name=m",
        "--max-num-seqs=4",
        "--shutdown-timeout=30",
        "--disable-uvicorn-access-log",
        "--max-model-len=8192",
        "--tensor-parallel-size=1",
        "--gpu-memory-utilization=0.9",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
    )
    assert command.upstream_model == "m"


def test_llama_server_gives_each_slot_its_whole_context() -> None:
    command = llama_server_command(spec("/models/m.gguf"), LlamaServerParameters(threads=3))
    assert command.argv == (
        "llama-server",
        "--model=/models/m.gguf",
        "--alias=m",
        "--host=/run/i1.sock",
        "--parallel=4",
        "--ctx-size=16384",
        "--n-gpu-layers=-1",
        "--threads=3",
        "--metrics",
        "--no-webui",
    )


@given(st.text(), st.text())
def test_F103_no_path_or_name_becomes_an_option(path: str, name: str) -> None:
    plain = vllm_command(spec(), VllmParameters())
    try:
        command = vllm_command(spec(path, name), VllmParameters())
    except BadRequest:
        return
    assert len(command.argv) == len(plain.argv)
    assert command.argv[2] == path
    assert not path.startswith("-")
    assert command.argv[4] == f"--served-model-name={name}"


def test_F103_a_path_that_looks_like_an_option_is_refused() -> None:
    with pytest.raises(BadRequest):
        vllm_command(spec("--trust-remote-code"), VllmParameters())
