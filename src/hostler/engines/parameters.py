"""What can be set for each engine: typed, described, and light enough for any process to import.

The controller, the command line and the docs read these; only a worker imports an engine itself.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from hostler.core.model import ModelParameters

Threads = Annotated[
    int,
    Meta(
        title="Threads",
        description="CPU threads of this engine. 0: one fewer than the cores.",
        ge=0,
        le=1024,
        extra={"unit": "threads"},
    ),
]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class LlamaParameters(ModelParameters, frozen=True, kw_only=True):
    """llama.cpp in the worker process."""

    context_length: Annotated[
        int,
        Meta(
            title="Context length",
            description="Prompt and answer of one request together. Each slot has as much.",
            ge=128,
            le=4_194_304,
            extra={"unit": "tokens"},
        ),
    ] = 4096
    threads: Threads = 0
    batch_size: Annotated[
        int,
        Meta(
            title="Batch size",
            description="Prompt tokens taken in at once. A request that is given up is noticed "
            "between batches, so more is slower to cancel. On a CPU 64 is as fast as 512, and 32 "
            "costs 17 %; a GPU wants 512 or more.",
            ge=32,
            le=16_384,
            extra={"unit": "tokens"},
        ),
    ] = 64
    ubatch_size: Annotated[
        int,
        Meta(
            title="Micro-batch size",
            description="Tokens computed at once inside a batch; at most the batch size.",
            ge=16,
            le=16_384,
            extra={"unit": "tokens"},
        ),
    ] = 512
    gpu_layers: Annotated[
        int,
        Meta(
            title="GPU layers",
            description="Layers kept on the GPU. -1: all that fit. Without a GPU it does nothing.",
            ge=-1,
            le=1000,
            extra={"unit": "layers"},
        ),
    ] = -1
    flash_attention: Annotated[
        Literal["auto", "on", "off"],
        Meta(title="Flash attention", description="auto: where the device supports it."),
    ] = "auto"
    cache_type_k: Annotated[
        CacheType,
        Meta(
            title="Key cache type",
            description="Number format of cached keys; smaller needs less memory, loses accuracy.",
        ),
    ] = "f16"
    cache_type_v: Annotated[
        CacheType,
        Meta(
            title="Value cache type",
            description="Number format of cached values. Below f16 it needs flash attention.",
        ),
    ] = "f16"
    prompt_cache_bytes: Annotated[
        int,
        Meta(
            title="Prompt cache",
            description="Memory for the state of earlier prompts, to answer their follow-ups fast.",
            ge=0,
            le=1 << 42,
            extra={"unit": "bytes"},
        ),
    ] = 256 * 1024 * 1024
    chat_template: Annotated[
        str,
        Meta(
            title="Chat template",
            description="A template known to llama.cpp by name (chatml, llama3, ...). "
            "Empty: the one in the model's file.",
            max_length=64,
            pattern=r"^[a-z0-9._-]*$",
        ),
    ] = ""


class OnnxParameters(ModelParameters, frozen=True, kw_only=True):
    """ONNX Runtime in the worker process, for embeddings and reranking."""

    threads: Threads = 0
    max_length: Annotated[
        int,
        Meta(
            title="Longest input",
            description="Longer inputs are cut to this. 0: what the model says it can take.",
            ge=0,
            le=131_072,
            extra={"unit": "tokens"},
        ),
    ] = 0
    pooling: Annotated[
        Literal["auto", "cls", "mean"],
        Meta(
            title="Pooling",
            description="How token vectors become one vector. auto: as the model's folder says, "
            "else by its family.",
        ),
    ] = "auto"
    normalize: Annotated[
        bool, Meta(title="Normalise", description="Give every embedding the length 1.")
    ] = True
    batch_tokens: Annotated[
        int,
        Meta(
            title="Batch budget",
            description="Padded tokens computed at once, over all requests that wait.",
            ge=16,
            le=1_048_576,
            extra={"unit": "tokens"},
        ),
    ] = 2048
    queue_length: Annotated[
        int,
        Meta(
            title="Queue length",
            description="Texts that may wait; more are refused as overload.",
            ge=1,
            le=1_000_000,
            extra={"unit": "texts"},
        ),
    ] = 8192
    batching: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            title="Batching",
            description="Compute several texts in one run. auto: unless the model quantizes over "
            "the whole batch, which makes a text's vector depend on its neighbours.",
        ),
    ] = "auto"
    max_inputs: Annotated[
        int,
        Meta(
            title="Inputs a request",
            description="Texts or documents that one request may bring.",
            ge=1,
            le=65_536,
            extra={"unit": "texts"},
        ),
    ] = 2048
    tokenizer: Annotated[
        str,
        Meta(
            title="Tokenizer file",
            description="Path of a tokenizer.json, for a model folder without one.",
            max_length=4096,
        ),
    ] = ""


class PythonParameters(ModelParameters, frozen=True, kw_only=True):
    """A ModelWorker class of yours."""

    worker_class: Annotated[
        str,
        Meta(
            title="Worker class",
            description="Where the class is: package.module:Class.",
            max_length=256,
            pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        ),
    ]
    python_path: Annotated[
        str,
        Meta(
            title="Import path",
            description="Folders to import the class from, before all others; a colon stands between "
            "two. Empty: the folder in which the server was started. The command line fills in "
            "the folder it was called in, when the server is on the same machine.",
            max_length=16_384,
        ),
    ] = ""
    memory_limit_bytes: Annotated[
        int,
        Meta(
            title="Memory limit",
            description="What the process may allocate; beyond it the class sees a MemoryError. "
            "0: no limit.",
            ge=0,
            le=1 << 46,
            extra={"unit": "bytes"},
        ),
    ] = 0
    options: Annotated[
        Mapping[str, Any],
        Meta(title="Options", description="Given to the class as it stands in spec.params."),
    ] = {}


class UrlParameters(ModelParameters, frozen=True, kw_only=True):
    """A server that already runs; its URL is in the deployment."""

    prefix_reach: Annotated[
        Literal["slot", "shared"],
        Meta(
            title="Prefix reach",
            description="shared: its requests share what one of them has read of a prompt, so equal "
            "beginnings are worth waiting for. vLLM and SGLang are known by their list of models.",
        ),
    ] = "slot"


class FakeParameters(ModelParameters, frozen=True, kw_only=True):
    """The fake engine, for tests and benchmarks."""

    model: Annotated[
        str,
        Meta(
            title="Model id",
            description="The id it serves and writes into every token. Empty: the model's name.",
            max_length=256,
        ),
    ] = ""
    tokens: Annotated[
        int,
        Meta(
            title="Tokens",
            description="Length of an answer when the request sets no limit.",
            ge=0,
            le=1_000_000,
            extra={"unit": "tokens"},
        ),
    ] = 16
    delay_ms: Annotated[
        float,
        Meta(
            title="Delay",
            description="Pause before each token.",
            ge=0,
            le=600_000,
            extra={"unit": "ms"},
        ),
    ] = 0.0
    script: Annotated[
        str,
        Meta(
            title="Script",
            description="Faults to show, as a JSON object (docs/reference/fake-engine.md).",
            max_length=65_536,
        ),
    ] = ""
    memory_bytes: Annotated[
        int,
        Meta(
            title="Memory",
            description="What it says it needs; it takes none of it.",
            ge=0,
            extra={"unit": "bytes"},
        ),
    ] = 0
    prefix_reach: Annotated[
        Literal["slot", "shared"],
        Meta(
            title="Prefix reach",
            description="What it says of prompts that begin alike; see the field `read_ms` of the script.",
        ),
    ] = "slot"
    ledger: Annotated[
        str,
        Meta(
            title="Ledger file",
            description="Where it writes down what it did with each request. Empty: nowhere.",
            max_length=4096,
        ),
    ] = ""
