"""A small control plane over a MemoryStore, and a caller of ASGI applications, for admin tests."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from hostler.admin.api import admin_app
from hostler.admin.control import LogSource, Status
from hostler.admin.tokens import TokenDesk
from hostler.app.auth import KeyRing, NewKey, new_key
from hostler.core.deployment import Deployment, Wish, difference
from hostler.core.errors import AlreadyRunning, Conflict, ModelNotFound, NotFound, UpstreamTimeout
from hostler.core.hosts import HostFacts, HostView, Role, Standing
from hostler.core.lifecycle import State
from hostler.core.model import ModelMetadata, ParameterDescription, WorkerType, describe
from hostler.core.serving import read_rules
from hostler.core.usage import UsageQuestion, UsageRow
from hostler.core.worker import (
    InstanceResult,
    OperatorEvent,
    Until,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerSupportedModel,
)
from hostler.engines.base import find_engine
from hostler.manager.logs import LocalLog
from hostler.storage.memory import MemoryStore


class MemoryControl:
    """A `ControlPlane` whose instances are ready at once and have no process."""

    def __init__(self, store: MemoryStore, logs_dir: Path) -> None:
        self.store = store
        self.logs_dir = logs_dir
        self.instances: dict[str, WorkerRunData] = {}
        self.logs: dict[str, LogSource] = {}  # of instances elsewhere
        self.handled: list[str] = []  # which methods ran
        self.standing = Standing.ALIVE  # of its one host
        self._news = asyncio.Condition()

    async def start_model(self, request: WorkerStartupRequest) -> tuple[Deployment, bool]:
        self.handled.append("start_model")
        given = msgspec.structs.asdict(request)
        fields: dict[str, Any] = {"worker_type": WorkerType.LLM, "engine": "llama.cpp"}
        fields |= {name: value for name, value in given.items() if value is not None}
        name = fields.pop("model")
        fields["routing"] = read_rules(fields.get("routing"))
        wanted = Deployment(name=name, **fields)
        for old in self.deployments():
            if old.worker_key == wanted.worker_key:
                if changed := difference(old, wanted):
                    raise AlreadyRunning(f"{name} runs with other {', '.join(changed)}")
                return old, False
        self.store.save_deployment(wanted)
        for replica in range(wanted.replicas):
            instance_id = f"i{len(self.instances)}"
            self.instances[instance_id] = WorkerRunData(
                worker_key=wanted.worker_key,
                worker_type=wanted.worker_type,
                model_name=name,
                instance_id=instance_id,
                replica=replica,
                state=State.READY,
            )
            await self.happen("instance.ready", name, instance_id)
        return wanted, True

    def hosts(self) -> list[HostView]:
        return [self.host("b")]

    def host(self, name: str) -> HostView:
        if name not in ("b", "id-b"):
            raise NotFound(f"no host {name!r}")
        facts = HostFacts(name="b")
        return HostView(host_id="id-b", role=Role.HOST, standing=self.standing, facts=facts)

    async def drain_host(self, name: str, *, is_draining: bool) -> HostView:
        self.host(name)
        self.standing = Standing.DRAINING if is_draining else Standing.ALIVE
        return self.host(name)

    async def remove_host(self, name: str, *, force: bool) -> HostView:
        found = self.host(name)
        if not force:
            raise Conflict("it has instances")
        return found

    async def stop_model(self, request: WorkerShutdownRequest) -> Deployment:
        self.handled.append("stop_model")
        for old in self.deployments():
            if old.name == request.model and old.worker_type == request.worker_type:
                stopped = msgspec.structs.replace(old, wish=Wish.STOPPED)
                self.store.save_deployment(stopped)
                if request.delete_after:
                    self.store.delete_deployment(old.name, old.worker_type)
                await self.happen("model.stop", old.name)
                return stopped
        raise ModelNotFound

    async def worker_apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        self.handled.append("worker_apply")
        found = [one for one in self.instances.values() if one.model_name == request.model]
        results = [
            InstanceResult(instance_id=one.instance_id, success=True, state=one.state)
            for one in found
        ]
        return WorkerApplyOutput(success=True, instances=tuple(results))

    async def restart_instance(self, instance_id: str) -> WorkerRunData:
        self.handled.append("restart_instance")
        if instance_id not in self.instances:
            raise NotFound(f"there is no instance {instance_id!r}")
        return self.instances[instance_id]

    def start_limit_s(self, deployment: Deployment) -> float:
        return 600.0

    def deployments(self) -> list[Deployment]:
        return list(self.store.deployments())

    def run_data(self, model: str | None) -> list[WorkerRunData]:
        self.handled.append("run_data")
        return [one for one in self.instances.values() if model in (None, one.model_name)]

    async def select_one_instance(
        self, worker_type: WorkerType | None, model_name: str, healthy_only: bool
    ) -> WorkerRunData:
        for one in self.instances.values():
            if one.model_name == model_name and worker_type in (None, one.worker_type):
                return one
        raise ModelNotFound

    async def get_model_metadata(self, model_name: str) -> ModelMetadata:
        self.handled.append("get_model_metadata")
        if any(model_name in (one.name, *one.aliases) for one in self.deployments()):
            return ModelMetadata(model=model_name, context_length=4096)
        raise ModelNotFound

    async def wait_model(
        self, worker_type: WorkerType | None, model_name: str, until: Until, timeout_s: float
    ) -> list[WorkerRunData]:
        found = [one for one in self.instances.values() if one.model_name == model_name]
        if until is Until.GONE and found:
            raise UpstreamTimeout
        return found

    async def supported_models(self) -> list[WorkerSupportedModel]:
        return [WorkerSupportedModel(model="qwen", worker_type=WorkerType.LLM, engine="llama.cpp")]

    async def parameter_descriptions(
        self, worker_type: WorkerType | None, model_name: str
    ) -> list[ParameterDescription]:
        for one in self.deployments():
            if one.name == model_name:
                return describe(find_engine(one.engine).parameters)
        raise ModelNotFound

    def events_after(self, seq: int, limit: int, model: str | None) -> list[OperatorEvent]:
        return list(self.store.events(seq, limit, model))

    def last_event_seq(self) -> int:
        return self.store.last_seq()

    async def wait_events(self, seq: int, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self.store.last_seq() > seq)
        except TimeoutError:
            return

    async def usage(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        return self.store.usage(question)

    def log_of(self, instance_id: str) -> LogSource | None:
        if instance_id not in self.instances:
            return None
        given = self.logs.get(instance_id)
        return given or LocalLog(self.logs_dir / f"worker-{instance_id}.log")

    def status(self) -> Status:
        return Status(version="0.1.0", incarnation=3, models={"ready": len(self.deployments())})

    async def happen(self, kind: str, model: str = "", instance_id: str = "") -> None:
        """Something happens: the event is kept, and who waits is told."""
        event = OperatorEvent(kind=kind, model=model, instance_id=instance_id)
        async with self._news:
            self.store.append_event(event)
            self._news.notify_all()


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        """Of the error object."""
        return str(self.json["error"]["code"])


class Plane:
    """An admin API with keys of every kind."""

    def __init__(self, logs_dir: Path, **settings: Any) -> None:
        self.now_s = 1_000.0
        self.store = MemoryStore()
        self.control = MemoryControl(self.store, logs_dir)
        self.changes = 0
        self.admin = self.key("admin")
        self.told: list[OperatorEvent] = []  # by handlers of tokens
        self.desk = TokenDesk(self.store, self.told.append, "https://10.0.0.1:8101", "f" * 64)
        self.app: ASGIApp = admin_app(
            self.control,
            self.store,
            self.keyring,
            on_keys_changed=self._changed,
            clock=lambda: self.now_s,
            **{"desk": self.desk, **settings},
        )

    def key(self, *scopes: str, expires_at_s: float | None = None, revoked: bool = False) -> NewKey:
        made = new_key(scopes, expires_at_s=expires_at_s, clock=lambda: self.now_s)
        self.store.save_key(made.stored)
        if revoked:
            self.store.revoke_key(made.view.key_id)
        return made

    def keyring(self) -> KeyRing:
        stored = self.store.keys()
        return KeyRing((one.view for one in stored), clock=lambda: self.now_s)

    async def ask(
        self,
        method: str,
        address: str,
        body: Any = None,
        *,
        key: NewKey | str | None = "admin",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> Answer:
        """Call the API. key: "admin" for the administrator's. body: bytes go as they are."""
        chosen = self.admin if key == "admin" else key
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        if isinstance(chosen, NewKey):
            pairs.append(("authorization", f"Bearer {chosen.plain}"))
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
            if not any(name == "content-type" for name, _ in pairs):
                pairs.append(("content-type", "application/json"))
        return await call_asgi(self.app, method, address, pairs, data)

    # Private

    def _changed(self) -> None:
        self.changes += 1


def scope_of(method: str, address: str, headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    path, _, query = address.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("unix", 0),
        "server": None,
    }


async def call_asgi(
    app: ASGIApp, method: str, address: str, headers: Iterable[tuple[str, str]], body: bytes
) -> Answer:
    sent: list[Message] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(method, address, headers), receive, send)
    data = b"".join(message.get("body", b"") for message in sent[1:])
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(status=sent[0]["status"], headers=fields, body=data)
