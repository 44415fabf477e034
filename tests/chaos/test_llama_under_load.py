"""Two replicas of a real model in llama.cpp, a fake one beside them: what breaks one no client sees."""

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from hostler.testing.access import access_lines, in_flight
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.ledger import check_access, check_answers, check_ends, check_survival
from hostler.testing.load import Outcome, Seen, ask, chat_body
from tests.chaos.figures import IS_LONG, tell
from tests.chaos.pressure import Pressure, target_of
from tests.models import model_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAT, ECHO = "chat", "echo"
TOKENS = 6
REPLICAS, SLOTS = 2, 4
ROUNDS = 4 if IS_LONG else 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    settings = "log_json = true\n[life]\nbackoff_first_s = 0.1\ncrash_limit = 100\n"
    real = (
        f'[[models]]\nname = "{CHAT}"\nsource = "{model_path("chat")}"\nengine = "llama.cpp"\n'
        f"replicas = {REPLICAS}\nconcurrency = {SLOTS}\n[models.params]\ncontext_length = 512\n"
    )
    with Cluster(settings + real + fake_model(ECHO, tokens=TOKENS, delay_ms=5)) as running:
        yield running


def settled(cluster: Cluster) -> None:
    cluster.wait_for(lambda: len(cluster.ready(CHAT)) == REPLICAS, 60, "both replicas are ready")


def loaded(cluster: Cluster, name: str) -> Pressure:
    """SDK and raw clients of both models; one replica has slots for all of them."""
    settled(cluster)
    return Pressure(cluster, models=[CHAT, ECHO], clients=2, sdk=2, tokens=TOKENS, name=name)


def judge(cluster: Cluster, seen: list[Seen], *, breaks_streams: bool) -> None:
    cluster.wait_for(lambda: in_flight(cluster) == 0, 10, "nothing is in flight")
    lines = access_lines(cluster, {one.request_id for one in seen})
    faked = [one for one in seen if one.asked == ECHO]
    breaches = [*check_ends(seen), *check_access(seen, lines), *check_survival(seen)]
    assert [*breaches, *check_answers(faked, {}, TOKENS)] == []
    real = [one for one in seen if one.asked == CHAT]
    assert {one.outcome for one in faked} == {Outcome.OK}
    assert {one.named for one in real} <= {CHAT, ""}
    may_be = {Outcome.OK, Outcome.ERROR_EVENT} if breaks_streams else {Outcome.OK}
    assert {one.outcome for one in real} <= may_be
    assert sum(one.outcome is Outcome.OK for one in real) >= 4, "hardly any load"
    slowest_s = max(one.seconds for one in real)
    tell(f"llama.cpp: {len(real)} requests and {len(faked)} beside them, slowest {slowest_s:.2f} s")


def test_F01_F02_a_replica_of_llama_cpp_is_killed_under_load(cluster: Cluster) -> None:
    for turn in range(ROUNDS):
        with loaded(cluster, f"kill-{turn}") as pressure:
            time.sleep(1.0)
            cluster.kill_pid(cluster.ready(CHAT)[turn % REPLICAS]["pid"])
            time.sleep(1.0)
            settled(cluster)
        judge(cluster, pressure.seen, breaks_streams=True)


def test_F03_F04_a_replica_of_llama_cpp_is_stopped_under_load(cluster: Cluster) -> None:
    for turn in range(ROUNDS):
        with loaded(cluster, f"stop-{turn}") as pressure:
            time.sleep(0.5)
            victim = cluster.ready(CHAT)[turn % REPLICAS]["pid"]
            cluster.kill_pid(victim, signal.SIGSTOP)
            time.sleep(4.0)
            cluster.kill_pid(victim, signal.SIGCONT)
            settled(cluster)
        judge(cluster, pressure.seen, breaks_streams=True)


def test_F57_the_gateway_is_restarted_while_llama_cpp_answers(cluster: Cluster) -> None:
    for turn in range(ROUNDS):
        with loaded(cluster, f"renew-{turn}") as pressure:
            time.sleep(0.5)
            cluster.json("POST", "/api/v1/gateways/restart", timeout_s=60)
            time.sleep(1.0)
        judge(cluster, pressure.seen, breaks_streams=False)


def test_F46_F48_clients_of_llama_cpp_that_dawdle_and_leave_cost_the_others_nothing(
    cluster: Cluster,
) -> None:
    left: list[Seen] = []

    async def leave(number: int) -> None:
        """Read a few bytes of a long answer, or wait for one, and go."""
        is_stream = number % 2 == 0
        body = chat_body(CHAT, f"Tell a long story of horse {number}.", is_stream, 400)
        request_id = f"leave-{number}"
        left.append(await ask(target_of(cluster), body, request_id=request_id, timeout_s=1.0))

    async def main() -> None:
        await asyncio.gather(*(leave(number) for number in range(REPLICAS)))

    for _ in range(ROUNDS):
        with loaded(cluster, f"beside-{len(left)}") as pressure:
            time.sleep(0.5)
            asyncio.run(main())
            time.sleep(0.5)
        judge(cluster, pressure.seen, breaks_streams=False)
    assert {one.outcome for one in left} == {Outcome.TIMEOUT}
    counted = {one["instance_id"]: one["in_flight"] for one in cluster.ready(CHAT)}
    cluster.wait_for(
        lambda: all(one["in_flight"] == 0 for one in cluster.ready(CHAT)), 20, f"idle: {counted}"
    )
