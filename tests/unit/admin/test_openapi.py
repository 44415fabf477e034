"""The OpenAPI document says what the table says, and nothing in it dangles."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostler.admin.api import OPERATIONS
from hostler.admin.openapi import DATA_PLANE, build_document, openapi_document
from hostler.admin.sight import GATEWAY_OPERATIONS
from hostler.core.model import describe
from hostler.engines.base import ENGINES
from tests.unit.admin.plane import Plane


def walk(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from walk(value)


def test_every_operation_is_described_with_its_scope() -> None:
    document = build_document(OPERATIONS)
    described = {
        (method.upper(), path): operation["x-hostler-scope"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "x-hostler-scope" in operation
    }
    assert described == {
        (operation.method, operation.path.replace(":path", "")): operation.scope.value
        for operation in (*OPERATIONS, *GATEWAY_OPERATIONS)
    }


def test_every_reference_leads_to_a_schema_and_every_schema_is_used() -> None:
    document = build_document(OPERATIONS)
    schemas = document["components"]["schemas"]
    used = {node["$ref"] for node in walk(document) if isinstance(node.get("$ref"), str)}
    assert used == {f"#/components/schemas/{name}" for name in schemas}


def test_every_part_of_an_address_is_a_parameter_and_every_operation_has_its_own_id() -> None:
    document = build_document(OPERATIONS)
    ids = []
    for path, methods in document["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            told = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
            assert told == re.findall(r"\{(\w+)\}", path)
            assert operation["responses"]
    assert len(ids) == len(set(ids))


def test_the_data_plane_is_there_and_only_the_two_probes_are_open() -> None:
    paths = build_document(OPERATIONS)["paths"]
    assert {(method, path) for method, path, _ in DATA_PLANE} <= {
        (method.upper(), path) for path, methods in paths.items() for method in methods
    }
    open_paths = [
        path for path, methods in paths.items() if methods.get("get", {}).get("security") == []
    ]
    assert open_paths == ["/health", "/ready"]


def test_the_served_document_is_the_built_one(tmp_path: Path) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask("GET", "/api/v1/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.body == openapi_document(OPERATIONS)
        assert answer.json["openapi"] == "3.1.0"

    asyncio.run(main())


def test_the_parameters_of_every_engine_are_there_as_their_descriptions_say() -> None:
    schemas = build_document(OPERATIONS)["components"]["schemas"]
    by_engine = schemas["WorkerStartupRequest"]["properties"]["params"]["x-hostler-engines"]
    assert set(by_engine) == set(ENGINES)
    for name, reference in by_engine.items():
        fields = schemas[reference["$ref"].rsplit("/", 1)[1]]["properties"]
        described = {one.name: one for one in describe(ENGINES[name].parameters)}
        assert set(fields) == set(described)
        for field, one in described.items():
            assert fields[field].get("minimum") == one.minimum
            assert fields[field].get("x-unit") == one.unit
            assert fields[field]["description"] == one.help
