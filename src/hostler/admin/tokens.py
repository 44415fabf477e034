"""Handlers for join tokens: how other machines are let in."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from hostler.admin.messages import TokenCreated, TokenInfo, TokenList
from hostler.admin.operation import Call
from hostler.app.tokens import StoredToken, TokenStore, new_token
from hostler.core.errors import Conflict, NotFound
from hostler.core.worker import OperatorEvent
from hostler.manager.joinable import NO_PORT, join_command, token_event


@dataclass(frozen=True)
class TokenDesk:
    """What handlers of tokens work with.

    url, fingerprint: of the control port, and of who vouches for it; "": there is none.
    """

    store: TokenStore
    tell: Callable[[OperatorEvent], None]
    url: str = ""
    fingerprint: str = ""


async def list_tokens(call: Call) -> TokenList:
    stored = await asyncio.to_thread(_desk(call).store.tokens)
    return TokenList(tokens=tuple(map(token_info, stored)))


async def create_token(call: Call) -> TokenCreated:
    desk, order = _desk(call), call.body
    if not desk.url:
        raise Conflict(NO_PORT)
    made = new_token(
        order.role,
        desk.fingerprint,
        lasts_s=order.expires_in_s,
        uses=order.uses or None,
        name=order.name,
        clock=call.services.clock,
    )
    await call.services.writer.do(desk.store.save_token, made.stored)
    _tell(call, "token.created", made.stored)
    return TokenCreated(
        token=made.plain,
        url=desk.url,
        command=join_command(order.role, desk.url, made.plain),
        info=token_info(made.stored),
    )


async def revoke_token(call: Call) -> TokenInfo:
    desk, token_id = _desk(call), call.path_value("token_id")
    if not await call.services.writer.do(desk.store.revoke_token, token_id):
        raise NotFound(f"no token {token_id[:40]!r} here")
    stored = await asyncio.to_thread(desk.store.tokens)
    gone = next(token for token in stored if token.token_id == token_id)
    _tell(call, "token.revoked", gone)
    return token_info(gone)


def token_info(token: StoredToken) -> TokenInfo:
    """What may be shown of a token."""
    return TokenInfo(
        token_id=token.token_id,
        role=token.role,
        name=token.name,
        created_at_s=token.created_at_s,
        expires_at_s=token.expires_at_s,
        uses_left=token.uses_left,
        revoked=token.revoked,
    )


# Private


def _desk(call: Call) -> TokenDesk:
    if call.services.tokens is None:
        raise Conflict("this server keeps no join tokens")
    return call.services.tokens


def _tell(call: Call, kind: str, token: StoredToken) -> None:
    """For the audit: what was done, with which token, by which key."""
    _desk(call).tell(token_event(kind, token, key_id=call.key.key_id))
