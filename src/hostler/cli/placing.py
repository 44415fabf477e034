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
        return found


ANYWHERE = PlaceOptions()


# Private


def _read(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandFailed(f"--label {text}: need NAME=VALUE", Exit.USAGE)
    return name, value
