"""Objects that other packages offer through entry points, and why some of them cannot be used."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Found(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What a group of entry points holds. problems: one line for each that was left out."""

    objects: Mapping[str, T]
    problems: tuple[str, ...]


def discover(
    group: str,
    expected: type[T],
    named: Callable[[T], str],
    objection: Callable[[T], str],
) -> Found[T]:
    """Load every entry point of a group; a broken one is told of and harms no other.

    named: the name of an object. objection: why a loaded object cannot be used, "" when it can. It
        may raise.
    """
    objects: dict[str, T] = {}
    problems: list[str] = []
    for point in sorted(entry_points(group=group), key=lambda one: (one.name, one.value)):
        try:
            loaded = point.load()
            wrong = (
                objection(loaded)
                if isinstance(loaded, expected)
                else f"it is a {type(loaded).__name__}, not {expected.__name__}"
            )
        except (Exception, SystemExit) as error:  # boundary: an import runs others' code
            loaded, wrong = None, f"{type(error).__name__}: {error}"
        if not wrong and isinstance(loaded, expected):
            if named(loaded) not in objects:
                objects[named(loaded)] = loaded
                continue
            wrong = f"the name {named(loaded)!r} is taken by another package"
        problems.append(f"{group} {point.name!r} of {_package(point)}: {' '.join(wrong.split())}")
    return Found(objects=objects, problems=tuple(problems))


# Private


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
