"""Command: how an engine that is a program is started, made from typed parameters only.

Every value becomes `--key=value`, one element of argv; nothing goes through a shell and there is no list
of free extra arguments. Not here: starting it (`process.py`).
"""

import unicodedata
from collections.abc import Mapping, Sequence

import msgspec

from hostler.core.errors import BadRequest
from hostler.core.model import ModelMetadata


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One engine process: what to run, and how to see that it serves the right model.

    env: on top of `app.config.engine_environment`.
    upstream_model: the id that its `/v1/models` must list.
    busy_path, busy_metric: where it tells how many requests run, in Prometheus' text format; "" when it
        does not, and then a stop waits out the whole drain time.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    upstream_model: str
    metadata: ModelMetadata
    health_path: str = "/health"
    busy_path: str = ""
    busy_metric: str = ""


def option(key: str, value: str | int | float) -> str:
    """Return one element of argv, `--key=value`.

    Raises:
        BadRequest: a text that begins with a dash of any kind, or holds a control character or
            half a surrogate pair.
    """
    return f"--{key}={check_value(key, value) if isinstance(value, str) else value}"


def options(values: Mapping[str, str | int | float | None]) -> list[str]:
    """Return `option` of each value that is not None."""
    return [option(key, value) for key, value in values.items() if value is not None]


def check_value(key: str, value: str) -> str:
    """Return the text if it may stand in an argument or in an environment variable."""
    if value and unicodedata.category(value[0]) == "Pd":
        raise BadRequest(f"{key}: must not begin with a dash", param=key)
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        raise BadRequest(f"{key}: control characters are not allowed", param=key)
    return value


def metric(text: str, name: str) -> int | None:
    """Return the sum of a metric's samples in Prometheus' text format; None when there is none."""
    found: list[float] = []
    for line in text.splitlines():
        key, _, value = line.rpartition(" ")
        if key.partition("{")[0].strip() == name:
            try:
                found.append(float(value))
            except ValueError:
                continue
    return int(sum(found)) if found else None


def check_argv(argv: Sequence[str]) -> list[str]:
    """Return argv as a list, if the kernel would take it as it stands."""
    for item in argv:
        if "\0" in item:
            raise BadRequest("a command's argument holds a NUL")
    if not argv or not argv[0]:
        raise BadRequest("a command needs a program")
    return list(argv)
