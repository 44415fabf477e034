"""An engine's parameters as options of `model start` and `model update`.

They are made from the parameters' own descriptions, the same that make the API schema and the docs
page, and are checked by them before anything is sent. Not here: what a server makes of them.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Group, Parameter

from hostler.catalog.catalog import Catalog
from hostler.cli.api import Api
from hostler.cli.exits import CommandFailed, Exit
from hostler.core.model import ParameterDescription, WorkerType, describe
from hostler.engines.base import EngineKind, engines
from hostler.manager.resolve import DEFAULT_ENGINES

Texts = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Command = Callable[..., int]

# Options of the two commands themselves; a parameter of that name is set with --param.
_COMMANDS_OWN = (
    "type engine source replicas concurrency param server alias wait timeout delete",
    "policy split fallback rule",
    "json url key state-dir help version",
)
RESERVED = frozenset(" ".join(_COMMANDS_OWN).split())
_UNLISTED = frozenset({"fake"})  # for tests: taken, but shown only when asked for


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What was given for an engine's parameters. `options_type` adds one field a parameter."""

    def given(self) -> dict[str, Any]:
        """The parameters that were named, by their own names."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


NO_PARAMETERS = EngineOptions()


def options_type(kinds: Sequence[EngineKind]) -> type[EngineOptions]:
    """Return a type whose fields are the parameters of these engines, each one once."""
    found: dict[str, list[tuple[EngineKind, ParameterDescription]]] = {}
    for kind in kinds:
        for description in describe(kind.parameters):
            if _option(description.name) not in RESERVED:
                found.setdefault(description.name, []).append((kind, description))
    made = make_dataclass(
        "EngineOptions",
        [
            (name, _annotation(owners, alone=len(kinds) == 1), field(default=None))
            for name, owners in found.items()
        ],
        bases=(EngineOptions,),
        namespace={"__module__": __name__},  # without it, it looks like a type of Python's own
        frozen=True,
        kw_only=True,
    )
    return Parameter(name="*")(made)


def takes_parameters(command: Command, kinds: Iterable[EngineKind] | None = None) -> Command:
    """Return the command with the parameters of these engines, or of all, as options."""
    kind_list = tuple(engines().values() if kinds is None else kinds)
    annotation = options_type(kind_list)

    @wraps(command)
    def taking(*arguments: Any, **named: Any) -> int:
        return command(*arguments, **named)

    signature = inspect.signature(command)
    # With pydantic in the process (an engine of another package may bring it) Cyclopts has it check
    # that every value is of its annotation's own type, and the default as well.
    parameters = [
        one.replace(annotation=annotation, default=annotation()) if one.name == "options" else one
        for one in signature.parameters.values()
    ]
    taking.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    del taking.__wrapped__  # its signature is not the one to read
    taking.__annotations__ = {**command.__annotations__, "options": annotation}
    return taking


def engine_of(
    name: str,
    *,
    engine: str | None = None,
    worker_type: WorkerType | None = None,
    source: str | None = None,
    servers: Sequence[str] = (),
) -> EngineKind | None:
    """Return the engine that a start like this is for; None when only the server can know.

    An engine that is not installed here may be on the server, so that is None as well.
    """
    entry = Catalog().find(name)
    if engine is None and entry is not None:
        engine = entry.engine
    if engine is None and servers:
        engine = "openai"
    if engine is None and source is not None:
        engine = DEFAULT_ENGINES.get(worker_type or WorkerType.LLM, "python")
    return engines().get(engine) if engine else None


def engine_meant(words: Sequence[str]) -> EngineKind | None:
    """Return the engine that an unparsed command line is about, for its help page."""
    named = None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--engine="):
            named = word.partition("=")[2]
        elif word == "--engine":
            named = after
    names = [word for word in words if not word.startswith("-")]
    return engine_of(names[0] if names else "", engine=named)


def known_parameters(
    api: Api, name: str, worker_type: WorkerType | None
) -> Sequence[ParameterDescription] | None:
    """Ask the server what can be set for a model; None when it does not know the model yet."""
    try:
        return api.parameters(name, worker_type)
    except CommandFailed as failure:
        if failure.exit_code is not Exit.NOT_FOUND:
            raise
        return None


def read_parameters(
    options: EngineOptions, texts: Sequence[str], known: Sequence[ParameterDescription] | None
) -> dict[str, Any]:
    """Return what `--context-length 8192` and `--param context_length=8192` ask for, checked.

    known: the engine's parameters; None when nobody can say them yet: the server will judge.

    Raises:
        CommandFailed: no such parameter, or a value of another type, range or choice.
    """
    given = options.given()
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandFailed(f"--param {text!r}: need NAME=VALUE", Exit.USAGE)
        if name in given:
            raise CommandFailed(f"{name}: given twice", Exit.USAGE)
        given[name] = guess(value)
        if known is not None and _is_text(name, known):
            given[name] = value
    if known is None:
        return {name: guess(value) for name, value in given.items()}
    by_name = {one.name: one for one in known}
    return {name: _checked(name, value, by_name) for name, value in given.items()}


def guess(value: Any) -> Any:
    """A text that is JSON is taken as that; so is the text of an option whose type nobody knows."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def told_value(params: Mapping[str, Any], description: ParameterDescription) -> str:
    """Return the value of a parameter for people, its default when it is not set."""
    value = params.get(description.name, description.default)
    if description.secret and value is not None:
        return "***"
    return "-" if value is None else msgspec.json.encode(value).decode().strip('"')


def told_limits(description: ParameterDescription) -> str:
    """Say what is allowed and what holds when nothing is said: `(128 to 4096 tokens; 512)`."""
    low, high = description.minimum, description.maximum
    unit = f" {description.unit}" if description.unit else ""
    parts = []
    if low is not None and high is not None:
        parts.append(f"{_number(low)} to {_number(high)}{unit}")
    if description.required:
        parts.append("needed")
    elif not description.secret and description.default not in (None, "", {}):
        parts.append(f"default: {told_value({}, description)}")
    return f"({'; '.join(parts)})" if parts else ""


# Private

_TYPES: Mapping[str, Any] = {"integer": int, "number": float, "boolean": bool}


def _option(name: str) -> str:
    return name.replace("_", "-")


def _annotation(owners: Sequence[tuple[EngineKind, ParameterDescription]], *, alone: bool) -> Any:
    """One option. Engines that mean different things by a name share it as a text."""
    names = [kind.name for kind, _ in owners]
    first = owners[0][1]
    same = all((d.type, d.valid_values) == (first.type, first.valid_values) for _, d in owners)
    kind: Any = _TYPES.get(first.type, str) if same else str
    if same and first.valid_values:
        kind = Literal[first.valid_values]
    about = f"{first.help} {told_limits(first)}".strip()
    return Annotated[
        kind | None,
        Parameter(
            name=f"--{_option(first.name)}",
            help=about if alone else f"{about} [{', '.join(names)}]",
            group=Group(f"Parameters of {names[0]}" if alone else "Parameters of an engine"),
            negative=f"--no-{_option(first.name)}" if kind is bool else (),
            show=alone or not set(names) <= _UNLISTED,
            show_default=False,
        ),
    ]


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def _is_text(name: str, known: Sequence[ParameterDescription]) -> bool:
    return any(one.name == name and one.type == "string" for one in known)


def _checked(name: str, value: Any, known: Mapping[str, ParameterDescription]) -> Any:
    description = known.get(name)
    if description is None:
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean --{_option(near[0])}?" if near else f"known: {', '.join(known)}"
        raise CommandFailed(
            f"--{_option(name)}: this engine has no parameter {name!r}; {hint}", Exit.USAGE
        )
    if description.type in ("object", "array", "integer", "number", "boolean"):
        value = guess(value)
    if wrong := _objection(value, description):
        shown = "" if description.secret else f", not {value!r}"
        raise CommandFailed(f"--{_option(name)}: need {wrong}{shown}", Exit.USAGE)
    return value


def _objection(value: Any, description: ParameterDescription) -> str:
    """Say what is needed when a value is not it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "integer": isinstance(value, int) and number,
        "number": number,
        "boolean": isinstance(value, bool),
        "string": isinstance(value, str),
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
    }
    if not fits.get(description.type, True):
        return f"a value of type {description.type}"
    if description.valid_values and value not in description.valid_values:
        return f"one of {', '.join(map(str, description.valid_values))}"
    low, high = description.minimum, description.maximum
    unit = f" {description.unit}" if description.unit else ""
    if low is not None and value < low:
        return f"at least {_number(low)}{unit}"
    if high is not None and value > high:
        return f"at most {_number(high)}{unit}"
    return ""
