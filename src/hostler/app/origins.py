"""Origins: where the value of each setting came from. The values are in the settings tree (config.py)."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec


class OriginKind(StrEnum):
    """Who gave a value."""

    DEFAULT = "default"  # built in
    FILE = "file"
    ENVIRONMENT = "environment"
    OPTION = "option"  # of the command line
    SETTING = "setting"  # it follows from another one
    PROGRAM = "program"  # that embeds us


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where one value came from.

    name: of the file, the variable, the option or the other setting. variables: of the environment, that a
        text of the file names.
    """

    kind: OriginKind = OriginKind.DEFAULT
    name: str = ""
    variables: tuple[str, ...] = ()


class Origins(msgspec.Struct, frozen=True, kw_only=True):
    """Where the values of one settings tree came from.

    of: by the setting's name, like `server.port` or `models[0].replicas`; what is not there is a default.
    file: of the config; digest: SHA-256 of it as it was read. not_taken: what has been read later and is
        not used yet, a line each.
    """

    of: Mapping[str, Origin] = {}
    file: str = ""
    digest: str = ""
    read_at_s: float = 0.0
    not_taken: tuple[str, ...] = ()


def leaves(data: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested tables with its name, like `server.port` and `models[0].name`."""
    if isinstance(data, Mapping) and (data or not where):
        for key, value in data.items():
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(data, list) and data and all(isinstance(one, Mapping) for one in data):
        for number, table in enumerate(data):
            yield from leaves(table, f"{where}[{number}]")
    else:
        yield where, data
