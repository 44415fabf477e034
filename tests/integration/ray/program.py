"""A plain program on Ray, as a person would write it; run with an address, a folder, and what to do."""

import asyncio
import json
import sys
from typing import Any

import pytest

from hostler import Config, ControlConfig, ModelConfig, RayWorkerManager, WorkerType
from hostler.core.errors import StartupError
from hostler.core.worker import WorkerStartupRequest
from hostler.testing.ray_here import ADDRESS

LITTLE = {"cpus": 0.1}
MODELS = (
    ModelConfig(name="echo", type=WorkerType.LLM, engine="fake", replicas=2, resources=LITTLE),
    ModelConfig(name="vectors", type=WorkerType.TEXT2VEC, engine="fake", resources=LITTLE),
)


def say(**told: Any) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


async def main(address: str, folder: str, what: str) -> None:
    config = Config(state_dir=folder, control=ControlConfig(host=ADDRESS, port=0))
    async with RayWorkerManager(address, config, models=MODELS) as manager:
        for model in MODELS:
            await manager.model_startup(WorkerStartupRequest(model=model.name))
        asked = {"model": "echo", "prompt": "one two"}
        parts = [part.text async for part in manager.generate_stream(asked)]
        say(
            hosts=[host.facts.name for host in await manager.hosts()],
            at=sorted({one.host_name for one in manager.run_data()}),
            text=(await manager.generate(asked)).text,
            streamed="".join(parts),
            vectors=len(await manager.embeddings({"model": "vectors", "input": ["a", "b"]})),
            tokens=await manager.count_token(asked),
            in_thread=(await asyncio.to_thread(manager.sync_generate, asked)).text,
        )
        if what == "stay":
            await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    assert "ray" not in sys.modules, "importing hostler imports no ray"
    if sys.argv[3] == "own":
        import ray

        ray.init(address=sys.argv[1], namespace="mine", log_to_driver=False)
    asyncio.run(main(*sys.argv[1:4]))
    if sys.argv[3] == "own":
        assert ray.is_initialized(), "the program's own connection is its own"
        with pytest.raises(StartupError, match=f"is connected to the Ray at {sys.argv[1]}"):
            asyncio.run(main(f"{ADDRESS}:1", sys.argv[2], "ask"))
        ray.shutdown()
