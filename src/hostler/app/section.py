"""Section: the base of every part of the settings tree."""

from typing import Any, ClassVar, get_args

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every part of the settings tree. secret: fields whose values are never shown."""

    secret: ClassVar[frozenset[str]] = frozenset()


def section_in(kind: Any) -> type[Section] | None:
    """The section that a field of this type holds, also one that may be left out; None: it holds none."""
    kinds = get_args(kind)
    found = kinds[0] if type(None) in kinds else kind
    return found if isinstance(found, type) and issubclass(found, Section) else None
