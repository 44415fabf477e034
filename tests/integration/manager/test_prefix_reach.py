"""What engines say of prompts that begin alike arrives where requests are routed."""

from hostler.core.model import PrefixReach
from hostler.core.worker import WorkerStartupRequest
from hostler.manager.local import LocalWorkerManager
from tests.integration.manager.test_local_manager import ECHO, run
from tests.integration.manager.test_regressions import server_that_says


def test_servers_given_by_url_are_known_by_their_list_or_by_what_the_operator_says() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        listed = [{"id": "signed", "owned_by": "vllm"}, {"id": "told"}, {"id": "silent"}]
        with server_that_says(({"data": listed},)) as port:
            for name, params in (
                ("signed", {}),
                ("told", {"prefix_reach": "shared"}),
                ("silent", {}),
            ):
                await manager.model_startup(
                    WorkerStartupRequest(
                        model=name,
                        engine="openai",
                        urls=(f"http://127.0.0.1:{port}/v1",),
                        params=params,
                    )
                )
            await manager.model_startup(
                WorkerStartupRequest(model="fake", engine="fake", params={"prefix_reach": "shared"})
            )
            found = {i.model_name: i.prefix_reach for i in manager.registry.snapshot.instances}
            assert found == {
                "echo": PrefixReach.SLOT,
                "signed": PrefixReach.SHARED,
                "told": PrefixReach.SHARED,
                "silent": PrefixReach.SLOT,
                "fake": PrefixReach.SHARED,
            }
            metadata = await manager.get_model_metadata({"model": "signed"})
            assert metadata.prefix_reach is PrefixReach.SHARED

    run(body, ECHO)
