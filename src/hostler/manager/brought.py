"""BroughtWorker: a host with one worker of its own choice. It hears no order but to drain and to end it.

The model is loaded before the controller hears of it, under a name of this host's own; the offer's answer
names it. A controller that has given it up meanwhile is offered it anew, and names it anew.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.core.errors import ControllerUnavailable, EngineError, HostlerError, all_errors
from hostler.core.hosts import Offer, OfferAnswer, Order, OrderWish
from hostler.core.lifecycle import Instance, State
from hostler.core.model import worker_key
from hostler.core.worker import OperatorEvent
from hostler.manager.controllers import Controllers
from hostler.manager.host import Host
from hostler.manager.host_orders import Action, End, Leave, rank
from hostler.manager.host_rules import accept
from hostler.manager.membership import Membership
from hostler.manager.plan import GONE
from hostler.storage.store import Store

log = logger(__name__)

_AGAIN_S = 1.0
_LIST_COMES_S = 5.0  # with the instance that was taken in


class BroughtWorker(Host):
    """Loads, offers, serves until told to drain; `finished` when its worker is gone."""

    def __init__(
        self,
        paths: StatePaths,
        config: Config,
        store: Store,
        membership: Membership,
        controllers: Controllers,
        *,
        offer: Offer,
        hear: Callable[[OperatorEvent], None] = lambda event: None,
    ) -> None:
        super().__init__(paths, config, store, membership, controllers, hear=hear)
        self._offer = offer
        self._offered_at_s = 0.0
        self._was_listed = False
        self._again = asyncio.Event()  # it must be offered once more
        self.voice.only_named = True
        self.voice.names = dict(self.notebook.kept.names)

    def own_name(self, instance_id: str) -> str:
        """What an instance is called here. instance_id: what the controller calls it."""
        for own, name in self.voice.names.items():
            if name.instance_id == instance_id:
                return own
        return ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running(), asyncio.TaskGroup() as tasks:
            life = begin(tasks, Background.HOST_OFFER, self._live())
            try:
                yield
            finally:
                life.cancel()

    def look(self) -> list[Action]:
        """What the list says of the one instance; nothing else there is for this host."""
        one = self._instance_here()
        orders = self.notebook.orders
        if one is None or orders is None or self.is_draining:
            return []
        name = self.voice.names.get(one.instance_id)
        order = next(
            (o for o in orders.orders if name and o.instance_id == name.instance_id),
            None,
        )
        if order is None:
            self._miss(one, name)
            return []
        self._was_listed, self._obeyed = True, rank(orders)
        actions = _obey(one, order)
        self._carry_out(actions)
        return actions

    # Private

    async def _live(self) -> None:
        """Load it, if none was adopted; offer it as often as need be; see its end."""
        try:
            here = self._instance_here()
            if here is None or here.state in GONE:
                await self._bring()
            while True:
                news = self.registry.news()
                one = self._instance_here()
                if one is None or one.state in GONE:
                    return self._finish(one)
                if one.state is State.READY and one.instance_id not in self.voice.names:
                    await self._make_offer(one)
                    continue
                self._again.clear()
                await first_of(news.wait(), self._again.wait())
        except HostlerError as error:
            self.failure = error
            self.finished.set()

    async def _bring(self) -> None:
        offer = self._offer
        own = secrets.token_hex(6)
        key = worker_key(offer.model_name, offer.worker_type)
        order = Order(
            instance_id=own,
            epoch=await self._writer.do(self._store.next_epoch, key, 0),
            replica=0,
            generation=1,
            model_name=offer.model_name,
            worker_type=offer.worker_type,
            engine=offer.engine,
            source=offer.source,
            params=offer.params,
            concurrency=offer.concurrency,
        )
        self.workers.launch(accept(order, self._rules), 0, self._instance(order))

    async def _make_offer(self, one: Instance) -> None:
        """Offer it until somebody answers.

        Raises:
            HostlerError: it is not taken.
        """
        try:
            answer = await self.link.offer(self._offer)
        except ControllerUnavailable as error:
            log.warning("host.offer_unheard", why=error.message)
            await asyncio.sleep(_AGAIN_S)
            return
        log.info("host.offered", instance_id=answer.instance_id, epoch=answer.epoch)
        self._offered_at_s, self._was_listed = self._clock(), False
        await self._name({one.instance_id: answer})

    async def _name(self, names: dict[str, OfferAnswer]) -> None:
        self.voice.names = names
        await self.notebook.name(names)
        self.link.hurry()

    def _miss(self, one: Instance, name: OfferAnswer | None) -> None:
        """The list does not name it: it was given up, if it had been there or should be by now."""
        is_due = self._clock() - self._offered_at_s > _LIST_COMES_S
        if name is not None and one.state is State.READY and (self._was_listed or is_due):
            log.warning("host.offered_anew", given_up=name.instance_id)
            self._was_listed = False
            self.voice.names = {}
            self._again.set()

    def _finish(self, one: Instance | None) -> None:
        if one is not None and one.state is State.FAILED:
            record = self.registry.record(one.instance_id)
            code = record.error_code if record else ""
            self.failure = failure_of(code, f"model {one.model_name!r}: {one.reason}")
        self.finished.set()

    def _instance_here(self) -> Instance | None:
        """The newest one; others are dead."""
        found = sorted(self.registry.instances(), key=lambda one: one.epoch)
        return found[-1] if found else None


def failure_of(code: str, message: str) -> HostlerError:
    """Return the error of this code, as a command ends with it."""
    kind = next((kind for kind in all_errors() if kind.code == code), EngineError)
    return kind(message)


# Private


def _obey(one: Instance, order: Order) -> list[Action]:
    if one.state in GONE:
        return []
    if order.wish is OrderWish.END:
        return [End(instance_id=one.instance_id, reason=order.reason or "it was ended")]
    if order.wish is OrderWish.DRAIN and one.state is not State.DRAINING:
        return [Leave(instance_id=one.instance_id, reason=order.reason or "it was stopped")]
    return []
