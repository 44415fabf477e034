"""Handlers for sessions: how a browser signs in, by a key or by a link that works once.

A session is a key of its own that stands for the one that signed in (`app/auth.py`). The browser keeps it in
a cookie that no script can read; the gateway takes it from there (`gateway/credentials.py`).
"""

import asyncio
from urllib.parse import urlsplit

import msgspec
from starlette.responses import Response

from hostler.admin.messages import SessionInfo, TicketCreated
from hostler.admin.operation import Call
from hostler.app.auth import NewKey, is_over, key_id_of, new_session
from hostler.core.console import TICKET_S, cookie_name
from hostler.core.errors import InvalidAPIKey
from hostler.core.snapshot import KeyView

SESSION_S = 12 * 3600.0


async def create_session(call: Call) -> Response:
    """Exchange a key or a ticket for a session. A ticket is used up."""
    parent = call.key
    if call.key.is_ticket:
        given = key_id_of(call.request.headers["authorization"].encode("latin-1"))
        if not await call.services.writer.do(call.services.keys.drop_keys, [given]):
            raise InvalidAPIKey  # somebody was quicker
        parent = msgspec.structs.replace(call.key, expires_at_s=None)  # which was the ticket's end
    made = await _keep(call, new_session(parent, SESSION_S, clock=call.services.clock))
    return _answer(call, _info(call.key, made.view.expires_at_s), made.plain, SESSION_S)


async def show_session(call: Call) -> SessionInfo:
    return _info(call.key, call.key.expires_at_s)


async def end_session(call: Call) -> Response:
    """Sign out. A key that signed nobody in stays what it is."""
    given = key_id_of(call.request.headers["authorization"].encode("latin-1"))
    if given != call.key.key_id:
        await call.services.writer.do(call.services.keys.drop_keys, [given])
        call.services.on_keys_changed()
    return _answer(call, _info(call.key, call.services.clock()), "", 0.0)


async def create_ticket(call: Call) -> TicketCreated:
    """Make what a link carries: whoever opens it first is signed in as this key."""
    made = await _keep(
        call, new_session(call.key, TICKET_S, is_ticket=True, clock=call.services.clock)
    )
    assert made.view.expires_at_s is not None
    return TicketCreated(ticket=made.plain, expires_at_s=made.view.expires_at_s)


# Private


async def _keep(call: Call, made: NewKey) -> NewKey:
    services = call.services
    known = await asyncio.to_thread(services.keys.keys)
    over = [one.view.key_id for one in known if is_over(one.view, services.clock())]
    if over:
        await services.writer.do(services.keys.drop_keys, over)
    await services.writer.do(services.keys.save_key, made.stored)
    services.on_keys_changed()
    return made


def _info(key: KeyView, expires_at_s: float | None) -> SessionInfo:
    return SessionInfo(
        key_id=key.key_id, scopes=key.scopes, models=key.models, expires_at_s=expires_at_s
    )


def _answer(call: Call, info: SessionInfo, value: str, lasts_s: float) -> Response:
    headers = call.request.headers
    name = cookie_name(headers.get("x-forwarded-host", ""))
    cookie = f"{name}={value}; Path=/; Max-Age={lasts_s:.0f}; HttpOnly; SameSite=Strict"
    if urlsplit(headers.get("origin", "")).scheme == "https":
        cookie += "; Secure"
    return Response(
        msgspec.json.encode(info),
        201 if value else 200,
        {"set-cookie": cookie},
        "application/json",
    )
