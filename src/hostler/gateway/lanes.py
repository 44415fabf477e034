"""Lanes: one connection pool an instance, with the request heads its engine wants."""

import asyncio
from collections.abc import Callable

from hostler.app.config import GatewayConfig, environment
from hostler.core.change import Change
from hostler.core.snapshot import Endpoint, InstanceView
from hostler.engines.dialect import find_dialect
from hostler.gateway.answers import AnswerHead, Fields
from hostler.gateway.job import Job
from hostler.wire.client import Pool, Proof, host_header
from hostler.wire.distant import PATIENCE, RELAY_IDLE_S
from hostler.wire.http1 import field_lines
from hostler.wire.identity import ClientContexts
from hostler.wire.turn import Turn

PoolOf = Callable[[InstanceView], Pool | None]


class Lane:
    """The way to one instance."""

    __slots__ = (
        "_answer_lines",
        "_heads",
        "_known_fields",
        "_known_head",
        "dialect",
        "identity",
        "instance",
        "pool",
    )

    def __init__(self, instance: InstanceView, pool: Pool) -> None:
        self.instance = instance
        self.pool = pool
        self.dialect = find_dialect(instance.engine)
        self.identity = instance.instance_id.encode()
        self._answer_lines: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}
        self._known_fields: Fields = []
        self._known_head = AnswerHead(())

    def answer_lines(self, policy: str) -> bytes:
        """The header lines that an answer carries to the client when this policy chose the instance."""
        lines = self._answer_lines.get(policy)
        if lines is None:
            lines = self._answer_lines[policy] = field_lines(
                [
                    (b"x-hostler-instance", self.identity),
                    (b"x-hostler-model", self.instance.model_name.encode()),
                    (b"x-hostler-policy", policy.encode()),
                ]
            )
        return lines

    def request(self, job: Job) -> bytes:
        """Build the whole request for the engine: its head is ours, framing included (F88)."""
        key = job.path or job.route
        head = self._heads.get(key)
        if head is None:
            path = job.path or self.dialect.path(job.route, self.instance.endpoint.base_path)
            head = self._heads[key] = self._head(path)
        body = job.encoded(self.instance.upstream_model, self.dialect)
        asked = job.request_id.encode()
        return b"%b%b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            head,
            asked,
            job.trace_lines,
            len(body),
            body,
        )

    def read_head(self, headers: Fields) -> AnswerHead:
        """What the headers of an answer mean. A pool gives the same list for equal heads."""
        if headers is not self._known_fields:
            self._known_fields, self._known_head = headers, AnswerHead(headers)
        return self._known_head

    # Private

    def _head(self, path: str) -> bytes:
        endpoint = self.instance.endpoint
        lines = field_lines(
            [
                (b"host", host_header(endpoint).encode()),
                (b"accept-encoding", b"identity"),
                (b"content-type", b"application/json"),
                (b"x-hostler-instance", self.identity),
                *credentials(endpoint),
            ]
        )
        path = endpoint.prefix + path
        return b"POST %b HTTP/1.1\r\n%bx-request-id: " % (path.encode("ascii"), lines)


class Lanes:
    """The lanes of one gateway, made when first used, closed when their instance is no more."""

    def __init__(
        self,
        config: GatewayConfig,
        prove: Callable[[InstanceView], Proof | None],
        turn: Turn,
        tls: ClientContexts | None = None,
    ) -> None:
        """turn: of the loop, which the servers of this gateway share. tls: who we are, for the relays
        of other hosts."""
        self._tls = tls
        self._config = config
        self._prove = prove
        self._turn = turn
        self._lanes: dict[str, Lane] = {}
        self._known: set[str] = set()

    def take(self, change: Change) -> None:
        self._known.difference_update(change.gone)
        self._known.update(i.instance_id for i in change.instances)

    def lane(self, instance: InstanceView) -> Lane:
        """The lane to this instance."""
        lane = self._lanes.get(instance.instance_id)
        if lane is None or lane.instance.endpoint != instance.endpoint:
            lane = self._lanes[instance.instance_id] = self._make(instance)
        return lane

    def pool(self, instance: InstanceView) -> Pool | None:
        """What questions beside requests go through: on another host a connection is kept, here not."""
        return self.lane(instance).pool if instance.endpoint.host_id else None

    async def close_unused(self, busy: Callable[[str], bool]) -> None:
        """Close the lanes to instances that are gone and have no request in flight."""
        for instance_id in [i for i in self._lanes if i not in self._known and not busy(i)]:
            await self._lanes.pop(instance_id).pool.close()

    async def close(self) -> None:
        lanes, self._lanes = self._lanes, {}
        await asyncio.gather(*(lane.pool.close() for lane in lanes.values()))

    # Private

    def _make(self, instance: InstanceView) -> Lane:
        dialect, is_distant = find_dialect(instance.engine), bool(instance.endpoint.host_id)
        pool = Pool(
            instance.endpoint,
            connect_timeout_s=self._config.connect_timeout_s * (PATIENCE if is_distant else 1),
            idle_s=RELAY_IDLE_S if is_distant else dialect.idle_s,
            requests_per_connection=0 if is_distant else dialect.requests_per_connection,
            prove=self._prove(instance),
            tls=self._tls,
            turn=self._turn,
        )
        return Lane(instance, pool)


def credentials(endpoint: Endpoint) -> list[tuple[bytes, bytes]]:
    """The Authorization header for an endpoint, from the variable the operator named."""
    key = environment(endpoint.api_key_env) if endpoint.api_key_env else None
    return [(b"authorization", b"Bearer " + key.encode())] if key else []
