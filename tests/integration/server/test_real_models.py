"""`hostler up` as a newcomer gets it: the default models, asked with the official OpenAI SDK."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from hostler.testing.cluster import Cluster
from tests.models import model_path, models_dir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAT, EMBED, RANK = "smollm2-135m-instruct", "bge-small-en-v1.5", "ms-marco-minilm-l-12-v2"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION: list[Any] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "What is the capital of France? Answer in one word."},
]
STORY: list[Any] = [{"role": "user", "content": "Tell a very long story about horses."}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    for role in ("chat", "embedding", "reranker"):
        model_path(role)  # fetched once for all runs
    cluster = Cluster("")
    cluster.state_dir.mkdir(mode=0o700)
    os.symlink(models_dir(), cluster.state_dir / "models")
    with cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.admin_key, max_retries=0) as client:
        yield client


def test_the_default_models_are_served_under_their_names(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {CHAT, EMBED, RANK}


def test_a_chat_answer_with_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
    )
    stream = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == whole.choices[0].finish_reason


def test_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT, prompt="The capital of France is", temperature=0, max_tokens=8
    )
    assert "Paris" in answer.choices[0].text


def test_embeddings_keep_their_order_and_are_normal(client: OpenAI) -> None:
    texts = ["a horse in a stable", "a locomotive in a roundhouse", "a horse in a stable"]
    found = client.embeddings.create(model=EMBED, input=texts)
    vectors = [item.embedding for item in found.data]
    assert [len(vector) for vector in vectors] == [384, 384, 384]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1.0, abs=1e-3)
    same = sum(x * y for x, y in zip(vectors[0], vectors[2], strict=True))
    other = sum(x * y for x, y in zip(vectors[0], vectors[1], strict=True))
    assert same > 0.9999
    assert other < 0.9
    assert found.usage.prompt_tokens > 9


def test_rerank_puts_the_right_passage_first(cluster: Cluster) -> None:
    body = {
        "model": RANK,
        "query": "How many people live in Berlin?",
        "documents": [
            "New York City is famous for its museums.",
            "Berlin has a population of 3.5 million registered inhabitants.",
        ],
    }
    found = cluster.json("POST", "/v1/rerank", body)["results"]
    assert [result["index"] for result in found] == [1, 0]
    assert found[0]["relevance_score"] > 0.9 > 0.1 > found[1]["relevance_score"]
    assert found[0]["logit"] > 5 > -5 > found[1]["logit"]


def test_token_counts_equal_what_the_engine_charges(cluster: Cluster, client: OpenAI) -> None:
    counted = cluster.json("POST", "/tokenize", {"model": CHAT, "messages": QUESTION})["count"]
    answer = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        max_tokens=1,
    )
    assert answer.usage is not None
    assert counted == answer.usage.prompt_tokens
    text = cluster.json("POST", "/tokenize", {"model": CHAT, "content": "hello world"})
    assert text["count"] == len(text["tokens"]) == 2


@pytest.mark.parametrize(
    ("path", "model"),
    [("/v1/embeddings", CHAT), ("/v1/rerank", CHAT), ("/v1/chat/completions", EMBED)],
)
def test_a_model_asked_for_what_it_does_not_do_is_named(
    cluster: Cluster, path: str, model: str
) -> None:
    body = {"model": model, "input": "a", "query": "a", "documents": ["b"], "messages": QUESTION}
    status, _, answer = cluster.request("POST", path, body)
    assert status == 404
    assert model in json.loads(answer)["error"]["message"]


def test_the_sdk_gets_a_typed_error_for_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="known") as caught:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_a_client_that_leaves_frees_its_slot(cluster: Cluster, client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT,
        messages=STORY,
        max_tokens=2000,
        stream=True,
    )
    next(iter(stream))
    stream.close()
    cluster.wait_for(
        lambda: all(data["in_flight"] == 0 for data in cluster.instances()), 5, "no slot is taken"
    )


def test_eight_streams_at_once_are_all_whole(client: OpenAI) -> None:
    texts: list[str] = []

    def one() -> None:
        stream = client.chat.completions.create(
            model=CHAT,
            messages=QUESTION,
            temperature=0,
            max_tokens=16,
            stream=True,
        )
        texts.append("".join(c.choices[0].delta.content or "" for c in stream if c.choices))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(texts) == 8
    assert all(texts)


def test_a_model_is_stopped_and_started_while_the_others_serve(cluster: Cluster) -> None:
    assert _hostler(cluster, "model", "stop", RANK).returncode == 0
    order = {"model": RANK, "query": "a", "documents": ["b"]}
    assert cluster.request("POST", "/v1/rerank", order)[0] == 503
    assert cluster.chat(CHAT, "hi", max_tokens=2)[0] == 200
    told = _hostler(cluster, "model", "start", RANK)
    assert told.returncode == 0, told.stderr
    assert cluster.request("POST", "/v1/rerank", order)[0] == 200


def test_the_command_line_asks_all_three(cluster: Cluster) -> None:
    chat = _hostler(cluster, "chat", CHAT, "What is the capital of France?")
    assert chat.returncode == 0
    assert chat.stdout.strip()
    embed = json.loads(_hostler(cluster, "embed", "a horse", "--json").stdout)
    assert len(str(embed)) > 384
    rank = _hostler(cluster, "rerank", "capital of France", "Paris is it.", "Cats eat.")
    assert rank.returncode == 0
    assert "Paris" in rank.stdout
    tokens = _hostler(cluster, "tokens", "hello world")
    assert tokens.stdout.strip().startswith("2")
    listed = json.loads(_hostler(cluster, "model", "list", "--json").stdout)
    assert CHAT in str(listed)


def test_a_killed_llama_worker_is_replaced_within_seconds(cluster: Cluster) -> None:
    (before,) = cluster.ready(CHAT)
    cluster.kill_pid(before["pid"])
    began_s = time.monotonic()
    cluster.wait_for(
        lambda: any(i["instance_id"] != before["instance_id"] for i in cluster.ready(CHAT)),
        30,
        "another worker serves the model",
    )
    assert cluster.chat(CHAT, "hi", max_tokens=2)[0] == 200
    assert time.monotonic() - began_s < 30


# Private


def _hostler(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hostler", *arguments, f"--state-dir={cluster.state_dir}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
