"""The OpenAPI 3.1 document, made from the operations and their types; nothing is written twice."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from hostler.admin.operation import Operation
from hostler.admin.sight import GATEWAY_OPERATIONS
from hostler.app.version import installed_version
from hostler.core.errors import ErrorBody
from hostler.core.model import describe
from hostler.engines.base import engines


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The OpenAI error object: the answer of every failure."""

    error: ErrorBody


# The data plane, on the same port; bodies are those of the OpenAI API.
DATA_PLANE: tuple[tuple[str, str, str], ...] = (
    ("GET", "/v1/models", "The models that can be asked"),
    ("GET", "/v1/models/{name}", "One model"),
    ("POST", "/v1/chat/completions", "Chat, whole or as a stream"),
    ("POST", "/v1/completions", "Completion, whole or as a stream"),
    ("POST", "/v1/embeddings", "Vectors of texts"),
    ("POST", "/v1/rerank", "Scores of documents for a query"),
    ("POST", "/rerank", "The same, at the address other servers use"),
    ("POST", "/tokenize", "How many tokens a prompt or chat has, by the model's own tokenizer"),
    ("POST", "/v1/engine/{path}", "An address of the engine itself, where it has been opened"),
)
# Answered to anyone; they say nothing but ok or not.
OPEN_PATHS: tuple[tuple[str, str, str], ...] = (
    ("GET", "/health", "Whether the gateway runs"),
    ("GET", "/ready", "Whether the gateway can serve"),
)
METRICS_PATH = ("GET", "/metrics", "Prometheus metrics; a key of scope `metrics`")


def openapi_document(operations: Sequence[Operation]) -> bytes:
    """Return the document as JSON."""
    return msgspec.json.format(msgspec.json.encode(build_document(operations)), indent=2)


def build_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document as a tree of plain values."""
    types: list[Any] = [ErrorAnswer, *(kind.parameters for kind in engines().values())]
    operations = (*operations, *GATEWAY_OPERATIONS)
    for operation in operations:
        types += [kind for kind in (operation.request, operation.response) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    references = dict(zip(types, schemas, strict=True))
    _describe_parameters(components, references)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, references)
    for method, path, summary in (*DATA_PLANE, METRICS_PATH):
        paths.setdefault(path, {})[method.lower()] = _data_plane(method, path, summary)
    for method, path, summary in OPEN_PATHS:
        paths.setdefault(path, {})[method.lower()] = {
            **_data_plane(method, path, summary),
            "security": [],
        }
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Hostler",
            "version": installed_version(),
            "description": "One endpoint for many AI models. A failure is an OpenAI error object.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


# Private


def _describe_parameters(components: dict[str, Any], references: dict[Any, Any]) -> None:
    """Say what `params` may hold for each engine: its schema, with units and what is secret."""
    by_engine = {name: references[kind.parameters] for name, kind in engines().items()}
    for kind in engines().values():
        schema = components[references[kind.parameters]["$ref"].rsplit("/", 1)[1]]
        for one in describe(kind.parameters):
            field = schema["properties"][one.name]
            if one.unit:
                field["x-unit"] = one.unit
            if one.secret:
                field["writeOnly"] = True
                field.pop("default", None)
    for name in ("WorkerStartupRequest", "WorkerApplyRequest"):
        params = components[name]["properties"]["params"]
        params["description"] = "The parameters of the model's engine."
        params["x-hostler-engines"] = by_engine


def _operation(operation: Operation, references: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.response is not None:
        content["application/json"] = {"schema": references[operation.response]}
    else:
        content["application/json"] = {"schema": {"type": "object"}}
    if operation.streams:
        content[operation.streams] = {}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "description": f"Needs a key of scope `{operation.scope.value}`.",
        "operationId": _operation_id(operation.method, operation.path),
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation)],
        "responses": {
            str(operation.status): {"description": operation.summary, "content": content},
            "default": _error(references[ErrorAnswer]),
        },
        "x-hostler-scope": operation.scope.value,
    }
    if operation.status == 202:
        done = {"description": "It is so already", "content": content}
        described["responses"] = {"200": done, **described["responses"]}
    if operation.request is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[operation.request]}},
        }
    return described


def _data_plane(method: str, path: str, summary: str) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    described: dict[str, Any] = {
        "summary": summary,
        "operationId": _operation_id(method, path),
        "parameters": _path_parameters(path),
        "responses": {"200": {"description": summary}, "default": _error(error)},
    }
    if method == "POST":
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    return described


def _error(reference: Any) -> dict[str, Any]:
    return {
        "description": "A failure",
        "content": {"application/json": {"schema": reference}},
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)(?::path)?\}", path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    """One parameter a field of the query's type, with its own schema written out."""
    _, components = msgspec.json.schema_components([operation.query])
    properties = components[operation.query.__name__].get("properties", {})
    return [
        {"name": name, "in": "query", "required": False, "schema": _inlined(schema, components)}
        for name, schema in properties.items()
    ]


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(components[schema["$ref"].rsplit("/", 1)[1]], components)
        return {key: _inlined(value, components) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(value, components) for value in schema]
    return schema


def _operation_id(method: str, path: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", path.replace(":path", ""))
    return "_".join([method.lower(), *words])
