"""The OpenAPI document against a real server: what it describes is sent, and what it does not (B26)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance]
# Orders that end what the others ask.
LEFT_OUT = frozenset({"POST /api/v1/gateways/restart"})
TIMEOUT_S = 20.0


def hammer(
    url: str,
    key: str,
    model: str,
    document: Mapping[str, Any],
    examples: int,
    number: int,
    only: Iterable[str] = (),
) -> Counter[str]:
    """Send `examples` good and as many bad requests to each operation; count what was answered.

    model: one that is there; half of the requests are about it, but for those that would end it.
    number: seeds the generators.

    Raises:
        AssertionError: an answer of 500 or more that is no `not now`, or one that is not as described.
    """
    schema = schemathesis.openapi.from_dict(dict(document))
    told: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        if operation.label in LEFT_OUT or (only and operation.label not in only):
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _hammer_one(url, key, model, operation, mode, examples, number, told)
    return told


def labels(document: Mapping[str, Any]) -> list[str]:
    """The operations of a document, as `hammer` names them."""
    return [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if method in ("get", "post", "put", "delete", "patch")
    ]


# Private


def _hammer_one(
    url: str,
    key: str,
    model: str,
    operation: Any,
    mode: GenerationMode,
    examples: int,
    number: int,
    told: Counter[str],
) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        _aim(case, model)
        answer = case.call(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_S
        )
        told[f"{operation.label} {answer.status_code}"] += 1
        case.validate_response(answer, checks=CHECKS)

    try:
        ask()
    except Exception as error:  # what cannot be generated is left out; what failed is told
        if "Unsatisfiable" in type(error).__name__:
            told[f"{operation.label} nothing to send"] += 1
            return
        raise


def _aim(case: Any, model: str) -> None:
    """Let every other request be about a model that is there, and none wait for what may happen."""
    if isinstance(case.query, dict):
        case.query.pop("follow", None)
    if (
        case.method == "DELETE"
        or case.path.startswith("/api/v1/apply")
        or crc32(repr(case.body).encode()) % 2
    ):
        return
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = model
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = model
