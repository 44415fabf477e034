"""What models say and take: outputs, metadata, and the typed descriptions of parameters."""

import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec


class WorkerType(StrEnum):
    """What kind of work a model does; the part of a worker_key after the `@`."""

    LLM = "llm"
    TEXT2VEC = "text2vec"
    RERANKER = "reranker"
    AUDIO = "audio"
    IMAGE = "image"


class PrefixReach(StrEnum):
    """How far it goes inside an instance, once one request has read the beginning of a prompt."""

    SLOT = "slot"  # the slot that read it has it, no other
    LENT = "lent"  # the same, but the worker can lend it to other slots when it is asked to
    SHARED = "shared"  # every request there starts from it


def worker_key(model_name: str, worker_type: WorkerType) -> str:
    """Return `name@type`, the key of all instances of one model."""
    return f"{model_name}@{worker_type.value}"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class OutputMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """How fast an answer came. Seconds, and tokens per second."""

    first_token_s: float | None = None
    total_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


class ModelOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of an answer (a delta, from generate_stream) or a whole one (from generate).

    text: the new text only, in a stream. thinking_text: the engine's reasoning, likewise.
    tool_calls: OpenAI tool call objects, or their deltas in a stream.
    index: which answer this belongs to, when several were asked for (a list of prompts, `n`).
    choices: all of them, by index, in a whole answer of several; its own text is the first's.
    error_code: 0, or the HTTP status of a fault that came after the first output.
    error: the error's stable code, e.g. `worker_lost`. error_message: its text, for people.
    """

    text: str = ""
    thinking_text: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    metrics: OutputMetrics | None = None
    model_name: str = ""
    index: int = 0
    choices: tuple["ModelOutput", ...] = ()
    error_code: int = 0
    error: str | None = None
    error_message: str = ""

    @property
    def success(self) -> bool:
        return self.error_code == 0


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is, and what its engine does with prompts that begin alike. Lengths are in tokens."""

    model: str
    label: str = ""
    description: str = ""
    worker_type: WorkerType = WorkerType.LLM
    context_length: int | None = None
    max_output_length: int | None = None
    dimensions: int | None = None
    capabilities: tuple[str, ...] = ()
    license: str | None = None
    prefix_reach: PrefixReach = PrefixReach.SLOT


class ParameterDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set for a model: the one source of API schema, CLI options, forms and docs."""

    name: str
    type: str  # "string" | "integer" | "number" | "boolean" | "array" | "object"
    default: Any = None
    required: bool = False
    valid_values: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    unit: str | None = None
    label: str = ""
    help: str = ""
    secret: bool = False


class ModelParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of an engine's typed parameters. Subclasses annotate fields with `msgspec.Meta`.

    Meta(title=label, description=help, ge=, le=, extra={"unit": ..., "secret": True}) carries what
    `describe` returns.
    """


_JSON_TYPES: Mapping[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def describe(parameters: type[ModelParameters]) -> list[ParameterDescription]:
    """Return one description a field, in the order of the class."""
    hints = typing.get_type_hints(parameters, include_extras=True)
    return [
        _describe_field(field, hints[field.name]) for field in msgspec.structs.fields(parameters)
    ]


# Private


def _describe_field(field: msgspec.structs.FieldInfo, hint: Any) -> ParameterDescription:
    base, metas = _unwrap(hint)
    has_default = field.default is not msgspec.NODEFAULT
    facts: dict[str, Any] = {}
    for meta in metas:
        facts.update(meta.extra or {})
        for ours, theirs in (
            ("minimum", "ge"),
            ("minimum", "gt"),
            ("maximum", "le"),
            ("maximum", "lt"),
        ):
            if (bound := getattr(meta, theirs)) is not None:
                facts[ours] = bound
        facts.setdefault("label", meta.title or "")
        facts.setdefault("help", meta.description or "")
    valid = typing.get_args(base) if typing.get_origin(base) is typing.Literal else None
    kind = type(valid[0]) if valid else typing.get_origin(base) or base
    json_type = _JSON_TYPES.get(kind) or ("object" if kind in (dict, Mapping) else "array")
    return ParameterDescription(
        name=field.encode_name,
        type=json_type,
        default=field.default if has_default else None,
        required=field.required,
        valid_values=tuple(valid) if valid else None,
        minimum=facts.get("minimum"),
        maximum=facts.get("maximum"),
        unit=facts.get("unit"),
        label=facts.get("label") or field.name.replace("_", " "),
        help=facts.get("help", ""),
        secret=bool(facts.get("secret", False)),
    )


def _unwrap(hint: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Strip `Annotated` and `| None`, and collect the Metas on the way, outermost first."""
    metas: list[msgspec.Meta] = []
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint, *extras = typing.get_args(hint)
            metas.extend(extra for extra in extras if isinstance(extra, msgspec.Meta))
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            some = [part for part in typing.get_args(hint) if part is not type(None)]
            if len(some) != 1:
                return str, metas
            hint = some[0]
        else:
            return hint, metas
