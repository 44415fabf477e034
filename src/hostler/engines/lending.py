"""Lending: what a gateway and a worker say to each other when one slot's prompt is lent to the others.

First the prompt of one request is read, without an answer; then the slot that has it is copied. Two orders,
for who waits meanwhile is known only at the end. Light: no engine is imported here.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from hostler.core.request import Route

READ_PATH, LEND_PATH = "/prefix/read", "/prefix/lend"  # of the agent


class ReadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Read the prompt of this request.

    others: how many requests beside it the engine is right to work on; one that was just taken back may
    still be there, and what it has read with it.
    """

    route: Route
    body: Mapping[str, Any]
    others: int = 0


class PrefixRead(msgspec.Struct, frozen=True, kw_only=True):
    """It was read, and this slot has it."""

    slot: int
    tokens: int


class LendOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Lend what a slot has to so many others."""

    slot: int
    tokens: int
    copies: int


class PrefixLent(msgspec.Struct, frozen=True, kw_only=True):
    """So many slots have it now beside the one that read it."""

    slots: int


@runtime_checkable
class PrefixLender(Protocol):
    """An engine whose slots do not share what they read, and that can carry it from one to another."""

    async def read_prefix(self, order: ReadOrder) -> PrefixRead:
        """Read a prompt and keep it in a slot. Cancelled when nobody waits for it any more.

        Raises:
            HostlerError: that cannot be done, with this prompt or now.
        """

    async def lend_prefix(self, order: LendOrder) -> PrefixLent:
        """Copy it to other slots that are idle, as many as there are. Raises as `read_prefix`."""
