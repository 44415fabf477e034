"""`hostler key`: make, list and revoke API keys."""

from datetime import datetime
from typing import Annotated

from cyclopts import Parameter

from hostler.admin.messages import KeyInfo, KeyOrder, ModelStatus
from hostler.app.auth import Scope
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import Exit
from hostler.cli.render import err, print_json, print_notes, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.serving import PriorityWord

_DAY_S = 86400.0


def create(
    name: str = "",
    /,
    *,
    scope: list[Scope] | None = None,
    model: list[str] | None = None,
    days: float | None = None,
    weight: float = 1.0,
    priority: PriorityWord = "normal",
    common: Common = NO_OPTIONS,
) -> int:
    """Make a key; its text is shown once.

    Example: `hostler key create laptop --scope inference --days 90`

    Parameters
    ----------
    name: str
        What it is for, so that you know it again.
    scope: list[Scope]
        What it may do; repeat for several. Left out: inference.
    model: list[str]
        Only these models; repeat for several. Left out: all.
    days: float
        Valid for so long. Left out: until revoked.
    weight: float
        Its share of a model that several keys wait for: one of weight 2 gets twice as much as one of 1.
    priority: PriorityWord
        The class it waits in: high goes before normal, normal before low, always.
    """
    order = KeyOrder(
        scopes=tuple(one.value for one in scope or [Scope.INFERENCE]),
        name=name,
        models=tuple(model or ()),
        expires_in_s=days * _DAY_S if days is not None else None,
        weight=weight,
        priority=priority,
    )
    with Client(find_target(common)) as client:
        api = Api(client)
        made = api.create_key(order)
        unknown = set(order.models).difference(*map(_names, api.models()))
    print_notes(
        f"no model {one!r} is known yet; the key holds for it once it is started"
        for one in sorted(unknown)
    )
    if common.json:
        print_json(made)
        return Exit.OK
    err().print(f"key {made.info.key_id}: shown this once; keep it now", markup=False)
    print(made.key)
    return Exit.OK


def list_keys(
    *, revoked: Annotated[bool, Parameter(negative=())] = False, common: Common = NO_OPTIONS
) -> int:
    """All keys, without their secrets.

    Example: `hostler key list`

    Parameters
    ----------
    revoked: bool
        Those that were revoked as well.
    """
    with Client(find_target(common)) as client:
        keys = [one for one in Api(client).all_keys() if revoked or not one.revoked]
    if common.json:
        print_json(keys)
        return Exit.OK
    print_table(
        ("ID", "NAME", "ENDS IN", "SCOPES", "MODELS", "WEIGHT", "PRIORITY", "MADE", "VALID UNTIL"),
        (
            (
                one.key_id,
                one.name,
                f"…{one.last_4}",
                " ".join(one.scopes),
                " ".join(one.models) or "all",
                f"{one.weight:g}",
                one.priority,
                _day(one.created_at_s),
                _validity(one),
            )
            for one in keys
        ),
        empty="no keys",
    )
    return Exit.OK


def revoke(key_id: str, /, *, common: Common = NO_OPTIONS) -> int:
    """Make a key useless, at once.

    Example: `hostler key revoke 3fK9aQx2Lm`

    Parameters
    ----------
    key_id: str
        Its id, from `hostler key list`.
    """
    with Client(find_target(common)) as client:
        gone = Api(client).revoke_key(key_id)
    if common.json:
        print_json(gone)
    else:
        print(f"key {gone.key_id} is revoked")
    return Exit.OK


# Private


def _names(model: ModelStatus) -> set[str]:
    return {model.name, *model.deployment.aliases}


def _validity(key: KeyInfo) -> str:
    if key.revoked:
        return "revoked"
    return _day(key.expires_at_s) if key.expires_at_s is not None else "-"


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M")
