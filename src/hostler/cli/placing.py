"""The options that say where a model may run, and in which environment."""

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from hostler.cli.exits import CommandFailed, Exit

_PLACING = Group("Machines")
_Texts = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


@Parameter(name="*", group=_PLACING)
@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """What was said of where it may run."""

    host: Annotated[
        str | None,
        Parameter(
            show_default=False,
            help="The one machine, by name or id; `localhost`: the server's own; `any`.",
        ),
    ] = None
    label: Annotated[
        _Texts,
        Parameter(
            help="A label that its machine must have, NAME=VALUE; repeat for several; `none`."
        ),
    ] = ()
    cpus: Annotated[
        float | None,
        Parameter(show_default=False, help="With Ray: CPUs held for each copy. [default: 1]"),
    ] = None
    gpus: Annotated[
        float | None, Parameter(show_default=False, help="With Ray: GPUs held for each copy.")
    ] = None
    resource: Annotated[
        _Texts,
        Parameter(
            help="With Ray: NAME=NUMBER of a resource of your own, or memory_bytes=NUMBER; repeat."
        ),
    ] = ()

    bundle: Annotated[
        _Texts,
        Parameter(
            help="With Ray, for a model over several nodes: what is held on one, like gpus=1,cpus=2; repeat."
        ),
    ] = ()
    strategy: Annotated[
        Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] | None,
        Parameter(show_default=False, help="With Ray: how bundles are laid out. [default: PACK]"),
    ] = None
    pip: Annotated[
        _Texts,
        Parameter(help="With Ray: a requirement of its own environment, NAME==VERSION; repeat."),
    ] = ()
    env: Annotated[
        _Texts, Parameter(help="With Ray: a variable of its process, NAME=VALUE; repeat.")
    ] = ()
    working_dir: Annotated[
        str | None,
        Parameter(
            show_default=False,
            help="With Ray: a folder here, or the URL of an archive, that it starts in and imports from.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that were named, as `WorkerStartupRequest` takes them.

        Raises:
            CommandFailed: a label is not of that form.
        """
        found: dict[str, Any] = {}
        if self.host is not None:
            found["host"] = "" if self.host == "any" else self.host
        if self.label:
            found["labels"] = dict(_read(text) for text in self.label if text != "none")
        if needs := self._needs():
            found["resources"] = needs
        if env := self._environment():
            found["runtime_env"] = env
        return found

    def _environment(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.pip:
            found["pip"] = self.pip
        if self.env:
            found["env_vars"] = dict(_read(text, "--env") for text in self.env)
        if folder := self.working_dir:
            found["working_dir"] = folder if "://" in folder else os.path.abspath(folder)
        return found

    def _needs(self) -> dict[str, Any]:
        named = {"cpus": self.cpus, "gpus": self.gpus}
        needs: dict[str, Any] = {name: many for name, many in named.items() if many is not None}
        own: dict[str, float] = {}
        for text in self.resource:
            name, equals, many = text.partition("=")
            try:
                number = float(many)
            except ValueError:
                number = -1.0
            if not name or not equals or number < 0:
                raise CommandFailed(f"--resource {text}: need NAME=NUMBER", Exit.USAGE)
            if name == "memory_bytes":
                needs[name] = int(number)
            else:
                own[name] = number
        if self.bundle:
            needs["bundles"] = [_read_bundle(text) for text in self.bundle]
        if self.strategy is not None:
            needs["strategy"] = self.strategy
        return {**needs, "resources": own} if own else needs


ANYWHERE = PlaceOptions()


# Private


def _read_bundle(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in text.split(","):
        name, _, many = word.partition("=")
        try:
            number = float(many)
        except ValueError:
            raise CommandFailed(f"--bundle {text}: need NAME=NUMBER,...", Exit.USAGE) from None
        if name in ("cpus", "gpus"):
            found[name] = number
        elif name == "memory_bytes":
            found[name] = int(number)
        else:
            found.setdefault("resources", {})[name] = number
    return found


def _read(text: str, option: str = "--label") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandFailed(f"{option} {text}: need NAME=VALUE", Exit.USAGE)
    return name, value
