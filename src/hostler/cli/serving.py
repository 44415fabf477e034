"""Which model a command means, when it says a name, a wrong name, or nothing."""

import difflib

import msgspec

from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.core.model import WorkerType


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `/v1/models`: the fields that commands need."""

    id: str
    worker_type: WorkerType | None = msgspec.field(default=None, name="type")
    aliases: tuple[str, ...] = ()
    wanted: int = 1  # instances; 0: it is stopped


class ServedList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/v1/models`."""

    data: tuple[Served, ...] = ()


def served_models(client: Client) -> tuple[Served, ...]:
    """The models that this key may use."""
    return client.get("/v1/models", ServedList).data


def pick_model(models: tuple[Served, ...], name: str | None, kind: WorkerType) -> str:
    """Return the name to send: the one given if it is known, or the only model of that kind that is
    not stopped.

    Raises:
        CommandFailed: no such model (the nearest is named), or none or several to choose from.
    """
    fitting = [one for one in models if one.worker_type in (kind, None) and one.wanted]
    if name is not None:
        if any(name == one.id or name in one.aliases for one in models):
            return name
        raise CommandFailed(_unknown(name, models), Exit.NOT_FOUND)
    if len(fitting) == 1:
        return fitting[0].id
    if not fitting:
        raise CommandFailed(
            f"no {kind.value} model was asked for; `hostler model list --all` says what could run, "
            "`hostler model start NAME` starts it",
            Exit.NOT_FOUND,
        )
    raise CommandFailed(
        f"several {kind.value} models run ({', '.join(one.id for one in fitting)}); say which",
        Exit.USAGE,
    )


# Private


def _unknown(name: str, models: tuple[Served, ...]) -> str:
    known = [one.id for one in models]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"no model is named {name!r}; {hint}"
