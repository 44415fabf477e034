"""`hostler gateway list` and `restart`: the gateways of a server that `hostler up` runs."""

import time

from hostler.app.supervision import Gateways
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import Exit
from hostler.cli.render import duration, print_json, print_notes, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target


def list_gateways(*, common: Common = NO_OPTIONS) -> int:
    """The gateway processes of the server: one or several, and those that finish what they have.

    Example: `hostler gateway list`
    """
    with Client(find_target(common)) as client:
        found = Api(client).gateways()
    return _show(found, common)


def restart(*, common: Common = NO_OPTIONS) -> int:
    """Put a fresh process in the place of each gateway, with the settings as they are now.

    No connection is lost: the new one takes over when it serves, the one before finishes what it has.

    Example: `hostler gateway restart`
    """
    with Client(find_target(common)) as client:
        found = Api(client).restart_gateways()
    print_notes(f"not taken: {note}" for note in found.notes)
    return _show(found, common)


# Private


def _show(found: Gateways, common: Common) -> int:
    if common.json:
        print_json(found)
        return Exit.OK
    now_s = time.time()
    print_table(
        ("GATEWAY", "PID", "STATE", "FOR"),
        (
            (str(one.number), str(one.pid), one.state, duration(max(0.0, now_s - one.started_at_s)))
            for one in found.gateways
        ),
        empty="no gateways",
    )
    return Exit.OK
