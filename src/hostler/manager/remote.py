"""RemoteWorkerManager: the contract over a running `hostler up`, on this machine or another.

Orders and looks go through its admin API, requests through its gateway. Nothing is kept here.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec

from hostler.app.paths import StatePaths
from hostler.app.record import read_admin_key, read_up_record
from hostler.core.deployment import check_name
from hostler.core.errors import (
    BadRequest,
    ConfigError,
    ControllerUnavailable,
    HostlerError,
    ModelNotFound,
    StartupError,
    UpstreamTimeout,
)
from hostler.core.lifecycle import State
from hostler.core.model import ModelMetadata, ParameterDescription, WorkerType
from hostler.core.params import Params, read_params
from hostler.core.worker import (
    Until,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerSupportedModel,
)
from hostler.manager.base import NOT_RUNNING
from hostler.manager.gateway_calls import GatewayCalls, endpoint_of
from hostler.manager.requests import Requests

API = "/api/v1"
LOOK_S = 30.0  # for an answer of the admin API
PAUSE_S = 0.5  # before a controller that is away is asked again
WAIT_S = 25.0  # of one question "is it ready?"; longer waits ask again


class RemoteWorkerManager(Requests):
    """Talks to one server. Its models go on when this manager stops: they are the server's.

    An `inference` key is enough for requests and metadata; orders and looks need an `admin` key.
    """

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        request_timeout_s: float = 600.0,
        start_timeout_s: float | None = None,
        stop_timeout_s: float = 120.0,
        ca: str = "",
    ) -> None:
        """Connect to nothing yet.

        ca: PEM file of who vouches for an https server; "": this system's authorities.

        request_timeout_s: for the first byte of an answer, and between two parts of a stream.
        start_timeout_s, stop_timeout_s: how long model_startup and model_shutdown wait. A start without
            a limit is waited for as long as the server lets it take; downloads are not counted.

        Raises:
            ConfigError: the URL is not one.
        """
        super().__init__()
        endpoint_of(url)
        self.url = url
        self._api_key = api_key
        self._request_timeout_s = request_timeout_s
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._ca = ca
        self._open_calls: GatewayCalls | None = None

    @classmethod
    def of_state_dir(cls, state_dir: str | Path) -> Self:
        """The manager of the server that runs on this state folder, with its admin key.

        Raises:
            ConfigError: no server has left its address there, or the key cannot be read.
        """
        paths = StatePaths(state_dir)
        record, key = read_up_record(paths), read_admin_key(paths)
        if record is None:
            raise ConfigError(f"{paths.up_record} does not exist: `hostler up` writes it")
        if key is None:
            raise ConfigError(f"{paths.admin_key} cannot be read: it is its owner's alone")
        return cls(record.url, key, ca=record.ca)

    @property
    def transport(self) -> GatewayCalls:
        return self._calls

    # Life

    async def start(self) -> None:
        """Connect, and see that the server takes the key."""
        if self._open_calls is not None:
            raise StartupError("this worker manager is running already")
        self._open_calls = GatewayCalls(
            self.url, self._api_key, timeout_s=self._request_timeout_s, ca=self._ca
        )
        try:
            await self._open_calls.get("/v1/models", _ModelList, {}, timeout_s=LOOK_S)
            await self._started()
        except HostlerError as error:
            await self.stop(ignore_exception=True)
            raise StartupError(f"{self.url}: {error.message}") from error
        except BaseException:  # a listener's: nothing is left open
            await self.stop(ignore_exception=True)
            raise

    async def stop(self, ignore_exception: bool = False) -> None:
        """Close the connections. The server and its models go on."""
        self._stopped()
        calls, self._open_calls = self._open_calls, None
        if calls is not None:
            await calls.close()

    # Instances

    async def get_model_instances(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        found = await self._instances({"model": model_name})
        return _of_type(found, worker_type, healthy_only)

    async def get_all_model_instances(
        self, worker_type: WorkerType, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        return _of_type(await self._instances({}), worker_type, healthy_only)

    async def select_one_instance(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> WorkerRunData:
        query = {
            "model": model_name,
            "worker_type": worker_type.value,
            "healthy_only": healthy_only,
        }
        return await self._calls.get(f"{API}/select", WorkerRunData, query, timeout_s=LOOK_S)

    async def supported_models(self) -> list[WorkerSupportedModel]:
        found = await self._calls.get(f"{API}/supported-models", _Supported, {}, timeout_s=LOOK_S)
        return list(found.models)

    async def parameter_descriptions(
        self, worker_type: WorkerType | None, model_name: str
    ) -> list[ParameterDescription]:
        query = {"model": model_name, "worker_type": worker_type.value if worker_type else None}
        found = await self._calls.get(f"{API}/parameters", _Parameters, query, timeout_s=LOOK_S)
        return list(found.parameters)

    async def get_model_metadata(self, params: Params) -> ModelMetadata:
        model, _ = read_params(params)
        return await self._calls.get(
            f"{API}/metadata", ModelMetadata, {"model": model}, timeout_s=LOOK_S
        )

    # Orders

    async def model_startup(
        self, request: WorkerStartupRequest, *, wait: bool = True
    ) -> list[WorkerRunData]:
        accepted = await self._calls.send(
            "POST", f"{API}/models", _Accepted, body=request, timeout_s=LOOK_S
        )
        model = accepted.model
        if wait:
            return await self._wait_ready(model)
        return await self._instances({"model": model.name})

    async def model_shutdown(
        self, request: WorkerStartupRequest | WorkerShutdownRequest, *, wait: bool = True
    ) -> None:
        forget = isinstance(request, WorkerShutdownRequest) and request.delete_after
        try:
            name = check_name(request.model)
        except BadRequest as error:
            raise ModelNotFound(
                f"model {request.model!r} was never started", param="model"
            ) from error
        type_ = request.worker_type.value if request.worker_type else None
        accepted = await self._calls.send(
            "DELETE",
            f"{API}/models/{quote(name)}",
            _Accepted,
            query={"delete": forget, "worker_type": type_},
            timeout_s=LOOK_S,
        )
        if wait:
            await self._wait(accepted.model, Until.GONE, self._stop_timeout_s)

    async def worker_apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        return await self._calls.send(
            "POST",
            f"{API}/apply",
            WorkerApplyOutput,
            body=request,
            timeout_s=request.timeout_s + LOOK_S,
        )

    # Private

    @property
    def _calls(self) -> GatewayCalls:
        if self._open_calls is None:
            raise StartupError(NOT_RUNNING)
        return self._open_calls

    async def _instances(self, query: dict[str, str]) -> list[WorkerRunData]:
        found = await self._calls.get(f"{API}/instances", _Instances, query, timeout_s=LOOK_S)
        return list(found.instances)

    async def _wait_ready(self, model: "_Named") -> list[WorkerRunData]:
        if self._start_timeout_s is not None:
            return await self._wait(model, Until.READY, self._start_timeout_s)
        limit_s, began_s = model.start_limit_s, time.monotonic()
        while True:
            left_s = began_s + limit_s - time.monotonic()
            try:
                return await self._wait(model, Until.READY, max(0.0, min(WAIT_S, left_s)))
            except UpstreamTimeout as error:
                with suppress(ControllerUnavailable, UpstreamTimeout):
                    address = f"{API}/models/{quote(model.name)}"
                    now = await self._calls.get(address, _Named, {}, timeout_s=LOOK_S)
                    limit_s = now.start_limit_s
                    if "fetching" in now.states:
                        began_s = time.monotonic()
                if time.monotonic() - began_s >= limit_s:
                    raise UpstreamTimeout(
                        f"model {model.name!r}: not ready after {limit_s:g} s"
                    ) from error

    async def _wait(self, model: "_Named", until: Until, timeout_s: float) -> list[WorkerRunData]:
        """Ask until it is so, over and over: a controller may restart meanwhile.

        Raises:
            UpstreamTimeout: it is not so in time. EngineError: an instance was given up, and why.
        """
        ends_at_s = time.monotonic() + timeout_s
        while True:
            ask_s = max(0.0, min(WAIT_S, ends_at_s - time.monotonic()))
            query = {
                "model": model.name,
                "worker_type": model.worker_type.value,
                "until": until.value,
                "timeout_s": ask_s,
            }
            try:
                found = await self._calls.get(
                    f"{API}/wait", _Instances, query, timeout_s=ask_s + LOOK_S
                )
            except (UpstreamTimeout, ControllerUnavailable) as error:
                if time.monotonic() < ends_at_s:
                    if isinstance(error, ControllerUnavailable):
                        await asyncio.sleep(PAUSE_S)
                    continue
                raise UpstreamTimeout(
                    f"model {model.name!r}: not {until.value} after {timeout_s:g} s"
                ) from error
            return list(found.instances)


# Private: what the admin API answers, as far as it is read here


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


class _Instances(msgspec.Struct):
    instances: tuple[WorkerRunData, ...]


class _Supported(msgspec.Struct):
    models: tuple[WorkerSupportedModel, ...]


class _Parameters(msgspec.Struct):
    parameters: tuple[ParameterDescription, ...]


class _Named(msgspec.Struct):
    name: str
    worker_type: WorkerType
    states: Mapping[str, int] = {}
    start_limit_s: float = 600.0


class _Accepted(msgspec.Struct):
    model: _Named


def _of_type(
    found: list[WorkerRunData], worker_type: WorkerType, healthy_only: bool
) -> list[WorkerRunData]:
    return [
        data
        for data in found
        if data.worker_type is worker_type and (data.state is State.READY or not healthy_only)
    ]
