"""GivenServers: OpenAI servers that already run, given by URL. Probed here; nothing is started or ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import GatewayConfig, environment
from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment
from hostler.core.errors import BadRequest
from hostler.core.lifecycle import Signal, State
from hostler.core.model import ModelMetadata, PrefixReach
from hostler.core.snapshot import Endpoint
from hostler.registry.expected import Expected
from hostler.registry.record import Record
from hostler.registry.registry import Registry
from hostler.wire.client import UpstreamLost, fetch

log = logger(__name__)

FALL = 2  # failed probes in a row before a server is suspect
# Of the last one that is left, when it is only silent: a lossy line loses many in a row.
FALL_LAST = 10
_SILENT = "it does not answer"
# Who signs the list of models, of servers whose requests share what one has read of a prompt (their default).
SHARING = frozenset({"vllm", "sglang"})


def endpoint_of(url: str, api_key_env: str = "") -> Endpoint:
    """Return where a URL like `http://127.0.0.1:9101/v1` leads.

    Raises:
        BadRequest: not an http(s) URL with a host and without credentials, query or fragment.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadRequest(f"url {url!r}: {error}", param="urls") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"url {url!r}: need http://HOST:PORT/v1", param="urls")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadRequest(
            f"url of host {parts.hostname!r}: no user, query or fragment; a key goes into api_key_env",
            param="urls",
        )
    tls = parts.scheme == "https"
    return Endpoint(
        host=parts.hostname,
        port=port or (443 if tls else 80),
        base_path=parts.path.rstrip("/"),
        tls=tls,
        api_key_env=api_key_env,
    )


class GivenServers:
    """Asks every given server what it serves, and tells the registry."""

    def __init__(
        self, registry: Registry, config: GatewayConfig, *, clock: Callable[[], float]
    ) -> None:
        self._registry = registry
        self._config = config
        self._clock = clock
        self._failed: dict[str, int] = {}

    def expected(self, deployment: Deployment, replica: int) -> Expected:
        """What is known of one given server before it was asked."""
        return Expected(
            worker_type=deployment.worker_type,
            engine=deployment.engine,
            concurrency=deployment.concurrency,
            endpoint=endpoint_of(deployment.urls[replica], deployment.api_key_env),
            upstream_model=deployment.upstream_model or deployment.name,
            prefix_reach=PrefixReach(deployment.params.get("prefix_reach", PrefixReach.SLOT)),
        )

    def places(self, deployments: Iterable[Deployment]) -> list[str]:
        """Return whom nobody should be told of before each was asked once (F25).

        A gateway that outlived the controller before us knows that they serve; here they only begin to.
        """
        if self._registry.incarnation < 2:  # there was none
            return []
        return [
            _place(one.worker_key, replica)
            for one in deployments
            for replica in range(one.wanted_instances if one.urls else 0)
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.SERVERS, self._loop())
            yield
            loop.cancel()

    async def look(self) -> None:
        """Probe every server once, side by side."""
        async with asyncio.TaskGroup() as tasks:
            for record in self._registry.records():
                endpoint = record.expected.endpoint
                if endpoint.host and not endpoint.host_id:
                    tasks.create_task(self._guarded(record), name="probe")
        self._failed = {i: n for i, n in self._failed.items() if self._registry.record(i)}

    # Private

    async def _loop(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._config.probe_interval_s)

    async def _guarded(self, record: Record) -> None:
        try:
            await self._probe(record)
        except Exception as error:  # boundary: one server, which is others' code; the rest go on
            instance_id = record.instance.instance_id
            log.error("server.probe_failed", instance_id=instance_id, error=error)
            self._registry.post(instance_id, Signal.LATE, "its probe failed")
        self._registry.settle(_place(record.instance.worker_key, record.instance.replica))

    async def _probe(self, record: Record) -> None:
        instance_id = record.instance.instance_id
        wanted = record.expected.upstream_model
        models, why = await self._models(record.expected.endpoint)
        if why is None and wanted not in models:
            why = f"it serves {', '.join(sorted(models)[:5]) or 'nothing'}, not {wanted!r}"
        if why is None:
            self._failed[instance_id] = 0
            if record.metadata is None:
                self._describe(record, models[wanted])
            self._registry.post(instance_id, Signal.LOADED)
            self._registry.post(instance_id, Signal.SEEN)
            return
        self._failed[instance_id] = failed = self._failed.get(instance_id, 0) + 1
        if failed >= (FALL_LAST if why is _SILENT and self._is_last(record) else FALL):
            self._registry.post(instance_id, Signal.LATE, why)

    def _is_last(self, record: Record) -> bool:
        """Would its model have nobody without it?"""
        mine = record.instance
        return mine.state is State.READY and not any(
            other.instance.worker_key == mine.worker_key
            and other.instance.state is State.READY
            and other is not record
            for other in self._registry.records()
        )

    def _describe(self, record: Record, listed: "_Listed") -> None:
        """Write down what a server's list of models says."""
        reach = PrefixReach.SHARED if listed.owner in SHARING else record.expected.prefix_reach
        record.expected = msgspec.structs.replace(record.expected, prefix_reach=reach)
        record.metadata = ModelMetadata(
            model=record.instance.model_name,
            worker_type=record.expected.worker_type,
            context_length=listed.length,
            prefix_reach=reach,
        )

    async def _models(self, endpoint: Endpoint) -> tuple[dict[str, "_Listed"], str | None]:
        """Return the models a server names, or why it names none."""
        headers: list[tuple[bytes, bytes]] = []
        if endpoint.api_key_env and (key := environment(endpoint.api_key_env)):
            headers.append((b"authorization", b"Bearer " + key.encode()))
        try:
            answer = await fetch(
                endpoint,
                "GET",
                f"{endpoint.base_path}/models",
                headers=headers,
                timeout_s=self._config.probe_timeout_s,
            )
        except UpstreamLost as error:
            is_away = error.refused and not error.timed_out
            return {}, "it takes no connections" if is_away else _SILENT
        except (TimeoutError, OSError):
            return {}, _SILENT
        if answer.status != 200:
            return {}, f"it answers {answer.status} when asked for its models"
        try:
            listed: Any = msgspec.json.decode(answer.body)["data"]
            return {str(model["id"]): _listed(model) for model in listed}, None
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
            return {}, "its list of models cannot be read"


def _place(worker_key: str, replica: int) -> str:
    return f"{worker_key}#{replica}"


class _Listed(NamedTuple):
    """One model of a list: its context length, and who signs."""

    length: int | None
    owner: str


def _listed(model: Any) -> _Listed:
    length = model.get("max_model_len") or (model.get("meta") or {}).get("n_ctx")
    owner = str(model.get("owned_by"))
    return _Listed(length if isinstance(length, int) else None, owner)
