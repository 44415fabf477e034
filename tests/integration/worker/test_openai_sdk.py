"""The official OpenAI SDK straight against a worker, over its Unix socket."""

import asyncio

import httpx2
import pytest
from openai import APIError, AsyncOpenAI

from tests.integration.worker.launch import Controller, Worker, controller

SAMPLES = "tests.integration.worker.samples"


async def start(fleet: Controller) -> Worker:
    spec = fleet.spec(engine="python", params={"worker_class": f"{SAMPLES}:SyncEcho"})
    worker = await fleet.launch(spec)
    await fleet.ready(worker)
    return worker


def sdk(worker: Worker) -> AsyncOpenAI:
    transport = httpx2.AsyncHTTPTransport(uds=worker.spec.engine_socket)
    return AsyncOpenAI(
        api_key="none",
        base_url="http://worker/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    )


def test_the_sdk_reads_chats_streams_and_embeddings() -> None:
    async def main() -> None:
        async with controller() as fleet, sdk(await start(fleet)) as client:
            whole = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "one two"}]
            )
            assert whole.choices[0].message.content == "one two "
            assert whole.usage is not None
            assert whole.usage.total_tokens == 4
            stream = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "one two"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(texts) == "one two "
            assert chunks[-1].usage is not None
            found = await client.embeddings.create(model="m", input=["a", "bcd"])
            assert [item.embedding[0] for item in found.data] == [1.0, 3.0]

    asyncio.run(main())


def test_the_sdk_raises_when_a_stream_breaks() -> None:
    async def main() -> None:
        async with controller() as fleet, sdk(await start(fleet)) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "one die"}], stream=True
            )
            texts: list[str] = []

            async def read() -> None:
                async for chunk in stream:
                    texts.append(chunk.choices[0].delta.content or "")

            with pytest.raises(APIError):
                await read()
            assert "".join(texts) == "one "

    asyncio.run(main())
