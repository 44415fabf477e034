"""A whole server: what the store says was used is what the engines say they did."""

import asyncio
import json
import random
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.executions import read_executions
from hostler.testing.fake_text import TOKENS
from tests.integration.gateway.test_streams import Reader

REQUESTS = 120
CUT_AT = 4  # tokens of a stream whose client leaves


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    models = [
        fake_model(
            name, replicas=replicas, worker_type=kind, ledger=str(tmp_path / f"{name}.jsonl")
        )
        for name, kind, replicas in (
            ("alpha", "llm", 2),
            ("beta", "llm", 1),
            ("vectors", "text2vec", 1),
        )
    ]
    with Cluster("\n".join(models)) as running:
        yield running


def bodies(number: int, dice: random.Random) -> tuple[str, dict[str, Any]]:
    """One request of the mix: path and body."""
    words = " ".join(f"w{number}" for _ in range(dice.randint(1, 9)))
    model = dice.choice(["alpha", "beta"])
    chat = {"model": model, "messages": [{"role": "user", "content": words}]}
    kind = number % 8
    if kind == 0:
        return "/v1/embeddings", {"model": "vectors", "input": [words, "x"]}
    if kind == 1:
        return "/v1/chat/completions", {**chat, "n": 3}
    if kind == 2:
        return "/v1/completions", {"model": model, "prompt": [words, "b"], "stream": True}
    if kind == 3:
        options = {"include_usage": True}
        return "/v1/chat/completions", {**chat, "stream": True, "stream_options": options}
    if kind == 4:
        words = f"{words} [[hang_at={CUT_AT}]]"
        messages = [{"role": "user", "content": words}]
        return "/v1/chat/completions", {**chat, "messages": messages, "stream": True}
    if kind == 5:
        return "/v1/chat/completions", {**chat, "stream": True, "max_tokens": dice.randint(1, 9)}
    return "/v1/chat/completions", chat


async def ask(cluster: Cluster, key: str, path: str, body: dict[str, Any]) -> str:
    """Send it, leave a stream that hangs after its last token; return the request's id."""
    from hostler.manager.gateway_calls import endpoint_of
    from hostler.wire.client import Pool, build_request

    pool = Pool(endpoint_of(cluster.url), connect_timeout_s=5, idle_s=1)
    reader = Reader()
    fields = [
        (b"authorization", b"Bearer " + key.encode()),
        (b"content-type", b"application/json"),
    ]
    message = build_request("POST", path, "localhost", fields, json.dumps(body).encode())
    reader.call = pool.submit(message, reader)
    if "[[hang_at" in json.dumps(body):
        while reader.data.count(b"data:") < CUT_AT:
            reader.began.clear()
            await asyncio.wait_for(reader.began.wait(), 20)
        reader.call.cancel()
    else:
        await asyncio.wait_for(reader.ended.wait(), 20)
        assert reader.status == 200, reader.data
    await pool.close()
    return reader.headers[b"x-request-id"].decode()


def test_the_store_says_of_each_key_and_model_what_the_engines_did(
    cluster: Cluster, tmp_path: Path
) -> None:
    made = [cluster.json("POST", "/api/v1/keys", {"name": f"k{n}"}) for n in range(3)]
    owner: dict[str, str] = {}
    dice = random.Random(7)

    async def load(numbers: range) -> None:
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with gate:
                key = made[number % 3]
                owner[await ask(cluster, key["key"], *bodies(number, dice))] = key["info"]["key_id"]

        await asyncio.gather(*(one(number) for number in numbers))

    asyncio.run(load(range(REQUESTS // 2)))
    cluster.kill("controller")  # what is counted while it is away is kept for the next one
    asyncio.run(load(range(REQUESTS // 2, REQUESTS)))
    cluster.wait_for(cluster.is_ready, 30, "the next controller serves")

    def counted() -> dict[str, Any]:
        found: dict[str, Any] = cluster.json("GET", "/api/v1/usage")
        return found

    cluster.wait_for(lambda: counted()["total"]["requests"] >= REQUESTS, 20, "all is counted")
    told = counted()
    expected: Counter[tuple[str, str, str]] = Counter()
    for execution in read_executions(tmp_path.glob("*.jsonl")):
        place = (owner[execution.request_id], execution.model)
        cut = execution.end.value != "done"
        expected[*place, "requests"] += 1
        expected[*place, "completion_tokens"] += execution.tokens
        expected[*place, "estimated" if cut else "prompt_tokens"] += (
            1 if cut else execution.prompt_tokens
        )
        expected[*place, "failed"] += cut
    names = ("requests", "failed", "estimated", "completion_tokens")
    for row in told["usage"]:
        place = (row["key_id"], row["model"])
        assert [row[name] for name in names] == [expected[*place, name] for name in names], place
        # a cut stream's prompt is what routing takes it for
        assert row["prompt_tokens"] >= expected[*place, "prompt_tokens"]
        if not row["estimated"]:
            assert row["prompt_tokens"] == expected[*place, "prompt_tokens"]
    assert told["total"]["requests"] == REQUESTS
    by_hour = cluster.json("GET", "/api/v1/usage?by=hour&since=0")
    assert by_hour["total"] == told["total"]


def test_a_locked_store_and_a_stop_right_after_lose_no_count(cluster: Cluster) -> None:
    database = cluster.state_dir / "hostler.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(10):
            began_s = time.monotonic()
            assert cluster.chat("beta", f"hello {number}")[0] == 200
            assert time.monotonic() - began_s < 5
        time.sleep(1.5)  # the gateway has tried to tell it meanwhile
        other.execute("ROLLBACK")
    assert cluster.chat("beta", "the last one")[0] == 200
    assert cluster.stop() == 0
    with closing(sqlite3.connect(database)) as left:
        told = left.execute("SELECT sum(requests), sum(completion_tokens) FROM usage").fetchone()
    assert told == (11, 11 * TOKENS)
