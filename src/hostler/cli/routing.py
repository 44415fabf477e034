"""The options of `model start` and `model update` that say how a model's requests find their way, and how
many copies of it there are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter

from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.parameters import guess
from hostler.core.errors import BadRequest
from hostler.core.rules import Rules
from hostler.core.scaling import read_scaling
from hostler.core.serving import POLICIES, FallbackCause, read_rules

_GROUP = Group("Routing")
_SCALING = Group("Scaling")
_Text = Annotated[str | None, Parameter(show_default=False)]
_Texts = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class RoutingOptions:
    """What was said of a model's routing."""

    policy: Annotated[
        _Text, Parameter(help=f"Who serves: {', '.join(POLICIES)}, or package.module:Class.")
    ] = None
    split: Annotated[
        _Texts,
        Parameter(
            help="OTHER=PERCENT: so many of its requests another model answers; repeat for several, "
            "`none` ends it."
        ),
    ] = ()
    fallback: Annotated[
        _Texts,
        Parameter(
            help=f"CAUSE=OTHER: who answers instead when it is {', '.join(FallbackCause)}; repeat for "
            "several, `none` ends it."
        ),
    ] = ()
    rule: Annotated[
        _Texts, Parameter(help="Any rule of `[models.routing]`, NAME=VALUE; repeat for several.")
    ] = ()

    def given(self) -> dict[str, Any]:
        """The rules that were named, as `WorkerStartupRequest.routing` takes them.

        Raises:
            CommandFailed: one of them cannot be.
        """
        rules: dict[str, Any] = {}
        if self.policy is not None:
            rules["policy"] = self.policy
        if self.split:
            rules["split"] = _pairs("--split", "OTHER=PERCENT", self.split, _percent)
        if self.fallback:
            pairs = _each("--fallback", "CAUSE=OTHER", self.fallback)
            rules["fallbacks"] = _grouped(pairs)
        for name, text in _each("--rule", "NAME=VALUE", self.rule):
            if name in rules:
                raise CommandFailed(f"--rule {name}: given twice", Exit.USAGE)
            rules[name] = guess(text)
        try:
            read_rules(rules)
        except BadRequest as error:
            raise CommandFailed(error.message, Exit.USAGE) from error
        return rules


USUAL_ROUTING = RoutingOptions()


@Parameter(name="*", group=_SCALING)
@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What was said of how many copies there are."""

    min_replicas: Annotated[
        int | None,
        Parameter(show_default=False, help="With --max-replicas: at least so many. [default: 1]"),
    ] = None
    max_replicas: Annotated[
        int | None,
        Parameter(show_default=False, help="Its load decides how many there are, up to so many."),
    ] = None
    scaling: Annotated[
        _Texts,
        Parameter(
            help="Any rule of `[models.scaling]`, NAME=VALUE; repeat for several. `none`: there are as "
            "many as --replicas says."
        ),
    ] = ()

    def given(self) -> dict[str, Any]:
        """The rules that were named, as `WorkerStartupRequest.scaling` takes them.

        Raises:
            CommandFailed: one of them cannot be.
        """
        named = {"min_replicas": self.min_replicas, "max_replicas": self.max_replicas}
        rules: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if "none" in self.scaling:
            rules.setdefault("max_replicas", 0)
        for name, text in _each("--scaling", "NAME=VALUE", self.scaling):
            if name in rules:
                raise CommandFailed(f"--scaling {name}: given twice", Exit.USAGE)
            rules[name] = guess(text)
        try:
            read_scaling(rules)  # a lower bound alone may belong to an upper one of before
        except BadRequest as error:
            raise CommandFailed(error.message, Exit.USAGE) from error
        return rules


AS_MANY_AS_SAID = ScalingOptions()


def told_rules(rules: Rules) -> str:
    """Return in one line what is not as usual; empty when everything is."""
    usual = type(rules)()
    parts = []
    for name in rules.__struct_fields__:
        value = getattr(rules, name)
        if value != getattr(usual, name):
            parts.append(f"{name} {_told(value)}")
    return ", ".join(parts)


# Private


def _each(option: str, form: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        if text == "none":
            continue
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise CommandFailed(f"{option} {text!r}: need {form}", Exit.USAGE)
        pairs.append((name, value))
    return pairs


def _pairs(
    option: str, form: str, texts: Iterable[str], read: Callable[[str], object]
) -> dict[str, object]:
    found = {}
    for name, value in _each(option, form, texts):
        try:
            found[name] = read(value)
        except ValueError as error:
            raise CommandFailed(f"{option} {name}={value}: need {form}", Exit.USAGE) from error
    return found


def _percent(text: str) -> float:
    return float(text.removesuffix("%"))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cause, model in pairs:
        found.setdefault(cause, []).append(model)
    return found


def _told(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_told(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
