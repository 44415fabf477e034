"""A real llama.cpp lends what one slot has read to the others: less is read, and the answers are the same."""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler.core.model import PrefixReach
from hostler.core.snapshot import Endpoint
from hostler.core.timeline import FlightEnd
from hostler.engines.lending import LEND_PATH, READ_PATH
from hostler.wire.client import Pool, fetch
from tests.integration.gateway.rig import rig
from tests.integration.gateway.test_flights import Party, ended
from tests.integration.worker.launch import Worker, controller
from tests.integration.worker.test_llama_worker import start
from tests.models import model_path
from tests.unit.routing.fleet import instance, model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SLOTS = 3
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
_WORDS = "horse inn stable hay road oats cart wheel bridle saddle gate lamp rain yard boy coach"


_ROUNDS = ("red blue green", "one two three four", "salt pepper sugar oil flour")


def chat(question: str, words: str) -> dict[str, Any]:
    """A chat with a long beginning, to be gone on with: words in a round, so that no next one is a near tie.

    (What is computed in a batch with others differs in its last bits, with loans and without.)
    """
    story = " ".join(random.Random("story").choices(_WORDS.split(), k=400))
    user = {"role": "user", "content": f"{story}. {question}"}
    begun = {"role": "assistant", "content": " ".join([words] * 6)}
    return {"messages": [user, begun], "temperature": 0, "max_tokens": 4}


async def agent(worker: Worker, path: str, body: object) -> tuple[int, Any]:
    answer = await fetch(
        Endpoint(socket=worker.spec.engine_socket).agent,
        "POST",
        path,
        headers=((b"content-type", b"application/json"),),
        body=msgspec.json.encode(body),
        timeout_s=60,
    )
    return answer.status, msgspec.json.decode(answer.body)


async def go_on(worker: Worker, slot: int) -> object:
    """What a slot makes of the prompt that it has, with the likelihood of every token."""
    _, prompt = await worker.call("POST", "/apply-template", HELLO)
    body = {**prompt, "id_slot": slot, "temperature": 0, "n_predict": 8, "n_probs": 3}
    status, answer = await worker.call("POST", "/completion", body)
    assert status == 200
    assert answer["timings"]["prompt_n"] == 1
    return answer["content"], answer["completion_probabilities"]


def test_a_new_prompt_is_read_once_for_three_slots_and_greedy_answers_are_the_same() -> None:
    async def main() -> None:
        path = await asyncio.to_thread(model_path, "chat")
        async with controller() as fleet, rig() as ours:
            worker = await start(fleet, path, params={"context_length": 1024}, concurrency=SLOTS)
            record = fleet.registry.record(worker.spec.instance_id)
            assert record is not None
            assert record.view.prefix_reach is PrefixReach.LENT
            folder = Path(worker.spec.engine_socket).with_suffix(".slots")
            assert folder.stat().st_mode & 0o777 == 0o700
            one = instance(
                "a", concurrency=SLOTS, endpoint=worker.endpoint, engine="llama.cpp",
                prefix_reach=record.view.prefix_reach,
            )  # fmt: skip
            ours.source.publish([model("m", engine="llama.cpp")], [one])
            pool = Pool(ours.endpoint, connect_timeout_s=5, idle_s=1)
            us = Party(ours, pool)
            readers = [us.ask("", **chat(f"Say: {words}", words)) for words in _ROUNDS]
            await ended(*readers)
            assert us.ends() == [FlightEnd.LENT] * SLOTS
            assert ours.gateway.metrics.loans == {("m", "lent"): 1}
            for reader in readers:
                used = us.story(reader).used
                assert used is not None
                assert used.prompt - used.cached < 80 < used.cached
            assert not list(folder.iterdir())
            again = [us.ask("", **chat(f"Now say: {words}", words)) for words in _ROUNDS * 2]
            await ended(*again)  # all slots have it: nobody waits, nobody reads it
            for reader in again:
                story = us.story(reader)
                assert story.flight is None
                assert story.used is not None
                assert story.used.prompt - story.used.cached < 80
            words = _ROUNDS[-1]
            alone = us.ask("", **chat(f"Say: {words}", words), cache_prompt=False)
            await ended(alone)
            assert alone.text == readers[-1].text
            assert alone.text.split()[0] == words.split()[0]
            await pool.close()

    asyncio.run(main())


def test_an_agent_lends_text_alone_and_only_what_there_is() -> None:
    async def main() -> None:
        path = await asyncio.to_thread(model_path, "chat")
        async with controller() as fleet:
            worker = await start(fleet, path, params={"context_length": 512}, concurrency=2)
            status, read = await agent(worker, READ_PATH, {"route": "chat", "body": HELLO})
            assert status == 200, read
            assert read["tokens"] > 5
            order = {**read, "copies": 7}
            assert await agent(worker, LEND_PATH, order) == (200, {"slots": 1})
            said = [await go_on(worker, slot) for slot in range(2)]
            assert said[0] == said[1]  # where it was read, and where it was lent: bit for bit
            text_prompt = {"route": "completions", "body": {"prompt": "Hello"}}
            assert (await agent(worker, READ_PATH, text_prompt))[0] == 200
            picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
            seen = {"messages": [{"role": "user", "content": [picture]}]}
            for body, told in (
                ({"route": "chat", "body": seen}, 400),
                ({"route": "completions", "body": {"prompt": "word " * 2000}}, 400),
                ({"what": "ever"}, 400),
            ):
                status, answer = await agent(worker, READ_PATH, body)
                assert status == told, answer
            huge = {"slot": 0, "tokens": 10**9, "copies": 1}
            status, answer = await agent(worker, LEND_PATH, huge)
            assert status >= 500
            assert "would need" in answer["error"]["message"]
            worker.process.terminate()
            assert await worker.ended() == 0
            assert not Path(worker.spec.engine_socket).with_suffix(".slots").exists()
            assert "Hello" not in worker.stderr

            alone = await start(fleet, path, params={"context_length": 512}, concurrency=1)
            record = fleet.registry.record(alone.spec.instance_id)
            assert record is not None
            assert record.view.prefix_reach is PrefixReach.SLOT
            status, _ = await agent(alone, READ_PATH, {"route": "chat", "body": HELLO})
            assert status == 404

    asyncio.run(main())
