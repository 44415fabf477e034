"""Reading what an operator says of one group of rules: some fields given, the others as they were."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from hostler.core.errors import BadRequest

Rules = TypeVar("Rules", bound=msgspec.Struct)


def read_fields(given: Mapping[str, Any] | None, old: Rules, group: str) -> Rules:
    """Return the rules with what was given; the rest stays as in `old`. None for a field: its default.

    group: what they are called in errors, and in requests.

    Raises:
        BadRequest: an unknown field, with the nearest known one; a value that cannot be.
    """
    if not given:
        return old
    known = old.__struct_fields__
    for name in given:
        if name not in known:
            raise BadRequest(f"{group}: there is no rule {unknown(name, known)}", param=group)
    values = {**msgspec.to_builtins(old), **given}
    try:
        return msgspec.convert(
            {name: value for name, value in values.items() if value is not None}, type(old)
        )
    except msgspec.ValidationError as error:
        told = str(error).replace("`array`", 'a list, like ["a", "b"]')
        what, at, where = told.partition(" - at `$.")
        place = f"{group}.{where.rstrip('`').removesuffix('[...]')}" if at else group
        raise BadRequest(f"{place}: {what[:1].lower()}{what[1:]}", param=group) from None


def need(is_so: bool, group: str, name: str, told: str) -> None:
    """Raise BadRequest for a field unless it is so."""
    if not is_so:
        raise BadRequest(f"{group}.{name}: {told}", param=group)


def unknown(name: str, known: Iterable[str]) -> str:
    """A name that is none of these, with the nearest one, or all."""
    names = [str(one) for one in known]
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
    return f"{name[:96]!r}; {hint}"
