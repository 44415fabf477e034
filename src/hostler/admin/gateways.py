"""Handlers for the gateway processes. Their supervisor starts and ends them; the controller only asks it."""

from hostler.admin.operation import Call
from hostler.app.supervision import Gateways, Wish
from hostler.core.errors import Unavailable


async def list_gateways(call: Call) -> Gateways:
    return await _ask(call, Wish.LIST)


async def restart_gateways(call: Call) -> Gateways:
    """Answers when each new gateway serves; those before it may still finish what they have."""
    return await _ask(call, Wish.RENEW)


# Private


async def _ask(call: Call, wish: Wish) -> Gateways:
    if call.services.supervisor is None:
        raise Unavailable("this controller knows no supervisor", retry_after_s=60)
    return await call.services.supervisor(wish)
