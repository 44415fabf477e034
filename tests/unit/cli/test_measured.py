"""What samples of a load test come to."""

import pytest

from hostler.cli.measured import Sample, Usage, measure, percentile, spread
from hostler.core.model import WorkerType


def chat(
    began_s: float, first_s: float, ended_s: float, written: int | None = 10, cached: int = 0
) -> Sample:
    return Sample(
        began_s=began_s,
        first_s=first_s,
        ended_s=ended_s,
        usage=Usage(prompt_tokens=100, completion_tokens=written, cached_tokens=cached),
        items=1,
    )


@pytest.mark.parametrize(
    ("count", "share", "found"),
    [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.5, 50), (100, 0.99, 99), (101, 0.99, 100)],
)
def test_a_percentile_is_a_value_that_was_measured(count: int, share: float, found: int) -> None:
    assert percentile(list(range(1, count + 1)), share) == found


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None


def test_a_level_tells_rates_and_times_of_a_chat() -> None:
    samples = [chat(0.0, 0.5, 1.4), chat(1.4, 1.6, 2.5, cached=7)]
    level = measure(samples, 1, 0.0, 2.5, WorkerType.LLM)
    assert level.requests_per_s == pytest.approx(2 / 2.5)
    assert level.tokens_per_s == pytest.approx(20 / 2.5)
    assert level.items_per_s is None
    assert (level.prompt_tokens, level.completion_tokens, level.cached_tokens) == (100, 10, 7)
    assert level.ttft is not None
    assert (level.ttft.p50_s, level.ttft.p99_s) == pytest.approx((0.2, 0.5))
    assert level.inter_token is not None
    assert level.inter_token.p50_s == pytest.approx(0.1)  # 0.9 s for the nine after the first


def test_a_request_that_outlasts_the_level_counts_by_its_share() -> None:
    level = measure([chat(0.0, 1.0, 4.0)], 1, 0.0, 1.0, WorkerType.LLM)
    assert level.requests_per_s == pytest.approx(0.25)
    assert level.tokens_per_s == pytest.approx(2.5)
    assert level.took is not None
    assert level.took.p50_s == 4.0


def test_errors_are_counted_by_code_and_in_no_rate() -> None:
    full = Sample(began_s=0, ended_s=0.1, error="overloaded", message="the queue is full")
    lost = Sample(began_s=0, ended_s=0.1, error="connection_lost", message="reset")
    level = measure([full, chat(0, 0.5, 1.0), lost, full], 4, 0.0, 1.0, WorkerType.LLM)
    assert level.errors == {"overloaded": 2, "connection_lost": 1}
    assert level.messages == {"overloaded": "the queue is full", "connection_lost": "reset"}
    assert (level.requests, level.failed, level.requests_per_s) == (4, 3, 1.0)


def test_answers_without_a_count_of_tokens_are_told_and_count_none() -> None:
    level = measure([chat(0, 0.5, 1.0, written=None)], 1, 0.0, 1.0, WorkerType.LLM)
    assert (level.tokens_per_s, level.untold, level.inter_token) == (None, 1, None)
    assert level.ttft is not None


def test_texts_and_read_tokens_are_the_rates_of_embeddings() -> None:
    one = Sample(began_s=0, ended_s=1, usage=Usage(prompt_tokens=80), items=8)
    level = measure([one, one], 2, 0.0, 1.0, WorkerType.TEXT2VEC)
    assert (level.requests_per_s, level.items_per_s, level.tokens_per_s) == (2, 16, 160)
    assert (level.ttft, level.untold) == (None, 0)


def test_a_level_without_any_request_is_empty_and_no_fault() -> None:
    level = measure([], 1, 5.0, 5.0, WorkerType.RERANKER)
    assert (level.requests, level.items_per_s, level.took) == (0, 0, None)
