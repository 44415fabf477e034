"""`hostler events`: the operator's log, line by line."""

from datetime import datetime
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.render import clean, print_notes
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.worker import OperatorEvent


def events(
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    model: str | None = None,
    after: int | None = None,
    common: Common = NO_OPTIONS,
) -> int:
    """What happened: starts, stops, failures.

    Example: `hostler events --follow --model smollm2-135m-instruct`

    Parameters
    ----------
    follow: bool
        Wait for more, until Ctrl-C. With --json, here and without: one object a line.
    model: str
        Only this model's.
    after: int
        Only events with a higher number; each line begins with its own. Left out: the newest.
    """
    with Client(find_target(common)) as client:
        api = Api(client)
        if model is not None and after is None:
            _warn_of_nobody(api, model)
        for event in api.events(after=after, model=model, follow=follow):
            print(_as_json(event) if common.json else event_line(event), flush=True)
    return 0


def event_line(event: OperatorEvent) -> str:
    """One event for people: number, time of day, kind, model, message."""
    at = datetime.fromtimestamp(event.at_s).strftime("%H:%M:%S")
    words = (str(event.seq), at, event.kind, event.model, event.message)
    return clean("  ".join(word for word in words if word))


# Private


def _warn_of_nobody(api: Api, model: str) -> None:
    """A name that no model and no event has is most probably a mistake."""
    if not any(one.name == model for one in api.models()) and not any(api.events(model=model)):
        print_notes([f"no model {model!r} is known, and no event of it"])


def _as_json(event: OperatorEvent) -> str:
    return msgspec.json.encode(event).decode()
