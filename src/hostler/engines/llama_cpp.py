"""LlamaEngine: llama.cpp's own native HTTP server, inside the worker process, on the engine socket.

Tokens and bytes never pass through Python here: the server has its own threads. Facts this file
rests on (xllamacpp 2026.10, measured): the constructor loads the model, holds the GIL meanwhile
and raises RuntimeError for a bad file; it listens on a Unix socket when a host name is a path, and
fails when that path exists; it installs its own SIGINT and SIGTERM handlers, so the agent arms its
own again; deleting the server waits for running streams without a bound, so it is never deleted:
the agent drains it and leaves by `os._exit`. OMP_WAIT_POLICY=passive is in the worker's environment
before any library loads (`app.config.quiet_openmp`): spinning OpenMP threads took 90 % of the
speed from a neighbour on the same cores, passive ones do not.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import xllamacpp

from hostler.core.errors import EngineError, IdentityMismatch, ModelFormatError, NotFound
from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, PrefixReach
from hostler.core.snapshot import Endpoint
from hostler.engines.base import Started, check_parameters, find_engine
from hostler.engines.lending import LendOrder, PrefixLent, PrefixRead, ReadOrder
from hostler.engines.llama_slots import SlotFiles, make_folder, remove_folder
from hostler.engines.parameters import LlamaParameters
from hostler.engines.threads import thread_count
from hostler.wire.client import UpstreamLost, fetch

_CALL_TIMEOUT_S = 10.0  # of our own questions to a server that has just started
_HEALTH_TIMEOUT_S = 2.0
_LOOP_TIMEOUT_S = 1.0
_LOOP_PAUSE_S = 5.0
_HANG_S = 120.0  # the longest batch we believe in
_DRAIN_POLL_S = 0.1
_LOG_WARNINGS = 2  # llama.cpp's verbosity; from 4 on it would print prompts


class LlamaEngine:
    """An `engines.base.Engine`."""

    def __init__(self) -> None:
        self._server: xllamacpp.Server | None = None
        self._endpoint = Endpoint()
        self._folder: Path | None = None  # where slots are saved
        self._loans: SlotFiles | None = None
        self._busy: int | None = None
        self._ask_loop_at_s = 0.0
        self._loop_answered_at_s = time.monotonic()

    async def start(self, spec: WorkerSpec) -> Started:
        """Load and serve. The event loop stands still while the model loads (the GIL is held)."""
        parameters = check_parameters(find_engine("llama.cpp"), spec.params)
        assert isinstance(parameters, LlamaParameters)
        model = find_gguf(Path(spec.model_path))
        socket = Path(spec.engine_socket)
        socket.unlink(missing_ok=True)
        options = native_options(parameters, spec, model)
        folder = socket.with_suffix(".slots")
        if spec.concurrency > 1 and make_folder(folder):
            options.slot_save_path, options.endpoint_slots = f"{folder}/", True
            self._folder = folder
        try:
            self._server = await asyncio.to_thread(xllamacpp.Server, options)
        except RuntimeError as error:
            raise ModelFormatError(
                f"llama.cpp cannot load {model.name} ({error}): the file is damaged, of a kind "
                "this version does not know, or memory is short; the worker's log has its own words"
            ) from error
        socket.chmod(0o600)
        self._loop_answered_at_s = time.monotonic()
        self._endpoint = Endpoint(socket=str(socket))
        if self._folder is not None:
            self._loans = SlotFiles(self._endpoint, self._folder)
        metadata = await self._describe(spec, parameters)
        return Started(metadata=metadata, endpoint=self._endpoint, upstream_model=spec.model_name)

    async def probe(self) -> bool:
        """Ask the HTTP threads, and now and then the inference loop.

        The loop answers between two batches only, which may take seconds on a slow CPU: its silence
        means busy, and is taken for a hang after `_HANG_S`.
        """
        try:
            answer = await fetch(self._endpoint, "GET", "/health", timeout_s=_HEALTH_TIMEOUT_S)
        except (UpstreamLost, OSError, TimeoutError):
            return False
        if answer.status != 200:
            return False
        now_s = time.monotonic()
        if now_s >= self._ask_loop_at_s:
            await self._count_busy()
        return now_s - self._loop_answered_at_s < _HANG_S

    def in_flight(self) -> int | None:
        return self._busy

    async def stop(self, drain_s: float) -> None:
        """Wait until no request runs, `drain_s` at most, and take the socket away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self._server is not None and await self._count_busy() != 0:  # noqa: ASYNC110
                    await asyncio.sleep(_DRAIN_POLL_S)
        if self._endpoint.socket:
            Path(self._endpoint.socket).unlink(missing_ok=True)
        if self._folder is not None:
            remove_folder(self._folder)

    # As an engines.lending.PrefixLender

    async def read_prefix(self, order: ReadOrder) -> PrefixRead:
        return await self._lender().read(order)

    async def lend_prefix(self, order: LendOrder) -> PrefixLent:
        return await self._lender().lend(order)

    async def exited(self) -> str:
        """Never returns: a crash of the native code ends the whole worker process."""
        await asyncio.Event().wait()
        raise AssertionError

    # Private

    def _lender(self) -> SlotFiles:
        if self._loans is None:
            raise NotFound("one slot has nobody to lend to, or its run folder cannot be written")
        return self._loans

    async def _count_busy(self) -> int | None:
        """Ask the inference loop how many requests it has; None when it does not answer now."""
        try:
            answer = await fetch(self._endpoint, "GET", "/metrics", timeout_s=_LOOP_TIMEOUT_S)
        except (UpstreamLost, OSError, TimeoutError):
            # each unanswered question holds one of the server's threads for a while
            self._ask_loop_at_s = time.monotonic() + _LOOP_PAUSE_S
            return None
        if answer.status == 200:
            self._busy = count_requests(answer.body)
            self._loop_answered_at_s = time.monotonic()
        return self._busy

    async def _describe(self, spec: WorkerSpec, parameters: LlamaParameters) -> ModelMetadata:
        models = await self._ask("/v1/models")
        properties = await self._ask("/props")
        model = models["data"][0]
        if model["id"] != spec.model_name:
            raise IdentityMismatch(f"llama.cpp serves {model['id']!r}, not {spec.model_name!r}")
        meta = model["meta"]
        settings = properties["default_generation_settings"]
        context_length = min(int(settings["n_ctx"]), int(meta["n_ctx_train"]))
        return ModelMetadata(
            model=spec.model_name,
            label=Path(spec.model_path).stem,
            description=f"{meta['n_params'] / 1e6:.0f} M parameters, {meta['ftype']}",
            worker_type=spec.worker_type,
            context_length=context_length,
            max_output_length=context_length,
            capabilities=capabilities(properties, parameters),
            prefix_reach=PrefixReach.SLOT if self._loans is None else PrefixReach.LENT,
        )

    async def _ask(self, path: str) -> dict[str, Any]:
        try:
            answer = await fetch(self._endpoint, "GET", path, timeout_s=_CALL_TIMEOUT_S)
            found: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
        except (UpstreamLost, OSError, TimeoutError, msgspec.MsgspecError) as error:
            raise EngineError(f"llama.cpp does not answer GET {path}: {error}") from error
        return found


def find_gguf(path: Path) -> Path:
    """Return the model file: the path itself, or the one GGUF (or first part) in the folder.

    Raises:
        ModelFormatError: no such file, several to choose from, or not a GGUF file.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.gguf"))
        first = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
        if len(first) != 1:
            names = ", ".join(file.name for file in first[:5]) or "none"
            raise ModelFormatError(
                f"{path}: need one GGUF file, found {names}; name it in the source"
            )
        path = first[0]
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read ({error.strerror})") from error
    if magic != b"GGUF":
        raise ModelFormatError(f"{path}: not a GGUF file (it starts with {magic!r})")
    return path


def native_options(
    parameters: LlamaParameters, spec: WorkerSpec, model: Path
) -> xllamacpp.CommonParams:
    """Return llama.cpp's own settings: ours, and everything closed that reaches files or tools."""
    options = xllamacpp.CommonParams()
    options.model.path = str(model)
    options.model_alias = {spec.model_name}
    options.hostnames = [spec.engine_socket]
    options.n_parallel = spec.concurrency
    options.n_ctx = parameters.context_length * spec.concurrency  # the total of all slots
    options.n_batch = parameters.batch_size
    options.n_ubatch = min(parameters.ubatch_size, parameters.batch_size)
    options.n_gpu_layers = parameters.gpu_layers
    options.flash_attn_type = _FLASH[parameters.flash_attention]
    options.cache_type_k = _cache_type(parameters.cache_type_k)
    options.cache_type_v = _cache_type(parameters.cache_type_v)
    options.cache_ram_mib = parameters.prompt_cache_bytes // 2**20
    options.chat_template = parameters.chat_template
    threads = thread_count(parameters.threads)
    options.cpuparams.n_threads = threads
    options.cpuparams_batch.n_threads = threads
    options.cpuparams.poll = options.cpuparams_batch.poll = 0  # wait for work, do not spin
    options.n_threads_http = spec.concurrency + 4  # one a request, and for probes and counts
    options.fit_params = False  # the context asked for, or a failure; never a smaller one
    options.endpoint_metrics = True
    options.endpoint_slots = options.endpoint_props = options.ui = False
    options.ui_mcp_proxy = False
    options.slot_save_path = options.media_path = options.public_path = ""
    options.server_tools = []
    options.cors_origins = ""
    options.offline = True
    options.verbosity = _LOG_WARNINGS
    return options


def capabilities(properties: Mapping[str, Any], parameters: LlamaParameters) -> tuple[str, ...]:
    """Name what the model can do, from the server's /props."""
    found = ["completion", "json_schema"]
    template = properties.get("chat_template_caps") or {}
    if properties.get("chat_template") or parameters.chat_template:
        found.append("chat")
    if template.get("supports_tools") and template.get("supports_tool_calls"):
        found.append("tools")
    modalities = properties.get("modalities") or {}
    found += [name for name in ("vision", "audio", "video") if modalities.get(name)]
    return tuple(found)


def count_requests(metrics: bytes) -> int:
    """Sum the requests that run and wait, from the server's metrics text."""
    total = 0.0
    for line in metrics.splitlines():
        if line.startswith((b"llamacpp:requests_processing ", b"llamacpp:requests_deferred ")):
            total += float(line.rsplit(b" ", 1)[1])
    return int(total)


# Private

_FLASH = {
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


def _cache_type(name: str) -> xllamacpp.ggml_type:
    return xllamacpp.ggml_type[f"GGML_TYPE_{name.upper()}"]
