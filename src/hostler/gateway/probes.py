"""Active probes: of servers given by URL always, of our own instances while they work or are in doubt.

A hung process accepts requests and never answers: nothing but asking tells it from a slow one. Nor does
what became of an instance that the controller gave up tell what becomes of the requests it has: its host may
be cut off from the controller alone, or from us as well.
"""

import asyncio
from collections.abc import Callable, Set
from math import inf

import msgspec

from hostler.app.config import GatewayConfig
from hostler.core.change import Change
from hostler.core.lifecycle import State
from hostler.core.snapshot import InstanceView
from hostler.gateway.lanes import PoolOf, credentials
from hostler.routing.health import FALL
from hostler.routing.router import Router
from hostler.wire.client import Pool, Proof, UpstreamLost, build_request, fetch, host_header

AT_ONCE = 32  # probes under way at the same time
LAST_SILENT_S = 10.0  # the last that is left goes out only when no request was answered for so long
ASKED = 2  # instances of a host, to know whether it answers
LIST_BYTES = 1024 * 1024  # of a list of models


def identity_proof(instance: InstanceView) -> Proof | None:
    """How a connection to a server given by URL shows that it serves the model meant (F27).

    None for engines of ours: the path of a Unix socket in the run folder is the instance, and a relay
    shows the certificate of its host.
    """
    endpoint = instance.endpoint
    if endpoint.is_ours:
        return None
    request = build_request(
        "GET", models_path(instance), host_header(endpoint), credentials(endpoint)
    )
    name = instance.upstream_model or instance.model_name
    return Proof(request=request, check=lambda status, body: status == 200 and lists(body, name))


def models_path(instance: InstanceView) -> str:
    return instance.endpoint.base_path.rstrip("/") + "/models"


def lists(body: bytes, name: str) -> bool:
    """Does this answer of `/models` name the model?"""
    try:
        models = msgspec.json.decode(body, type=_ModelList)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return any(model.id == name for model in models.data)


class Prober:
    """Asks, on a beat, those whose health is in doubt, and tells the router what they said."""

    def __init__(
        self,
        config: GatewayConfig,
        router: Router,
        on_silence: Callable[[str, bool], None],
        pool: PoolOf,
    ) -> None:
        """on_silence: an instance did not answer well; does it count as dead by now?

        pool: that of an instance whose connections are kept.
        """
        self._pool = pool
        self._config = config
        self._router = router
        self._by_url: dict[str, InstanceView] = {}
        self._left: dict[str, _Left] = {}
        self._on_silence = on_silence

    def take(self, change: Change) -> None:
        """Know who is a server given by URL, and who is given up with requests of ours: these are probed.

        To be called before the router takes the same step.
        """
        for gone in change.gone:
            self._by_url.pop(gone, None)
            self._note_left(gone)
        for instance in change.instances:
            if instance.state in _PROBED:
                self._left.pop(instance.instance_id, None)
            else:
                self._note_left(instance.instance_id)
            if instance.endpoint.is_ours:  # one of ours that starts has no endpoint yet
                self._by_url.pop(instance.instance_id, None)
            else:
                self._by_url[instance.instance_id] = instance

    async def run(self) -> None:
        """Probe until cancelled."""
        slots = asyncio.Semaphore(AT_ONCE)
        while True:
            async with asyncio.TaskGroup() as tasks:
                for instance in self._doubted():
                    tasks.create_task(self._probe(instance, slots), name="probe")
                await asyncio.sleep(self._config.probe_interval_s)

    async def hosts_that_answer(self, host_ids: Set[str], since_s: float) -> tuple[str, ...]:
        """Those of these hosts of which an instance has answered us since then, or does so now."""
        there: dict[str, list[InstanceView]] = {}
        for one in self._router.known.picture.instances.values():
            if one.endpoint.host_id in host_ids and one.state in _PROBED:
                there.setdefault(one.endpoint.host_id, []).append(one)
        answered_s = self._router.answered_s
        heard = {
            host_id
            for host_id, its in there.items()
            if any(answered_s.get(one.instance_id, since_s) > since_s for one in its)
        }
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(host_id: str, instance: InstanceView) -> None:
            async with slots:
                if host_id not in heard and await self._ask(instance, self._pool(instance)):
                    heard.add(host_id)

        async with asyncio.TaskGroup() as tasks:
            for host_id in there.keys() - heard:
                for instance in there[host_id][:ASKED]:
                    tasks.create_task(ask(host_id, instance), name="probe.host")
        return tuple(sorted(heard))

    # Private

    def _note_left(self, instance_id: str) -> None:
        """It is no instance to send requests to any more; some that it has may be ours."""
        if instance_id in self._router.load:
            instance = self._router.known.instance(instance_id)
            if instance is not None and instance.state in _PROBED:
                self._left[instance_id] = _Left(instance)

    def _doubted(self) -> list[InstanceView]:
        find, load = self._router.known.instance, self._router.load
        ids = {*self._by_url, *self._router.health.troubled(), *load}
        self._left = {one: left for one, left in self._left.items() if one in load}
        known = [i for one in ids if (i := find(one)) is not None and i.state in _PROBED]
        return known + [left.instance for left in self._left.values()]

    async def _probe(self, instance: InstanceView, slots: asyncio.Semaphore) -> None:
        pool = self._pool(instance)
        async with slots:
            began_s = self._router.clock()
            is_good = await self._ask(instance, pool)
        if is_good is None and not instance.endpoint.socket:  # over a network
            answered_s = self._router.answered_s.get(instance.instance_id, -inf)
            if answered_s > began_s:
                is_good = True  # the line loses packets, the probe's among them (F21)
            elif answered_s > self._router.clock() - LAST_SILENT_S and self._is_last(instance):
                return
        is_down = self._note(instance.instance_id, is_good is True)
        if not is_good:
            self._on_silence(instance.instance_id, is_down)
            if pool is not None:
                pool.drop_idle()

    def _note(self, instance_id: str, is_good: bool) -> bool:
        """Write down what a probe said. Returns whether the instance counts as dead."""
        left = self._left.get(instance_id)
        if left is None:
            self._router.note_probe(instance_id, is_good)
            return self._router.health.is_down(instance_id)
        left.fails = 0 if is_good else left.fails + 1
        return left.fails >= FALL

    def _is_last(self, instance: InstanceView) -> bool:
        """Would its model have nobody without it? That the controller holds it suspect changes nothing."""
        mine, router = instance.instance_id, self._router
        if router.health.is_down(mine):
            return False
        return all(one.instance_id == mine for one in router.usable(instance.model_name))

    async def _ask(self, instance: InstanceView, pool: Pool | None) -> bool | None:
        """Is it well? None: it does not say."""
        endpoint = instance.endpoint
        by_url = not endpoint.is_ours
        try:
            answer = await fetch(
                endpoint,
                "GET",
                models_path(instance) if by_url else "/health",
                headers=credentials(endpoint),
                timeout_s=self._config.probe_timeout_s,
                most_bytes=LIST_BYTES,
                pool=pool,
            )
        except UpstreamLost as error:
            return False if error.refused and not error.timed_out else None
        if by_url:
            name = instance.upstream_model or instance.model_name
            return answer.status == 200 and lists(answer.body, name)
        return answer.status == 200


# Private


_PROBED = frozenset({State.READY, State.SUSPECT, State.DRAINING})


class _Left:
    """An instance that was given up while it had requests of ours. fails: probes in a row."""

    __slots__ = ("fails", "instance")

    def __init__(self, instance: InstanceView) -> None:
        self.instance = instance
        self.fails = 0


class _ModelEntry(msgspec.Struct):
    id: str = ""


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry] = []
