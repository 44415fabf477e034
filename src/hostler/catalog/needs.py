"""What a model needs in memory, from its files' headers; what is free; what could be started here."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from hostler.catalog.address import PathAddress, parse_source
from hostler.catalog.catalog import Catalog
from hostler.catalog.entry import CatalogEntry
from hostler.catalog.gguf import GgufHeader, read_gguf
from hostler.catalog.headers import check_files
from hostler.catalog.store import is_present, list_files
from hostler.core.deployment import NAME_PATTERN
from hostler.core.errors import HostlerError, ModelFormatError
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerSupportedModel

# A worker with the engine's libraries and no model; measured: docs/design/catalog.md.
_LLAMA_PROCESS_BYTES = 64 << 20
_ONNX_PROCESS_BYTES = 50 << 20
# ONNX Runtime packs int8 weights again, and its arena keeps what the largest batch needed.
_ONNX_WEIGHT_FACTOR = 2.15
_ONNX_TOKEN_BYTES = 70_000  # a padded token of a 384-wide, 12-layer encoder at length 512
_DEFAULT_BATCH_TOKENS = 2048
# Before the files are here: a chat model's cache and buffers, for want of a header.
_UNSEEN_WORKING_BYTES = 700 << 20
_DEFAULT_CONTEXT = 4096
_DEFAULT_SLOTS = 4
_DEFAULT_PROMPT_CACHE_BYTES = 256 << 20
_CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
_MOST_LOCAL = 500


def estimate_memory_bytes(
    path: Path, engine: str, params: Mapping[str, Any], *, slots: int = _DEFAULT_SLOTS
) -> int:
    """Return about how much memory one instance takes when it is full of work.

    For llama.cpp: weights, key-value cache of every slot's context, logits and compute buffers, the
    prompt cache's limit, the process. For ONNX: weights, one full batch, the process. Other engines:
    the files. Measured against real processes: docs/design/catalog.md.

    Raises:
        ModelFormatError: a file is broken, or there is none.
    """
    if engine == "llama.cpp":
        header = read_gguf(_gguf_file(path))
        cache = int(params.get("prompt_cache_bytes", _DEFAULT_PROMPT_CACHE_BYTES))
        working = kv_cache_bytes(header, params, slots) + _compute_bytes(header, params)
        return _LLAMA_PROCESS_BYTES + header.weights_bytes + working + cache
    size = size_bytes(path)
    if engine == "onnx":
        batch = int(params.get("batch_tokens", _DEFAULT_BATCH_TOKENS)) * _ONNX_TOKEN_BYTES
        return _ONNX_PROCESS_BYTES + int(size * _ONNX_WEIGHT_FACTOR) + batch
    return size


def kv_cache_bytes(header: GgufHeader, params: Mapping[str, Any], slots: int) -> int:
    """Return the size of the key-value cache: every layer, every token of every slot's context."""
    heads = header.head_count or 1
    heads_kv = header.head_count_kv or heads
    width = (header.embedding_length or 0) // heads
    context = int(params.get("context_length", 0)) or _DEFAULT_CONTEXT
    if header.context_length:
        context = min(context, header.context_length)
    a_token = (header.key_length or width) * _CACHE_BYTES.get(
        params.get("cache_type_k", "f16"), 2.0
    )
    a_token += (header.value_length or width) * _CACHE_BYTES.get(
        params.get("cache_type_v", "f16"), 2.0
    )
    return math.ceil((header.block_count or 0) * heads_kv * a_token * context * max(slots, 1))


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory that a new process may take: of the machine, or less in a limited cgroup."""
    try:
        available = int(psutil.virtual_memory().available)
    except (OSError, RuntimeError):
        return None
    limits = [available]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _read_number(cgroup / limit), _read_number(cgroup / used)
        if most is not None and now is not None:
            limits.append(max(0, most - now))
    return min(limits)


def fits(need_bytes: int | None, free_bytes: int | None = None) -> bool | None:
    """Say whether so much memory is free now; None when one of the two is not known.

    free_bytes: asked of the system when not given.
    """
    free = free_memory_bytes() if free_bytes is None else free_bytes
    return None if need_bytes is None or free is None else need_bytes <= free


def supported(models_dir: Path, catalog: Catalog | None = None) -> tuple[WorkerSupportedModel, ...]:
    """Return what could be started here: the catalogue, then other models found in the folder."""
    catalog = catalog or Catalog()
    free = free_memory_bytes()
    rows = [_entry_row(entry, models_dir, free) for entry in catalog.entries]
    known = {entry.source for entry in catalog.entries}
    names = {row.model for row in rows}
    for name, source, path in _local_models(models_dir, known):
        unique = name if name not in names else f"{name[:85]}-{len(names)}"
        if (row := _local_row(unique, source, path, free)) is not None:
            names.add(unique)
            rows.append(row)
    return tuple(rows)


# Private


def _entry_row(entry: CatalogEntry, models_dir: Path, free: int | None) -> WorkerSupportedModel:
    path = None
    if not isinstance(parse_source(entry.source)[0], PathAddress):
        path = is_present(entry.source, models_dir)
    need = _entry_need(entry, path)
    return WorkerSupportedModel(
        model=entry.name,
        worker_type=entry.worker_type,
        engine=entry.engine,
        source=entry.source,
        label=entry.label,
        description=entry.description,
        license=entry.license,
        download_bytes=entry.download_bytes,
        memory_bytes=need,
        present=path is not None,
        fits=fits(need, free),
    )


def _entry_need(entry: CatalogEntry, path: Path | None) -> int | None:
    """Return the need from the files when they are here, else by what the catalogue knows."""
    if path is not None:
        try:
            return estimate_memory_bytes(path, entry.engine, entry.params)
        except ModelFormatError:
            return entry.memory_bytes
    if entry.memory_bytes is None and entry.needs_hub and entry.download_bytes is not None:
        return entry.download_bytes + _UNSEEN_WORKING_BYTES
    return entry.memory_bytes


def _local_models(models_dir: Path, known: set[str]) -> list[tuple[str, str, Path]]:
    """Return (name, source, path) of fetched models outside the catalogue and of files put there."""
    found = []
    ours = set()
    for stored in list_files(models_dir):
        path = Path(stored.path)
        ours.add(path if path.is_dir() else path.parent)
        if stored.source not in known:
            found.append((_name(path), stored.source, path))
    if models_dir.is_dir():
        for path in sorted(models_dir.iterdir())[:_MOST_LOCAL]:
            if path.name.startswith(".") or path in ours or path.is_symlink():
                continue
            if path.suffix.lower() == ".gguf" or (path / "model.onnx").is_file():
                found.append((_name(path), str(path), path))
            elif path.is_dir():
                found.extend((_name(file), str(file), file) for file in sorted(path.glob("*.gguf")))
    return found[:_MOST_LOCAL]


def _local_row(name: str, source: str, path: Path, free: int | None) -> WorkerSupportedModel | None:
    engine = "onnx" if path.is_dir() or path.suffix.lower() == ".onnx" else "llama.cpp"
    try:
        check_files(path, engine)
        need = estimate_memory_bytes(path, engine, {})
    except (HostlerError, OSError):
        return None  # broken, or not a model of these engines
    return WorkerSupportedModel(
        model=name,
        worker_type=WorkerType.LLM if engine == "llama.cpp" else WorkerType.TEXT2VEC,
        engine=engine,
        source=source,
        label=path.name,
        description="Found in the model folder.",
        memory_bytes=need,
        present=True,
        fits=fits(need, free),
    )


def _name(path: Path) -> str:
    """Return a deployment name made of a file name."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem.lower())
    name = "-".join(part for part in plain.split("-") if part)[:90] or "model"
    return name if NAME_PATTERN.match(name) else "model"


def _gguf_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise ModelFormatError(f"{path.name}: there is no GGUF file")
    return files[0]


def _compute_bytes(header: GgufHeader, params: Mapping[str, Any]) -> int:
    """Logits of the vocabulary and the widest activations of one micro-batch, 4 bytes each."""
    rows = min(int(params.get("ubatch_size", 512)), int(params.get("batch_size", 128)))
    return 4 * rows * ((header.vocabulary or 32_000) + 8 * (header.embedding_length or 1024))


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None
