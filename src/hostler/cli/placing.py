"""The options that say on which machines a model may run: `--host` and `--label`."""

from dataclasses import dataclass
from typing import Annotated, Any

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
        return {**needs, "resources": own} if own else needs


ANYWHERE = PlaceOptions()


# Private


def _read(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandFailed(f"--label {text}: need NAME=VALUE", Exit.USAGE)
    return name, value
