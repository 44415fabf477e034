"""Notebook: what a host knows after its own restart, whoever is away. One small file, always whole."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.core.hosts import HostOrders, OfferAnswer
from hostler.core.placing import Held
from hostler.manager.host_orders import Ended, changed_orders, rank
from hostler.storage.writer import Writer, told

log = logger(__name__)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the file.

    orders: the newest list; None: there was none. ended: of those in the list that have ended here.
    names: what the controller calls a worker that was brought by hand.
    """

    orders: HostOrders | None = None
    ended: Mapping[str, Ended] = {}
    names: Mapping[str, OfferAnswer] = {}


class Notebook:
    """The newest list, and what became of what is in it. A full disk costs the file, no order."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self.kept = load_kept(path)
        self._path = path
        self._writer = writer

    @property
    def orders(self) -> HostOrders | None:
        return self.kept.orders

    @property
    def rank(self) -> tuple[int, int]:
        return rank(self.kept.orders)

    def held(self, instance_id: str) -> Held:
        """What a placer has chosen for an instance, as it was ordered."""
        orders = self.kept.orders.orders if self.kept.orders else ()
        return next((one.held for one in orders if one.instance_id == instance_id), Held())

    async def take(self, orders: HostOrders) -> None:
        """Keep a newer list before it is obeyed: a host that is killed in between knows it."""
        old = self.kept.orders.orders if self.kept.orders else ()
        for instance_id in changed_orders(old, orders.orders):
            log.warning("host.order_changed", instance_id=instance_id, done="nothing")
        listed = {order.instance_id for order in orders.orders}
        ended = {one: how for one, how in self.kept.ended.items() if one in listed}
        self.kept = msgspec.structs.replace(self.kept, orders=orders, ended=ended)
        await self.save()

    async def name(self, names: Mapping[str, OfferAnswer]) -> None:
        self.kept = msgspec.structs.replace(self.kept, names=names)
        await self.save()

    def note_end(self, instance_id: str, ended: Ended) -> None:
        """Write down, a little later, that one has had its process here."""
        self.kept = msgspec.structs.replace(
            self.kept, ended={**self.kept.ended, instance_id: ended}
        )
        self._writer.post(_note, save_kept, self._path, self.kept)

    async def save(self) -> None:
        try:
            await self._writer.do(save_kept, self._path, self.kept)
        except (HostlerError, OSError) as error:
            _note(error)


def load_kept(path: Path) -> Kept:
    """Return what was kept; nothing when there is no such file, or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("host.orders_lost", file=str(path), why=str(error))
        return Kept()


def save_kept(path: Path, kept: Kept) -> None:
    """Keep it: whole, or as it was before.

    Raises:
        OSError: it could not be written.
    """
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


# Private


def _note(error: BaseException | None) -> None:
    if error is not None:
        log.warning("host.orders_not_kept", why=told(error))
