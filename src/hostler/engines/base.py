"""ModelWorker, the interface of a model served from Python; Engine, how a worker runs any of them.

Nothing heavy is imported here: an engine's own module is loaded in its worker process alone.
"""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from difflib import get_close_matches
from functools import cache
from typing import Any, Protocol, runtime_checkable

import msgspec

from hostler.core.errors import BadRequest, EngineError
from hostler.core.fleet import WorkerSpec
from hostler.core.model import (
    ModelMetadata,
    ModelOutput,
    ModelParameters,
    Usage,
    WorkerType,
    describe,
)
from hostler.core.snapshot import Endpoint
from hostler.core.worker import WorkerSupportedModel
from hostler.engines.parameters import (
    FakeParameters,
    LlamaParameters,
    OnnxParameters,
    PythonParameters,
    UrlParameters,
)
from hostler.engines.plugins import Found, discover

Text = str | Sequence[int]  # a text, or the ids of its tokens
Message = Mapping[str, Any]  # one OpenAI chat message


# How `Engine.exited` begins when the kernel ended the engine for want of memory.
OOM_TEXT = "oom_killed: the kernel ended it because its memory group was full"


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A chat (`messages`) or a completion (`prompt`). None: the client did not say.

    extra: every other field of the request, unchecked.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    extra: Mapping[str, Any] = {}


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """One vector a text, in the order of the texts."""

    vectors: Sequence[Sequence[float]]
    usage: Usage = Usage()


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """One raw score a document, in the order of the documents; a higher one is more relevant.

    logits: True when the scores are logits, of which the sigmoid is the relevance.
    """

    scores: Sequence[float]
    logits: bool = True
    usage: Usage = Usage()


class ModelWorker(ABC):
    """A model served from Python. Write one, name it `module:Class`, and Hostler runs it.

    Every method may be sync or async. Sync ones run in threads, at most `spec.concurrency` at once;
    async ones run in the worker's event loop and must not block it. When a client goes away, a
    generator is closed (async: cancelled) at its next step. What a method raises reaches its own
    request alone: a HostlerError as it is, anything else as a 500.
    """

    @abstractmethod
    def load(self, spec: WorkerSpec) -> ModelMetadata | Awaitable[ModelMetadata]:
        """Get ready to serve; called once, before anything else. `spec.params` are checked."""

    def unload(self) -> Awaitable[None] | None:
        """Let go of everything; called once, when no request runs."""
        return None

    def generate_stream(
        self, request: GenerateRequest
    ) -> Iterator[ModelOutput] | AsyncIterator[ModelOutput]:
        """Yield the answer's new pieces; the last one carries finish_reason and usage."""
        raise BadRequest("this model does not generate text")

    def embeddings(self, texts: Sequence[Text]) -> Embeddings | Awaitable[Embeddings]:
        """Return one vector for each text."""
        raise BadRequest("this model does not make embeddings")

    def rerank(self, query: str, documents: Sequence[str]) -> Ranking | Awaitable[Ranking]:
        """Return one score for each document: how well it answers the query."""
        raise BadRequest("this model does not rerank")

    def count_token(self, prompt: str | Sequence[Message]) -> int | Awaitable[int]:
        """Return the exact number of tokens of a text, or of messages in the chat template."""
        raise BadRequest("this model does not count tokens")


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine that serves says of itself.

    endpoint: where it answers HTTP. upstream_model: the name it knows the model by, "" for ours.
    pid: of its own process, if it has one.
    """

    metadata: ModelMetadata
    endpoint: Endpoint
    upstream_model: str = ""
    pid: int | None = None


class Engine(Protocol):
    """How the agent runs a model. Made without arguments; serves after `start`, until `stop`."""

    async def start(self, spec: WorkerSpec) -> Started:
        """Load the model and serve it on `spec.engine_socket`. Cancelled when it takes too long.

        Raises:
            ModelFormatError: the model's files cannot be used.
            EngineError: anything else, with the engine's last words in the message.
        """

    async def probe(self) -> bool:
        """Say whether the engine still answers. The caller limits the time."""

    def in_flight(self) -> int | None:
        """How many requests it works on, as last seen; None when it cannot say."""

    async def stop(self, drain_s: float) -> None:
        """Let running requests finish for `drain_s` at most, then end. After it nothing answers."""

    async def exited(self) -> str:
        """Live as long as the engine does; return why it ended, with its last log lines.

        The agent runs it from the end of `start` until after `stop`, so an engine may do its own
        work in it.
        """


@runtime_checkable
class WorkerMaker(Protocol):
    """Makes the ModelWorker that a spec names."""

    def make(self, spec: WorkerSpec) -> ModelWorker: ...


HIDDEN = "***"  # shown in place of a secret
EngineFactory = Callable[[], Engine | ModelWorker | WorkerMaker]


class EngineKind(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, as the controller and the command line know it.

    Another package offers its own through an entry point of the group `hostler.engines`.

    parameters: what can be set (`core.model.describe` tells it to people).
    implementation: `module:Class`, imported in the worker alone; "" when no process is needed.
    needs_files: the model is a file or folder, fetched before the start.
    own_process: the engine is a child process of its worker.
    concurrency: slots of an instance when nobody says. An engine that batches needs many: what waits
        in the gateway cannot be batched.
    requires: distributions that must be installed, for the error text.
    models: what it can serve without files of ours, for the list of supported models.
    """

    name: str
    description: str
    worker_types: tuple[WorkerType, ...]
    parameters: type[ModelParameters]
    implementation: str = ""
    needs_files: bool = True
    own_process: bool = False
    concurrency: int = 4
    requires: tuple[str, ...] = ()
    models: tuple[WorkerSupportedModel, ...] = ()


_KINDS = (
    EngineKind(
        name="llama.cpp",
        description="llama.cpp in the worker process, through its own native HTTP server.",
        worker_types=(WorkerType.LLM,),
        parameters=LlamaParameters,
        implementation="hostler.engines.llama_cpp:LlamaEngine",
        requires=("xllamacpp",),
    ),
    EngineKind(
        name="onnx",
        description="ONNX Runtime in the worker process, with dynamic batching.",
        worker_types=(WorkerType.TEXT2VEC, WorkerType.RERANKER),
        parameters=OnnxParameters,
        implementation="hostler.engines.onnx:OnnxWorker",
        concurrency=64,
        requires=("onnxruntime", "tokenizers", "numpy"),
    ),
    EngineKind(
        name="python",
        description="Your own ModelWorker class, in the worker process.",
        worker_types=tuple(WorkerType),
        parameters=PythonParameters,
        implementation="hostler.engines.python:PythonClass",
        needs_files=False,
    ),
    EngineKind(
        name="openai",
        description="An OpenAI-compatible server that already runs, given by URL.",
        worker_types=(WorkerType.LLM, WorkerType.TEXT2VEC, WorkerType.RERANKER),
        parameters=UrlParameters,
        needs_files=False,
    ),
    EngineKind(
        name="fake",
        description="A server with known answers and faults on order, for tests and benchmarks.",
        worker_types=(WorkerType.LLM, WorkerType.TEXT2VEC, WorkerType.RERANKER),
        parameters=FakeParameters,
        implementation="hostler.engines.fake:FakeEngine",
        needs_files=False,
        own_process=True,
    ),
)
ENGINES: Mapping[str, EngineKind] = {kind.name: kind for kind in _KINDS}  # our own
ENGINE_GROUP = "hostler.engines"


def engines() -> Mapping[str, EngineKind]:
    """Every engine: our own, then those of other packages, which this imports."""
    return {**ENGINES, **_custom().objects}


def brought_models(kind: EngineKind) -> tuple[WorkerSupportedModel, ...]:
    """What an engine of another package can serve without files: its own list, else one by its name."""
    if kind.name in ENGINES or kind.needs_files:
        return ()
    listed = kind.models or tuple(
        WorkerSupportedModel(
            model=kind.name,
            worker_type=worker_type,
            engine=kind.name,
            description=kind.description,
        )
        for worker_type in kind.worker_types
    )
    return tuple(msgspec.structs.replace(model, engine=kind.name, present=True) for model in listed)


def engine_problems() -> tuple[str, ...]:
    """Why an engine of another package cannot be used here, one line each."""
    return _custom().problems


def find_engine(name: str) -> EngineKind:
    """Return the engine of this name. Other packages are looked at when it is none of ours.

    Raises:
        BadRequest: there is none; the nearest or all known ones are named, and what is broken.
    """
    if (kind := ENGINES.get(name) or _custom().objects.get(name)) is not None:
        return kind
    near = get_close_matches(name, engines(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(engines()))}"
    broken = "".join(f"; {problem}" for problem in engine_problems())
    raise BadRequest(f"no engine {name!r}; {hint}{broken}", param="engine")


def hide_secrets(engine: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters as they may be shown: a secret is `***`; all are, of an unknown engine."""
    kind = engines().get(engine) if params and engine not in ENGINES else ENGINES.get(engine)
    if kind is None:
        return dict.fromkeys(params, HIDDEN)
    secret = {one.name for one in describe(kind.parameters) if one.secret} if params else set()
    return {name: HIDDEN if name in secret else value for name, value in params.items()}


def check_parameters(kind: EngineKind, params: Mapping[str, Any]) -> ModelParameters:
    """Return the parameters as the engine's own type, checked.

    Raises:
        BadRequest: an unknown name (the nearest one is told), a value of the wrong type or out of its range.
    """
    known = [one.encode_name for one in msgspec.structs.fields(kind.parameters)]
    if kind.parameters.__struct_config__.forbid_unknown_fields:
        for name in set(params).difference(known):
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise BadRequest(
                f"engine {kind.name!r} has no parameter {str(name)[:80]!r}; {hint}", param="params"
            )
    try:
        return msgspec.convert(dict(params), kind.parameters)
    except msgspec.ValidationError as error:
        raise BadRequest(f"engine {kind.name!r}: params: {error}", param="params") from error


def load_engine(name: str) -> EngineFactory:
    """Import an engine and return its class. In the worker process only: this may be heavy.

    Raises:
        BadRequest: no engine of this name.
        EngineError: it runs in no process of ours, or what it needs is not installed.
    """
    kind = find_engine(name)
    if not kind.implementation:
        raise EngineError(f"engine {name!r} runs in no process of ours")
    module, _, attribute = kind.implementation.partition(":")
    try:
        found: EngineFactory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        needs = " ".join(kind.requires) or "nothing more"
        raise EngineError(
            f"engine {name!r} cannot be imported ({error}); it needs: {needs}"
        ) from error
    return found


# Private

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}\Z")
_IMPLEMENTATION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


@cache
def _custom() -> Found[EngineKind]:
    """What other packages offer; looked up once a process, for a package is installed before it."""
    return discover(ENGINE_GROUP, EngineKind, lambda kind: kind.name, _objection)


def _objection(kind: EngineKind) -> str:
    """Say why an engine of another package cannot be used."""
    if not isinstance(kind.name, str) or not _NAME.match(kind.name):
        return f"name {kind.name!r}: need 1 to 48 of a-z 0-9 . _ -"
    if kind.name in ENGINES:
        return f"the name {kind.name!r} belongs to an engine of Hostler's own"
    if not _IMPLEMENTATION.match(kind.implementation):
        return f"implementation {kind.implementation!r}: need module:Class"
    if not kind.worker_types or not all(isinstance(one, WorkerType) for one in kind.worker_types):
        return "worker_types: need at least one WorkerType"
    if not issubclass(kind.parameters, ModelParameters):
        return f"parameters: {kind.parameters.__name__} is no ModelParameters"
    describe(kind.parameters)
    msgspec.json.schema(kind.parameters)
    return ""
