"""What we tell llama.cpp, and what we read from it, without a model."""

from pathlib import Path

import pytest

xllamacpp = pytest.importorskip("xllamacpp")

from hostler.core.errors import ModelFormatError  # noqa: E402
from hostler.core.fleet import WorkerSpec  # noqa: E402
from hostler.core.model import WorkerType  # noqa: E402
from hostler.engines.llama_cpp import (  # noqa: E402
    capabilities,
    count_requests,
    find_gguf,
    native_options,
)
from hostler.engines.parameters import LlamaParameters  # noqa: E402

SPEC = WorkerSpec(
    instance_id="i",
    epoch=1,
    secret="s",
    model_name="tiny",
    worker_type=WorkerType.LLM,
    engine="llama.cpp",
    concurrency=3,
    engine_socket="/run/i.sock",
    agent_socket="/run/i.agent",
    registry_socket="/run/registry.sock",
)


def test_each_slot_has_the_context_that_was_asked_for() -> None:
    options = native_options(LlamaParameters(context_length=1000), SPEC, Path("m.gguf"))
    assert (options.n_ctx, options.n_parallel) == (3000, 3)
    assert options.fit_params is False
    assert set(options.model_alias) == {"tiny"}
    assert list(options.hostnames) == ["/run/i.sock"]


def test_every_parameter_reaches_the_engine() -> None:
    parameters = LlamaParameters(
        threads=3,
        batch_size=128,
        ubatch_size=512,
        gpu_layers=7,
        flash_attention="off",
        cache_type_k="q8_0",
        cache_type_v="f32",
        prompt_cache_bytes=64 * 2**20,
        chat_template="chatml",
    )
    options = native_options(parameters, SPEC, Path("m.gguf"))
    assert (options.n_batch, options.n_ubatch, options.n_gpu_layers) == (128, 128, 7)
    assert options.flash_attn_type == xllamacpp.llama_flash_attn_type(0)
    assert options.cache_type_k == xllamacpp.ggml_type.GGML_TYPE_Q8_0
    assert options.cache_type_v == xllamacpp.ggml_type.GGML_TYPE_F32
    assert (options.cache_ram_mib, options.chat_template) == (64, "chatml")
    assert options.cpuparams.n_threads == options.cpuparams_batch.n_threads == 3


def test_what_reaches_files_tools_or_strangers_is_off() -> None:
    options = native_options(LlamaParameters(), SPEC, Path("m.gguf"))
    assert not any(
        (options.ui, options.endpoint_slots, options.endpoint_props, options.ui_mcp_proxy)
    )
    assert options.slot_save_path == options.media_path == options.public_path == ""
    assert list(options.server_tools) == []
    assert options.verbosity < 4  # from there on prompts are logged


def test_requests_that_run_and_wait_are_summed() -> None:
    metrics = (
        b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 3\n"
        b"llamacpp:requests_deferred 2\nllamacpp:n_decode_total 99\n"
    )
    assert count_requests(metrics) == 5


def test_tools_are_a_capability_only_when_the_template_takes_and_makes_them() -> None:
    both = {"supports_tools": True, "supports_tool_calls": True}
    half = {"supports_tools": True, "supports_tool_calls": False}
    template = {"chat_template": "x"}
    assert "tools" in capabilities({**template, "chat_template_caps": both}, LlamaParameters())
    assert "tools" not in capabilities({**template, "chat_template_caps": half}, LlamaParameters())
    assert "chat" not in capabilities({}, LlamaParameters())
    assert "vision" in capabilities({"modalities": {"vision": True}}, LlamaParameters())


def test_the_model_file_is_found_or_the_reason_given(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="found none"):
        find_gguf(tmp_path)
    for part in (1, 2):
        (tmp_path / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    assert find_gguf(tmp_path).name == "big-00001-of-00002.gguf"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError, match="need one GGUF file"):
        find_gguf(tmp_path)
    assert find_gguf(tmp_path / "other.gguf").name == "other.gguf"
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="not a GGUF file"):
        find_gguf(tmp_path / "other.gguf")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        find_gguf(tmp_path / "missing.gguf")
