"""Handlers for API keys. They are written in the store's own thread: it may wait for its lock."""

import asyncio

from hostler.admin.messages import KeyCreated, KeyInfo, KeyList
from hostler.admin.operation import Call
from hostler.app.auth import ADMIN_KEY_NAME, StoredKey, new_key
from hostler.app.faults import CrashPoint, crash_point
from hostler.core.deployment import check_name
from hostler.core.errors import BadRequest, Conflict, NotFound
from hostler.core.serving import Priority


async def list_keys(call: Call) -> KeyList:
    stored = await asyncio.to_thread(call.services.keys.keys)
    return KeyList(keys=tuple(key_info(key) for key in stored if not key.view.parent))


async def create_key(call: Call) -> KeyCreated:
    order = call.body
    if order.name == ADMIN_KEY_NAME or order.name.startswith(f"{ADMIN_KEY_NAME} of "):
        raise BadRequest(f"name: {ADMIN_KEY_NAME!r} is the server's own", param="name")
    for model in order.models:
        check_name(model)
    clock = call.services.clock
    lasts_s = order.expires_in_s
    made = new_key(
        order.scopes,
        models=order.models,
        name=order.name,
        expires_at_s=None if lasts_s is None else clock() + lasts_s,
        weight=order.weight,
        priority=Priority[order.priority.upper()],
        clock=clock,
    )
    await call.services.writer.do(call.services.keys.save_key, made.stored)
    crash_point(CrashPoint.KEY_SAVED)
    call.services.on_keys_changed()
    return KeyCreated(key=made.plain, info=key_info(made.stored))


async def revoke_key(call: Call) -> KeyInfo:
    """A key cannot revoke itself: whoever holds the last one would lock everybody out."""
    key_id = call.path_value("key_id")
    if key_id == call.key.key_id:
        raise Conflict("this is the key you are using; revoke it with another admin key")
    keys = call.services.keys
    if not await call.services.writer.do(keys.revoke_key, key_id):
        raise NotFound(f"no key {key_id[:40]!r} here")
    call.services.on_keys_changed()
    stored = await asyncio.to_thread(keys.keys)
    return next(key_info(key) for key in stored if key.view.key_id == key_id)


def key_info(key: StoredKey) -> KeyInfo:
    """What may be shown of a key."""
    view = key.view
    return KeyInfo(
        key_id=view.key_id,
        name=key.name,
        last_4=key.last_4,
        scopes=view.scopes,
        models=view.models,
        created_at_s=key.created_at_s,
        expires_at_s=view.expires_at_s,
        revoked=view.revoked,
        weight=view.weight,
        priority=view.priority.word,
    )
