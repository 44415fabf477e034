"""`hostler console`: a link to the web console that signs one browser in."""

import webbrowser
from typing import Annotated

from cyclopts import Parameter

from hostler.admin.messages import TicketCreated
from hostler.cli.client import Client
from hostler.cli.exits import Exit
from hostler.cli.render import duration, err, print_json
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.console import TICKET_S, link_of


def console(
    *,
    open_it: Annotated[bool, Parameter(negative=(), name="--open")] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """Print a link to the web console; whoever opens it first is signed in with your key.

    Example: `hostler console --open`

    Parameters
    ----------
    open_it: bool
        Open it in this machine's browser as well.
    """
    target = find_target(common)
    with Client(target) as client:
        made = client.post("/api/v1/session/tickets", None, TicketCreated)
    link = link_of(target.url, made.ticket)
    if common.json:
        print_json({"url": link, "expires_at_s": made.expires_at_s})
        return Exit.OK
    err().print(f"for one browser, within {duration(TICKET_S)}:", markup=False)
    print(link)
    if open_it and not webbrowser.open(link):
        err().print("no browser can be opened here: open the link yourself", markup=False)
        return Exit.FAILED
    return Exit.OK
