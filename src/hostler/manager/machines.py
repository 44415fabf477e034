"""Machines: what a manager has to do with others than its own: the book, the hands, operators' orders."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from hostler.app.config import Config
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.paths import StatePaths
from hostler.app.telemetry import logger
from hostler.app.tokens import StoredHost
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import HERE
from hostler.core.errors import ConfigError, Conflict
from hostler.core.hosts import HostView, Offer, OfferAnswer, Role, Standing
from hostler.core.lifecycle import Instance
from hostler.core.worker import OperatorEvent
from hostler.manager.files import Tell
from hostler.manager.hands import AllHands, SeatsToCome
from hostler.manager.head_files import HeadFiles
from hostler.manager.host_silence import HostSilence
from hostler.manager.hosts import HostWorkers
from hostler.manager.launches import LaunchBook
from hostler.manager.plan import GONE
from hostler.manager.room import Room
from hostler.manager.wishes import Wishes
from hostler.manager.workers import LocalWorkers
from hostler.registry.expected import Expected
from hostler.registry.host import Host
from hostler.registry.host_reports import gone
from hostler.registry.host_server import HostRoutes
from hostler.registry.hosts import HostBook
from hostler.registry.members import Members
from hostler.registry.registry import Registry
from hostler.wire.identity import CERT_FILE, ClientContexts, Identity
from hostler.wire.server import Exchange

log = logger(__name__)


class Machines:
    """The hosts of one controller. Without any it changes nothing."""

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        book: LaunchBook,
        local: LocalWorkers,
        room: Room,
        catalog: Catalog,
        wishes: Wishes,
        members: Members,
        tell: Tell,
        wake: Callable[[], None],
        nudge: Callable[[], None],
        paths: StatePaths,
        clock: Callable[[], float],
    ) -> None:
        """members: the machines that joined. paths: with the certificate that we show to them.

        wake: called when instances are to leave their machine, or may stay. nudge: called when something may
            be placed now that could not be before.
        """
        self._members = members
        self.watching: Callable[[str], bool] = lambda gateway_id: False  # does it mirror us now?
        self._wake, self._nudge = wake, nudge
        self._registry = registry
        self._wishes = wishes
        self._tell = tell
        self._clock = clock
        self._offering = asyncio.Lock()
        self._standings: dict[str, Standing] = {}
        self.book = HostBook(
            registry,
            config.heartbeat,
            clock,
            tell=tell,
            moved=self._moved,
            refused=members.refused,
        )
        self.distant = HostWorkers(book, registry, self.book, clock)
        self.hands = AllHands(
            local=local,
            distant=self.distant,
            hosts=self.book,
            registry=registry,
            room=room,
            catalog=catalog,
            tell=tell,
            wake=nudge,
            clock=clock,
        )
        if config.ray.address:
            self.hands.seats = SeatsToCome()
        self.routes = HostRoutes(self.book, self.offer)
        self.files = HeadFiles(self.distant.launch, paths.state_dir, paths.models_dir)
        members.joined.append(self._joined)
        members.removed.append(self._removed)
        self.silence = HostSilence(self.book, clock, self.tls)
        self._tls_dir = paths.tls_dir
        self._tls: ClientContexts | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Expect what was ordered before; order, hear and judge while the block lasts."""
        for stored in self._members.known.values():
            self._joined(stored)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.distant.running())
            silence = self.silence.running
            for part in (self.book.running, self.routes.running, self.files.running, silence):
                await stack.enter_async_context(part())
            yield

    def serve(self, exchange: Exchange, identity: Identity) -> bool:
        """Answer a host on the control port; False: this is none of a host's addresses."""
        is_told = self.routes.handle(exchange, identity.id, exchange.client)
        return is_told or self.files.handle(exchange, identity.id)

    # Looks

    def tls(self) -> ClientContexts | None:
        """Who we are for other machines; None as long as we have no certificate."""
        if self._tls is None and (self._tls_dir / CERT_FILE).exists():
            try:
                self._tls = ClientContexts(self._tls_dir)
            except ConfigError as error:
                log.warning("machines.no_certificate", why=error.message)
        return self._tls

    def views(self) -> list[HostView]:
        """Every machine that joined, by name: hosts, and gateways on machines of their own."""
        found = [*map(self.book.view, self.book.hosts()), *map(self._gateway, self._gateways())]
        return sorted(found, key=lambda one: one.facts.name)

    def view(self, name: str) -> HostView:
        """One machine, by its id or name. Raises NotFound, Conflict."""
        if (gateway := self._gateway_named(name)) is not None:
            return self._gateway(gateway)
        return self.book.view(self.book.find(name))

    def host_name(self, host_id: str) -> str:
        """The name of a host; its id when it is known no more; "" for this machine."""
        found = self.book.known(host_id)
        return found.name if found is not None else host_id

    def check_host(self, name: str) -> None:
        """Return when a machine that a model is asked for is known, and starts models.

        Raises:
            NotFound, Conflict: as `HostBook.find`. Conflict: it brings a worker of its own.
        """
        if name not in ("", HERE) and self.book.find(name).role is not Role.HOST:
            raise Conflict(
                f"host {name!r} brings a worker of its own; it starts no models by order"
            )

    def has_gone(self, instance_id: str) -> bool:
        """Whether an instance is on a host that was given up: no fault of its model's."""
        host_id = self.distant.host_id(instance_id)
        found = self.book.known(host_id)
        away = (Standing.LOST, Standing.LEFT)
        return bool(host_id) and (found is None or found.standing in away)

    # What operators order

    async def drain(self, name: str, *, is_draining: bool) -> HostView:
        """Empty a host, or let it take instances again. Raises NotFound, Conflict."""
        host = self.book.find(name)
        stored = self._members.known.get(host.host_id)
        if stored is not None:
            await self._members.save(msgspec.structs.replace(stored, is_draining=is_draining))
        self.book.set_draining(host.host_id, is_draining)
        self._say("host.drain" if is_draining else "host.undrain", host)
        return self.book.view(host)

    async def remove(self, name: str, *, force: bool) -> HostView:
        """Know a host no more; it may not speak from now on. force: also when it has instances.

        Raises:
            NotFound. Conflict: it has instances, or several hosts have this name.
        """
        if (gateway := self._gateway_named(name)) is not None:
            seen = self._gateway(gateway)
            await self._members.remove(gateway.host_id)
            return seen
        host = self.book.find(name)
        view = self.book.view(host)
        if view.instances and not force:
            raise Conflict(
                f"host {view.facts.name!r} has {view.instances} instances: "
                f"`hostler host drain {view.facts.name}` moves them, --force gives them up"
            )
        await self._members.remove(host.host_id)
        return view

    # What hosts bring

    async def offer(self, host_id: str, offer: Offer) -> OfferAnswer:
        """Take in a worker that was brought by hand. The same again: the instance it is already.

        Raises:
            NotFound: the host is not known. Conflict: the model is there as another one, or was stopped.
        """
        async with self._offering:
            host = self.book.host(host_id)
            deployment = await self._wishes.join(offer)
            for launch in self.distant.launches_on(host_id):
                record = self._registry.record(launch.instance_id)
                if record is None or record.instance.state in GONE:
                    continue
                if launch.worker_key == deployment.worker_key:
                    return OfferAnswer(instance_id=launch.instance_id, epoch=launch.epoch)
                gone(self._registry, record, "its host brings another model now")
            instance = Instance(
                instance_id=secrets.token_hex(6),
                worker_key=deployment.worker_key,
                model_name=deployment.name,
                replica=self._free_number(deployment.worker_key, deployment.replicas),
                epoch=0,
                generation=deployment.process_generation,
                since_s=self._clock(),
            )
            expected = Expected(worker_type=deployment.worker_type, engine=deployment.engine)
            self._registry.add(instance, expected)
            epoch = await self.distant.pin(instance, deployment, host)
            return OfferAnswer(instance_id=instance.instance_id, epoch=epoch)

    # Private

    def _gateways(self) -> list[StoredHost]:
        return [one for one in self._members.known.values() if one.role is Role.GATEWAY]

    def _gateway_named(self, name: str) -> StoredHost | None:
        """By its id, or by its name if no host and no other gateway has that."""
        gateways = self._gateways()
        found = [one for one in gateways if one.host_id == name]
        if not found and not any(host.name == name for host in self.book.hosts()):
            found = [one for one in gateways if one.name == name]
        return found[0] if len(found) == 1 else None

    def _gateway(self, stored: StoredHost) -> HostView:
        """A gateway belongs to us by its watch: it is alive as long as that is open."""
        is_here = self.watching(stored.host_id)
        return HostView(
            host_id=stored.host_id,
            role=stored.role,
            standing=Standing.ALIVE if is_here else Standing.LOST,
            facts=msgspec.structs.replace(stored.facts, name=stored.name),
            heard_s=0.0 if is_here else None,
            joined_at_s=stored.joined_at_s,
        )

    def _joined(self, stored: StoredHost) -> None:
        """A machine belongs to us from now on. A gateway is no host: it runs nothing for us."""
        if stored.role is not Role.GATEWAY:
            self.book.learn(stored)

    def _removed(self, stored: StoredHost) -> None:
        """It does so no more, and the store says so: whatever it has is given up."""
        host = self.book.known(stored.host_id)
        crash_point(CrashPoint.HOST_REMOVED)
        if host is not None:
            self.book.drop(host.host_id)
            self._standings.pop(host.host_id, None)
        if stored.role is Role.GATEWAY:  # its certificate is good still: relays are told
            for one in self.book.hosts():
                self.distant.refresh(one.host_id)
        fields = {"host_id": stored.host_id, "host": stored.name, "role": stored.role.value}
        self._tell(OperatorEvent(kind="host.removed", message=stored.name, fields=fields))

    def _moved(self, host: Host) -> None:
        self.distant.refresh(host.host_id)
        before = self._standings.get(host.host_id)
        self._standings[host.host_id] = host.standing
        if host.standing is not before and Standing.DRAINING in (host.standing, before):
            self._wake()
        # all else (memory moves all the time, on every host) matters only to what waits for a machine
        elif self.hands.has_waiting:
            self._nudge()

    def _free_number(self, worker_key: str, first: int) -> int:
        """A number that no instance of the model has, and none that the plan starts will have."""
        taken = {one.replica for one in self._registry.instances() if one.worker_key == worker_key}
        return next(
            number for number in range(first, first + len(taken) + 1) if number not in taken
        )

    def _say(self, kind: str, host: Host) -> None:
        fields = {"host_id": host.host_id, "host": host.name}
        self._tell(OperatorEvent(kind=kind, message=host.name, fields=fields))
