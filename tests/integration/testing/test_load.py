"""Load and oracle against a fake engine itself: a good run passes, and each fault is seen by its client."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hostler.app.process import sweep
from hostler.testing import fake_text
from hostler.testing.executions import read_executions
from hostler.testing.ledger import assert_invariants, check_ends, tally
from hostler.testing.load import Outcome, Seen, Target, ask, chat_body, run_load
from tests.integration.testing.fakes import MODEL, Fake


@pytest.fixture
def fake() -> Iterator[Fake]:
    with TemporaryDirectory(dir="/tmp", prefix="fe") as folder:
        made = Fake(Path(folder), {}).wait()
        yield made
        made.process.kill()
        made.process.wait(5)
        if made.process.stdout is not None:
            made.process.stdout.close()
        sweep("FAKE_TAG", made.tag)


def ask_once(fake: Fake, prompt: str = "hi", stream: bool = True, **more: Any) -> Seen:
    body = chat_body(MODEL, prompt, stream)
    return asyncio.run(ask(Target(socket=fake.socket), body, request_id="r", **more))


def test_a_healthy_run_is_one_story(fake: Fake) -> None:
    target = Target(socket=fake.socket)
    seen = asyncio.run(run_load(target, models=[MODEL], clients=10, requests=300, seed=7))
    assert tally(seen) == {"ok": 300}
    assert 90 < sum(bool(one.body.get("stream")) for one in seen) < 210
    assert_invariants(seen, read_executions([fake.ledger]), survivable=True)
    assert fake.counts()["in_flight"] == 0


def test_a_run_with_lost_tokens_is_refused_by_the_oracle(fake: Fake) -> None:
    fake.post("/_fake/script", {"tokens": 5})
    target = Target(socket=fake.socket)
    seen = asyncio.run(run_load(target, models=[MODEL], clients=2, requests=4))
    with pytest.raises(AssertionError, match="cut: 5 of 16 tokens"):
        assert_invariants(seen, read_executions([fake.ledger]))


@pytest.mark.parametrize(
    ("prompt", "outcome"),
    [
        ("hi", Outcome.OK),
        ("[[ending=no_done]]", Outcome.SILENT_END),
        ("[[ending=no_finish]]", Outcome.SILENT_END),
        ("[[ending=cut]]", Outcome.RESET),
        ("[[crash_at=3]]", Outcome.RESET),
        ("[[die]]", Outcome.RESET),
        ("[[half]]", Outcome.RESET),
        ("[[status=500]]", Outcome.HTTP_ERROR),
        ("[[hang_at=2]]", Outcome.TIMEOUT),
    ],
)
def test_each_end_is_told_apart(fake: Fake, prompt: str, outcome: Outcome) -> None:
    seen = ask_once(fake, prompt, timeout_s=1.0)
    assert seen.outcome is outcome
    bad = outcome in (Outcome.SILENT_END, Outcome.RESET)
    assert bool(check_ends([seen])) == bad


def test_what_came_before_a_crash_is_kept_and_right(fake: Fake) -> None:
    seen = ask_once(fake, "[[crash_at=3]]")
    right = fake_text.expected_texts(MODEL, seen.body)[0]
    assert right.startswith(seen.text)
    assert seen.text.count(" ") == 3


def test_a_client_that_leaves_is_seen_by_the_engine(fake: Fake) -> None:
    fake.post("/_fake/script", {"delay_ms": 50})
    seen = ask_once(fake, leave_after_bytes=300)
    assert seen.outcome is Outcome.LEFT
    for _ in range(50):
        if fake.counts()["aborted"] == 1:
            break
    assert fake.counts() | {"aborted": 1, "in_flight": 0} == fake.counts()


def test_nobody_at_home_is_a_reset(tmp_path: Path) -> None:
    target = Target(socket=str(tmp_path / "none"))
    seen = asyncio.run(ask(target, chat_body("m", "x", False), request_id="r"))
    assert (seen.outcome, seen.status) == (Outcome.RESET, 0)
