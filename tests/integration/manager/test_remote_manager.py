"""RemoteWorkerManager: what only a manager of another process meets. The contract: tests/conformance."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler import RemoteWorkerManager, WorkerShutdownRequest, WorkerStartupRequest, WorkerType
from hostler.core.errors import (
    ConfigError,
    InsufficientScope,
    ModelNotAllowed,
    ModelNotFound,
    StartupError,
    UpstreamTimeout,
)
from hostler.core.lifecycle import State
from hostler.manager.gateway_calls import endpoint_of
from hostler.testing.cluster import Cluster, fake_model

ASK = {"model": "echo", "prompt": "one two"}
ORDER = WorkerStartupRequest(
    model="extra",
    worker_type=WorkerType.LLM,
    engine="fake",
    params={"script": json.dumps({"load_s": 2.0})},
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(fake_model("echo") + fake_model("other")) as cluster:
        yield cluster


def new_key(cluster: Cluster, **order: object) -> str:
    return str(cluster.json("POST", "/api/v1/keys", order)["key"])


def test_an_inference_key_is_enough_for_requests_and_not_for_orders(cluster: Cluster) -> None:
    key = new_key(cluster, scopes=["inference"], models=["echo"])

    async def main() -> None:
        async with RemoteWorkerManager(cluster.url, key) as manager:
            assert (await manager.generate(ASK)).success
            assert await manager.count_token(ASK) == 2
            assert (await manager.get_model_metadata(ASK)).model == "echo"
            for name in ("other", "nobody"):
                with pytest.raises(ModelNotAllowed):
                    await manager.get_model_metadata({"model": name})
            for work in (
                manager.get_model_instances(WorkerType.LLM, "echo"),
                manager.model_shutdown(WorkerShutdownRequest(model="echo")),
                manager.model_startup(ORDER),
            ):
                with pytest.raises(InsufficientScope):
                    await work

    asyncio.run(main())


def test_a_start_without_server_or_key_says_which(cluster: Cluster, tmp_path: Path) -> None:
    async def main() -> None:
        for url, key, reason in (
            (cluster.url, "wrong", "API key"),
            (cluster.url, "", "API key"),
            ("http://127.0.0.1:9", cluster.admin_key, "nothing answers"),
        ):
            with pytest.raises(StartupError, match=reason):
                await RemoteWorkerManager(url, key).start()

    asyncio.run(main())
    for url in ("", "127.0.0.1:8100", "ftp://host", "http://", "http://host:99999"):
        with pytest.raises(ConfigError):
            RemoteWorkerManager(url)
    with pytest.raises(ConfigError, match="hostler up"):
        RemoteWorkerManager.of_state_dir(tmp_path)


def test_urls_as_the_sdks_have_them_and_behind_a_prefix() -> None:
    assert endpoint_of("http://h:81/v1/").base_path == ""
    found = endpoint_of("https://h/ai/v1")
    assert (found.port, found.tls, found.base_path) == (443, True, "/ai")


def test_a_start_is_waited_for_through_the_death_of_the_controller(cluster: Cluster) -> None:
    async def main() -> None:
        async with RemoteWorkerManager.of_state_dir(cluster.state_dir) as manager:
            await manager.model_startup(ORDER, wait=False)
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(manager.model_startup(ORDER))
                await asyncio.sleep(0.3)  # its question is on the way
                await asyncio.to_thread(cluster.kill, "controller")
                assert (await manager.generate(ASK)).success  # the data plane goes on
            (data,) = starting.result()
            assert data.state is State.READY
            await manager.model_shutdown(WorkerShutdownRequest(model="extra", delete_after=True))
            with pytest.raises(ModelNotFound):
                await manager.select_one_instance(WorkerType.LLM, "extra")

    asyncio.run(main())


def test_a_start_that_takes_too_long_says_so_and_the_wish_stands(cluster: Cluster) -> None:
    async def main() -> None:
        async with RemoteWorkerManager(
            cluster.url, cluster.admin_key, start_timeout_s=0.3
        ) as manager:
            try:
                with pytest.raises(UpstreamTimeout, match="extra"):
                    await manager.model_startup(ORDER)
            finally:
                await manager.model_shutdown(
                    WorkerShutdownRequest(model="extra", delete_after=True)
                )

    asyncio.run(main())


def test_stopping_the_manager_leaves_the_servers_models_alone(cluster: Cluster) -> None:
    async def main() -> None:
        manager = RemoteWorkerManager.of_state_dir(cluster.state_dir)
        await manager.start()
        await manager.stop()
        async with manager:
            assert (await manager.generate(ASK)).success

    asyncio.run(main())
