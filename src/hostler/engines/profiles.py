"""Profiles: the command lines of well-known OpenAI servers, as pure functions of typed parameters.

Each listens on the worker's Unix socket. They are tested as argument lists only: none of these programs ran
in our tests, so none is in `engines.base.ENGINES` yet. SGLang is missing because it has no Unix socket.
Sources: vLLM's `cli_args.py` (`--uds`), llama.cpp's server README (`--host` that ends in `.sock`).
"""

from typing import Annotated

from msgspec import Meta

from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, ModelParameters
from hostler.engines.command import Command, check_value, option, options

_Tokens = Annotated[int, Meta(ge=0, le=4_194_304, extra={"unit": "tokens"})]
_Devices = Annotated[int, Meta(ge=1, le=1024)]
_Word = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")]


class VllmParameters(ModelParameters, frozen=True, kw_only=True):
    """`vllm serve`. 0 or "": as vLLM decides."""

    max_model_len: _Tokens = 0
    tensor_parallel_size: _Devices = 1
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    dtype: _Word = ""
    quantization: _Word = ""
    tool_call_parser: _Word = ""


class LlamaServerParameters(ModelParameters, frozen=True, kw_only=True):
    """`llama-server`. context_length: of one request; each slot has as much. threads 0: its choice."""

    context_length: Annotated[int, Meta(ge=128, le=4_194_304, extra={"unit": "tokens"})] = 4096
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    gpu_layers: Annotated[int, Meta(ge=-1, le=1000)] = -1


def vllm_command(spec: WorkerSpec, given: VllmParameters, *, program: str = "vllm") -> Command:
    """Return how to serve `spec.model_path` with vLLM.

    program: from the operator's configuration, never from a request.
    """
    argv = [
        program,
        "serve",
        check_value("model_path", spec.model_path),
        option("uds", spec.engine_socket),
        option("served-model-name", spec.model_name),
        option("max-num-seqs", spec.concurrency),
        option("shutdown-timeout", round(spec.drain_timeout_s)),  # its default aborts what runs
        "--disable-uvicorn-access-log",
        *options(
            {
                "max-model-len": given.max_model_len or None,
                "tensor-parallel-size": given.tensor_parallel_size,
                "gpu-memory-utilization": given.gpu_memory_utilization,
                "dtype": given.dtype or None,
                "quantization": given.quantization or None,
            }
        ),
    ]
    if given.tool_call_parser:
        argv += ["--enable-auto-tool-choice", option("tool-call-parser", given.tool_call_parser)]
    return Command(
        argv=tuple(argv),
        upstream_model=spec.model_name,
        metadata=_metadata(spec, given.max_model_len or None),
        busy_path="/metrics",
        busy_metric="vllm:num_requests_running",
    )


def llama_server_command(
    spec: WorkerSpec, given: LlamaServerParameters, *, program: str = "llama-server"
) -> Command:
    """Return how to serve the GGUF file `spec.model_path` with llama.cpp's server."""
    argv = [
        program,
        option("model", spec.model_path),
        option("alias", spec.model_name),
        option("host", spec.engine_socket),
        option("parallel", spec.concurrency),
        option("ctx-size", given.context_length * spec.concurrency),
        option("n-gpu-layers", given.gpu_layers),
        *options({"threads": given.threads or None}),
        "--metrics",
        "--no-webui",
    ]
    return Command(
        argv=tuple(argv),
        upstream_model=spec.model_name,
        metadata=_metadata(spec, given.context_length),
        busy_path="/metrics",
        busy_metric="llamacpp:requests_processing",
    )


# Private


def _metadata(spec: WorkerSpec, context_length: int | None) -> ModelMetadata:
    return ModelMetadata(
        model=spec.model_name, worker_type=spec.worker_type, context_length=context_length
    )
