"""`hostler token`: make, list and revoke join tokens, by which other machines are let in."""

import time
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

from cyclopts import Parameter

from hostler.admin.messages import TokenCreated, TokenInfo, TokenList, TokenOrder
from hostler.app.tokens import LONGEST_S
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.moments import seconds_of
from hostler.cli.render import duration, err, print_json, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.hosts import Role

_PATH = "/api/v1/tokens"
_USES_MOST = 100_000


def create(
    *,
    role: Role,
    expires: str = "24h",
    uses: int = 1,
    name: str = "",
    common: Common = NO_OPTIONS,
) -> int:
    """Make a join token; it is shown once, in the command for the machine that joins with it.

    The server needs a control port: `hostler up --tls`.

    Example: `hostler token create --role host`

    Example: `hostler token create --role worker --uses 8 --expires 2h --name slurm`

    Parameters
    ----------
    role: Role
        host: models are started there by the controller; worker: it brings one model; gateway: it
        serves users.
    expires: str
        How long it lets machines in: 90m, 24h, 7d; a year at most. They stay longer.
    uses: int
        How many machines may join with it; 0: any number.
    name: str
        What it is for, so that you know it again.
    """
    lasts_s = seconds_of(expires, "--expires")
    if not 1 <= lasts_s <= LONGEST_S:
        raise CommandFailed(f"--expires {expires!r}: need 1s to 366d", Exit.USAGE)
    if not 0 <= uses <= _USES_MOST:
        raise CommandFailed(
            f"--uses {uses}: need 1 to {_USES_MOST}, or 0 for any number", Exit.USAGE
        )
    order = TokenOrder(role=role, name=name, expires_in_s=lasts_s, uses=uses)
    with Client(find_target(common)) as client:
        made = _Desk(client).create(order)
    if common.json:
        print_json(made)
        return Exit.OK
    many = {0: "any number of machines", 1: "one machine"}.get(uses, f"{uses} machines")
    err().print(
        f"token {made.info.token_id} for {many}, for {duration(lasts_s)}; shown this once. Run there:",
        markup=False,
    )
    print(made.command)
    return Exit.OK


def list_tokens(
    *,
    past: Annotated[bool, Parameter(negative=(), name="--all")] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """Join tokens that let machines in, without their secrets.

    Example: `hostler token list --all`

    Parameters
    ----------
    past: bool
        Those that were revoked, have expired or are used up as well.
    """
    now_s = time.time()
    with Client(find_target(common)) as client:
        found = _Desk(client).tokens()
    shown = [one for one in found if past or _state(one, now_s) == "good"]
    if common.json:
        print_json(shown)
        return Exit.OK
    print_table(
        ("ID", "ROLE", "NAME", "USES LEFT", "MADE", "UNTIL", "STATE"),
        (
            (
                one.token_id,
                one.role.value,
                one.name,
                "any" if one.uses_left is None else one.uses_left,
                _day(one.created_at_s),
                _day(one.expires_at_s),
                _state(one, now_s),
            )
            for one in shown
        ),
        empty="no tokens" if past else "no tokens that let anybody in",
    )
    return Exit.OK


def revoke(token_id: str, /, *, common: Common = NO_OPTIONS) -> int:
    """Let nobody in by a join token any more. Machines that joined with it stay.

    Example: `hostler token revoke 3fK9aQx2Lm`

    Parameters
    ----------
    token_id: str
        Its id, from `hostler token list`.
    """
    with Client(find_target(common)) as client:
        gone = _Desk(client).revoke(token_id)
    if common.json:
        print_json(gone)
    else:
        print(f"token {gone.token_id} is revoked; `hostler host list` shows who joined")
    return Exit.OK


# Private


class _Desk:
    """The addresses of join tokens, as typed calls."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tokens(self) -> tuple[TokenInfo, ...]:
        return self._client.get(_PATH, TokenList).tokens

    def create(self, order: TokenOrder) -> TokenCreated:
        return self._client.post(_PATH, order, TokenCreated)

    def revoke(self, token_id: str) -> TokenInfo:
        return self._client.delete(f"{_PATH}/{quote(token_id, safe='')}", TokenInfo)


def _state(token: TokenInfo, now_s: float) -> str:
    if token.revoked:
        return "revoked"
    if token.expires_at_s <= now_s:
        return "expired"
    return "used up" if token.uses_left == 0 else "good"


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M")
