"""A worker agent cut down to one ProcessEngine: started by tests, to be killed by them.

python -m tests.integration.engines.tiny_agent SOCKET INSTANCE ISOLATION
"""

import asyncio
import sys

from hostler.core.fleet import WorkerSpec
from hostler.core.model import WorkerType
from hostler.engines.fake import fake_command
from hostler.engines.process import Isolation, ProcessEngine


async def main(socket: str, instance_id: str, isolation: str) -> None:
    spec = WorkerSpec(
        instance_id=instance_id,
        epoch=1,
        secret="",
        model_name="m",
        worker_type=WorkerType.LLM,
        engine="fake",
        params={"script": '{"grandchildren": true}'},
        engine_socket=socket,
        agent_socket="",
        registry_socket="",
        start_timeout_s=20,
    )
    engine = ProcessEngine(fake_command, isolation_mode=Isolation(isolation))
    await engine.start(spec)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await engine.exited()
    await engine.stop(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
