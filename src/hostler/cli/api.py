"""Api: the addresses of the control plane as typed calls. The types are the server's own."""

from collections.abc import Generator, Iterator
from urllib.parse import quote

import msgspec

from hostler.admin.messages import (
    DrainOrder,
    EventList,
    HostList,
    HostStatus,
    InstanceList,
    KeyCreated,
    KeyInfo,
    KeyList,
    KeyOrder,
    LogAnswer,
    ModelAccepted,
    ModelList,
    ModelStatus,
    ParameterList,
    SupportedModelList,
)
from hostler.app.supervision import Gateways
from hostler.cli.client import Client
from hostler.core.hosts import HostView
from hostler.core.model import ParameterDescription, WorkerType
from hostler.core.timeline import RequestList
from hostler.core.worker import (
    OperatorEvent,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerStartupRequest,
)

_BASE = "/api/v1"
_PAGE = 500
RESTART_S = 150.0  # of all gateways, one after the other
_NEWEST = 50  # events shown when nobody says from where


class Api:
    """One server's control plane."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def gateways(self) -> Gateways:
        return self._client.get(f"{_BASE}/gateways", Gateways)

    def restart_gateways(self) -> Gateways:
        return self._client.post(f"{_BASE}/gateways/restart", {}, Gateways, RESTART_S)

    def models(self) -> tuple[ModelStatus, ...]:
        return self._client.get(f"{_BASE}/models", ModelList).models

    def model(self, name: str, worker_type: WorkerType | None = None) -> ModelStatus:
        return self._client.get(_of_model(name), ModelStatus, **_typed(worker_type))

    def start_model(self, request: WorkerStartupRequest) -> ModelAccepted:
        given = {
            field: value
            for field, value in msgspec.structs.asdict(request).items()
            if value is not None
        }
        return self._client.post(f"{_BASE}/models", given, ModelAccepted)

    def stop_model(self, name: str, worker_type: WorkerType | None, *, delete: bool) -> ModelStatus:
        query = {**_typed(worker_type), **({"delete": "true"} if delete else {})}
        return self._client.delete(_of_model(name), ModelAccepted, **query).model

    def apply(self, order: WorkerApplyRequest) -> WorkerApplyOutput:
        """Change a running model; returns when it is done or the order's time has passed."""
        slack_s = 30.0  # the server answers by itself when the time has passed
        return self._client.post(
            f"{_BASE}/apply", order, WorkerApplyOutput, timeout_s=order.timeout_s + slack_s
        )

    def instances(self) -> tuple[WorkerRunData, ...]:
        return self._client.get(f"{_BASE}/instances", InstanceList).instances

    def supported(self) -> SupportedModelList:
        return self._client.get(f"{_BASE}/supported-models", SupportedModelList)

    def parameters(
        self, model: str, worker_type: WorkerType | None
    ) -> tuple[ParameterDescription, ...]:
        query = {"model": model, **_typed(worker_type)}
        return self._client.get(f"{_BASE}/parameters", ParameterList, **query).parameters

    def logs(self, name: str, worker_type: WorkerType | None, tail: int) -> LogAnswer:
        return self._client.get(
            f"{_of_model(name)}/logs", LogAnswer, tail=tail, **_typed(worker_type)
        )

    def instance_logs(self, instance_id: str, tail: int) -> LogAnswer:
        path = f"{_BASE}/instances/{quote(instance_id, safe='')}/logs"
        return self._client.get(path, LogAnswer, tail=tail)

    def requests(self, limit: int, since: float | None) -> RequestList:
        query: dict[str, str | int] = {"limit": limit}
        if since is not None:
            query["since"] = f"{since:.3f}"
        return self._client.get(f"{_BASE}/requests", RequestList, **query)

    def follow_logs(self, name: str, worker_type: WorkerType | None, tail: int) -> Iterator[bytes]:
        """Yield the logs' text as it comes, until the caller leaves or no log is left."""
        query = {"tail": tail, "follow": "true", **_typed(worker_type)}
        with self._client.stream(
            "GET", f"{_of_model(name)}/logs", query=query, accept="text/plain"
        ) as chunks:
            yield from chunks

    def follow_log_lines(
        self, name: str, worker_type: WorkerType | None, tail: int
    ) -> Iterator[dict[str, str]]:
        """As follow_logs, a line at a time with the instance it is of."""
        query: dict[str, str | int] = {"tail": tail, "follow": "true", **_typed(worker_type)}
        with self._client.events("GET", f"{_of_model(name)}/logs", query=query) as found:
            for event in found:
                line = event.data.decode(errors="replace")
                yield {"instance_id": event.event, "line": line}

    def events(
        self, *, after: int | None = None, model: str | None = None, follow: bool = False
    ) -> Iterator[OperatorEvent]:
        """Yield events oldest first: the newest when `after` is left out; then what comes, if followed."""
        query: dict[str, str | int] = {"model": model} if model else {}
        if after is not None:
            query["after"] = after
        while True:
            limit = _PAGE if after is not None else _NEWEST
            page = self._client.get(f"{_BASE}/events", EventList, limit=limit, **query)
            yield from page.events
            query["after"] = page.next
            if len(page.events) < _PAGE or after is None:
                break
        if follow:
            yield from self.follow_events(f"{_BASE}/events", query)

    def follow_events(
        self, address: str, query: dict[str, str | int] | None = None, idle_s: float | None = None
    ) -> Generator[OperatorEvent, None, None]:
        """Yield events as they come. address: as the server gave it, or with a query of ours."""
        full = {**query, "follow": "true"} if query is not None else None
        with self._client.events("GET", address, query=full, idle_s=idle_s) as events:
            for event in events:
                yield msgspec.json.decode(event.data, type=OperatorEvent)

    def all_keys(self) -> tuple[KeyInfo, ...]:
        return self._client.get(f"{_BASE}/keys", KeyList).keys

    def create_key(self, order: KeyOrder) -> KeyCreated:
        return self._client.post(f"{_BASE}/keys", order, KeyCreated)

    def revoke_key(self, key_id: str) -> KeyInfo:
        return self._client.delete(f"{_BASE}/keys/{quote(key_id, safe='')}", KeyInfo)


class HostsApi:
    """The machines of one server's control plane."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def hosts(self) -> tuple[HostView, ...]:
        return self._client.get(f"{_BASE}/hosts", HostList).hosts

    def host(self, name: str) -> HostStatus:
        return self._client.get(_of_host(name), HostStatus)

    def drain_host(self, name: str, *, is_draining: bool) -> HostView:
        order = DrainOrder(draining=is_draining)
        return self._client.post(f"{_of_host(name)}/drain", order, HostView)

    def remove_host(self, name: str, *, force: bool) -> HostView:
        query: dict[str, str | int] = {"force": "true"} if force else {}
        return self._client.delete(_of_host(name), HostView, **query)


# Private


def _of_model(name: str) -> str:
    """The address of a model; a name may hold slashes, which stay."""
    return f"{_BASE}/models/{quote(name, safe='/')}"


def _of_host(name: str) -> str:
    return f"{_BASE}/hosts/{quote(name, safe='')}"


def _typed(worker_type: WorkerType | None) -> dict[str, str | int]:
    return {"worker_type": worker_type.value} if worker_type is not None else {}
