"""How a load test asks, and what is said of it."""

import pytest

from hostler.cli.bench import Texts, bench, read_levels
from hostler.cli.bench_report import Report, about, remarks, table
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.measured import Level, Spread
from hostler.core.model import WorkerType


def texts(kind: WorkerType, prompt: str | None = None) -> Texts:
    return Texts("m", kind, prompt=prompt, words=20, max_tokens=5, batch=3)


def report(*levels: Level, kind: WorkerType = WorkerType.LLM, **fields: object) -> Report:
    whole: dict[str, object] = {"model": "m", "url": "http://h", "at_s": 0.0, **fields}
    return Report(worker_type=kind, levels=levels, **whole)  # type: ignore[arg-type]


def test_levels_are_numbers() -> None:
    assert read_levels("1, 4,16") == [1, 4, 16]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-1", "5000"])
def test_a_wrong_level_is_a_usage_error(text: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        read_levels(text)
    assert refused.value.exit_code is Exit.USAGE


def test_a_number_that_is_not_more_than_nothing_is_a_usage_error() -> None:
    with pytest.raises(CommandFailed) as refused:
        bench("m", max_tokens=0)
    assert refused.value.exit_code is Exit.USAGE


def test_each_prompt_begins_differently_and_is_as_long_as_asked() -> None:
    work = texts(WorkerType.LLM)
    said = [work.body(at)["messages"][0]["content"] for at in range(50)]
    assert len({one.split()[0] for one in said}) == 50
    assert {len(one.split()) for one in said} == {20}
    work.fit(16, 30)  # 20 words were 30 tokens, 16 are wanted
    assert len(work.body(0)["messages"][0]["content"].split()) == 6
    work.fit(1, 100)
    assert work.words == 1


def test_a_prompt_that_is_given_is_the_same_each_time() -> None:
    work = texts(WorkerType.LLM, "hello there")
    work.fit(100, 2)
    assert {work.body(at)["messages"][0]["content"] for at in range(3)} == {"hello there"}


def test_a_chat_streams_and_asks_for_its_tokens() -> None:
    body = texts(WorkerType.LLM).body(0)
    assert (body["stream"], body["max_tokens"]) == (True, 5)
    assert body["stream_options"] == {"include_usage": True}


def test_texts_and_documents_come_in_batches_without_doubles() -> None:
    one, other = texts(WorkerType.TEXT2VEC).body(0), texts(WorkerType.RERANKER).body(7)
    assert (len(set(one["input"])), len(set(other["documents"]))) == (3, 3)


def test_the_table_of_a_chat_tells_what_was_not_measured_as_a_dash() -> None:
    level = Level(
        concurrency=4, seconds=2, requests=9, errors={"overloaded": 1}, requests_per_s=4.0,
        tokens_per_s=52.0, ttft=Spread(p50_s=0.05, p99_s=1.5),
    )  # fmt: skip
    columns, rows = table(report(level))
    assert rows == [("4", "9", "1", "4.00", "52.0", "50.0 ms", "1.50 s", "-", "-")]
    assert len("  ".join(columns)) <= 80


def test_what_spoils_a_measurement_is_said() -> None:
    level = Level(
        concurrency=4, seconds=2, requests=9, errors={"overloaded": 2}, cached_tokens=1200,
        messages={"overloaded": "the queue of m is full"}, untold=3, took=Spread(p50_s=3, p99_s=3),
    )  # fmt: skip
    said = "\n".join(remarks(report(level, own_cpu=0.97, interrupted=True)))
    assert "4 at once: 2 x overloaded: the queue of m is full" in said
    assert "longer than the level" in said
    assert "1,200 tokens" in said
    assert "3 answers came without a count" in said
    assert "97% of a core" in said
    assert "interrupted" in said
    assert not list(remarks(report(Level(concurrency=1, seconds=1, requests=1))))


def test_it_says_how_it_was_asked() -> None:
    chat = Level(concurrency=1, seconds=1, requests=1, prompt_tokens=128.0, completion_tokens=63.6)
    assert about(report(chat)).endswith(" · http://h · 128 tokens in, 64 out")
    ranks = Level(concurrency=1, seconds=1, requests=1, prompt_tokens=900.0)
    said = about(report(ranks, kind=WorkerType.RERANKER, items_per_request=8))
    assert said.endswith("8 documents a request · 900 tokens a request")
