"""What every store does. Each test runs on each implementation."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostler.app.auth import new_key
from hostler.app.tokens import StoredHost, StoredToken, TokenRefused, new_token
from hostler.core.deployment import Deployment, Wish
from hostler.core.fleet import WorkerSpec
from hostler.core.hosts import HostFacts, Role
from hostler.core.launch import Launch, order
from hostler.core.model import WorkerType
from hostler.core.usage import (
    DAY_S,
    HOUR_S,
    UsageBatch,
    UsageBy,
    UsageCount,
    UsageQuestion,
    UsageRow,
)
from hostler.core.worker import OperatorEvent
from hostler.storage import memory, sql
from hostler.storage.memory import MemoryStore
from hostler.storage.postgres import PostgresStore
from hostler.storage.sql import SqlStore
from hostler.storage.store import Store
from tests.postgres import Postgres, running_postgres

KINDS: dict[str, Callable[[Path, pytest.FixtureRequest], Store]] = {
    "memory": lambda folder, request: MemoryStore(),
    "sql": lambda folder, request: SqlStore(folder / "hostler.db"),
    "postgres": lambda folder, request: PostgresStore.alone(
        request.getfixturevalue("postgres").new_url()
    ),
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def few_events(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many events are kept: few, so that more than these are soon written."""
    for module in (memory, sql):
        monkeypatch.setattr(module, "EVENTS_KEPT", 40)
    return 40


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = KINDS[request.param](tmp_path, request)
    yield made
    made.close()


def deployment(name: str = "qwen", **changes: object) -> Deployment:
    fields: dict[str, object] = {"worker_type": WorkerType.LLM, "engine": "llama.cpp", **changes}
    return Deployment(name=name, **fields)  # type: ignore[arg-type]


def launch(instance_id: str, epoch: int = 1) -> Launch:
    spec = WorkerSpec(
        instance_id=instance_id,
        epoch=epoch,
        secret="s3cret-of-the-worker",
        model_name="qwen",
        worker_type=WorkerType.LLM,
        engine="llama.cpp",
        params={"context_length": 4096},
        engine_socket="/run/a.sock",
        agent_socket="/run/a.agent",
        registry_socket="/run/registry.sock",
    )
    return order(spec, worker_key="qwen@llm", replica=0, generation=3)


def test_a_new_store_is_empty(store: Store) -> None:
    assert [store.deployments(), store.launches(), store.keys(), store.events()] == [()] * 4
    assert store.last_seq() == 0


def test_deployments_come_back_as_they_were_saved_in_order(store: Store) -> None:
    saved = [
        deployment("b", params={"threads": 2, "note": "ü"}, aliases=("c/d",), wish=Wish.STOPPED),
        deployment("a", worker_type=WorkerType.RERANKER),
        deployment("a", urls=("http://127.0.0.1:1/v1",), replicas=0),
    ]
    for one in saved:
        store.save_deployment(one)
    assert store.deployments() == (saved[2], saved[1], saved[0])


def test_saving_again_replaces_only_the_same_name_and_type(store: Store) -> None:
    store.save_deployment(deployment("a"))
    store.save_deployment(deployment("a", worker_type=WorkerType.TEXT2VEC))
    store.save_deployment(deployment("a", replicas=3, generation=2))
    assert [(one.worker_type, one.replicas) for one in store.deployments()] == [
        (WorkerType.LLM, 3),
        (WorkerType.TEXT2VEC, 1),
    ]


def test_a_deleted_deployment_is_gone_and_deleting_it_again_says_so(store: Store) -> None:
    store.save_deployment(deployment("a"))
    assert not store.delete_deployment("a", WorkerType.TEXT2VEC)
    assert store.delete_deployment("a", WorkerType.LLM)
    assert not store.delete_deployment("a", WorkerType.LLM)
    assert store.deployments() == ()


def test_launches_are_replaced_by_instance_id_and_deleted(store: Store) -> None:
    first, second = launch("i1"), launch("i0", epoch=2)
    store.save_launch(first)
    store.save_launch(second)
    assert store.launches() == (second, first)
    assert store.launches()[1].proves("s3cret-of-the-worker")
    assert not store.launches()[1].proves("another")
    assert store.delete_launch("i1")
    assert not store.delete_launch("i1")
    assert store.launches() == (second,)


def test_keys_are_listed_by_creation_and_stay_when_revoked(store: Store) -> None:
    late = new_key(["inference"], name="late", models=["qwen"], clock=lambda: 20.0)
    early = new_key(["admin"], name="early", expires_at_s=99.5, clock=lambda: 10.0)
    store.save_key(late.stored)
    store.save_key(early.stored)
    assert store.keys() == (early.stored, late.stored)
    assert store.revoke_key(late.view.key_id)
    assert store.revoke_key(late.view.key_id)
    kept = store.keys()
    assert [key.view.revoked for key in kept] == [False, True]
    assert not store.revoke_key("nobody")


def test_keys_are_forgotten_once_and_it_is_told_how_many_there_were(store: Store) -> None:
    made = [new_key(["admin"], clock=lambda: 1.0) for _ in range(3)]
    for one in made:
        store.save_key(one.stored)
    first, second, third = (one.view.key_id for one in made)
    assert store.drop_keys([first, "nobody", second]) == 2
    assert store.drop_keys([first, second]) == 0
    assert store.drop_keys([]) == 0
    assert [key.view.key_id for key in store.keys()] == [third]


def host(host_id: str, token_id: str, **changes: object) -> StoredHost:
    facts = HostFacts(name=host_id, engines=("llama.cpp",), labels={"zone": "a"})
    fields: dict[str, object] = {"role": Role.HOST, "name": host_id, "facts": facts, **changes}
    fields.setdefault("key_hash", f"key of {host_id}")
    return StoredHost(host_id=host_id, token_id=token_id, **fields)  # type: ignore[arg-type]


def token(uses: int | None = 1, role: Role = Role.HOST, made_at_s: float = 100.0) -> StoredToken:
    return new_token(role, "f" * 64, uses=uses, lasts_s=50.0, clock=lambda: made_at_s).stored


def test_tokens_are_listed_by_creation_and_stay_when_revoked(store: Store) -> None:
    late, early = token(made_at_s=20.0), token(made_at_s=10.0)
    store.save_token(late)
    store.save_token(early)
    assert store.tokens() == (early, late)
    assert store.revoke_token(late.token_id)
    assert store.revoke_token(late.token_id)
    assert not store.revoke_token("nobody")
    assert [one.revoked for one in store.tokens()] == [False, True]


def test_a_token_that_ended_long_ago_is_forgotten_when_one_is_made(store: Store) -> None:
    old, new = token(made_at_s=10.0), token(made_at_s=10.0 + 100 * 86400)
    store.save_token(old)
    store.save_token(new)
    assert store.tokens() == (new,)


def test_a_host_and_the_use_of_its_token_are_kept_together(store: Store) -> None:
    good = token(uses=2)
    store.save_token(good)
    for n, host_id in enumerate(("h1", "h2")):
        one = host(host_id, good.token_id, joined_at_s=float(n))
        assert store.admit(one, 110.0) == one
        assert [each.uses_left for each in store.tokens()] == [1 - n]
    with pytest.raises(TokenRefused, match="used up"):
        store.admit(host("h3", good.token_id), 110.0)
    assert [one.host_id for one in store.hosts()] == ["h1", "h2"]
    assert store.hosts()[0].facts.labels == {"zone": "a"}


def test_who_asks_again_with_the_same_key_is_the_same_host_and_counts_once(store: Store) -> None:
    good = token(uses=1)
    store.save_token(good)
    first = store.admit(host("h1", good.token_id, key_hash="k"), 110.0)
    assert store.admit(host("h2", good.token_id, key_hash="k"), 120.0) == first
    assert store.hosts() == (first,)
    assert store.remove_host("h1", 130.0)
    with pytest.raises(TokenRefused, match="used up"):
        store.admit(host("h3", good.token_id, key_hash="k"), 140.0)


def test_who_comes_back_with_its_key_and_another_token_is_the_host_it_was(store: Store) -> None:
    first, second = token(uses=1), token(uses=1)
    store.save_token(first)
    store.save_token(second)
    store.admit(host("h1", first.token_id, key_hash="k", joined_at_s=1.0, is_draining=True), 110.0)
    back = store.admit(host("h2", second.token_id, key_hash="k", joined_at_s=2.0, port=9), 120.0)
    assert (back.host_id, back.port, back.joined_at_s, back.is_draining) == ("h1", 9, 2.0, True)
    assert store.hosts() == (back,)
    assert sorted(one.uses_left or 0 for one in store.tokens()) == [0, 0]
    store.save_token(third := token(uses=1, role=Role.GATEWAY))
    gateway = host("h3", third.token_id, key_hash="k", role=Role.GATEWAY)
    assert store.admit(gateway, 130.0).host_id == "h3"  # another kind of machine, whatever its key


def test_a_token_for_any_number_lets_any_number_in(store: Store) -> None:
    store.save_token(many := token(uses=None))
    for n in range(5):
        store.admit(host(f"h{n}", many.token_id), 110.0)
    assert len(store.hosts()) == 5
    assert store.tokens() == (many,)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("unknown", "no such token"),
        ("revoked", "was revoked"),
        ("expired", "has expired"),
        ("role", "is for a gateway, not for a host"),
        ("used", "used up"),
    ],
)
def test_F31_a_token_that_is_no_good_changes_nothing(store: Store, case: str, why: str) -> None:
    role = Role.GATEWAY if case == "role" else Role.HOST
    bad = token(uses=0 if case == "used" else 3, role=role)
    if case != "unknown":
        store.save_token(bad)
    if case == "revoked":
        store.revoke_token(bad.token_id)
    before = store.tokens()
    with pytest.raises(TokenRefused, match=why):
        store.admit(host("h1", bad.token_id), 150.0 if case == "expired" else 149.9)
    assert (store.hosts(), store.tokens()) == ((), before)


def test_a_removed_host_stays_removed_whatever_is_saved_of_it(store: Store) -> None:
    one = host("h1", "t", joined_at_s=1.0)
    assert store.save_host(one)
    assert store.save_host(host("h1", "t", joined_at_s=1.0, address="10.0.0.1", port=8102))
    assert [(each.address, each.port) for each in store.hosts()] == [("10.0.0.1", 8102)]
    assert store.remove_host("h1", 5.0)
    assert not store.remove_host("h1", 6.0)
    assert not store.remove_host("nobody", 6.0)
    assert not store.save_host(one)
    assert [each.removed_at_s for each in store.hosts()] == [5.0]
    store.save_host(host("h2", "t"))
    assert store.remove_host("h2", 5.0 + 91 * 86400)
    assert [each.host_id for each in store.hosts()] == ["h2"]  # the older one is forgotten


def test_of_many_that_come_by_one_token_at_once_only_so_many_get_in(store: Store) -> None:
    store.save_token(few := token(uses=3))

    def come(n: int) -> bool:
        try:
            store.admit(host(f"h{n}", few.token_id), 110.0)
        except TokenRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        came = list(threads.map(come, range(16)))
    assert sum(came) == len(store.hosts()) == 3


def test_events_are_numbered_in_order_and_read_in_pages(store: Store) -> None:
    numbers = [
        store.append_event(
            OperatorEvent(kind="instance.ready", model="ab"[n % 2], at_s=float(n), fields={"n": n})
        )
        for n in range(6)
    ]
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert store.last_seq() == 6
    assert [event.seq for event in store.events(2, 3)] == [3, 4, 5]
    assert [event.seq for event in store.events(0, 9, model="a")] == [1, 3, 5]
    assert store.events(6) == store.events(0, 0) == store.events(0, 5, "none") == ()
    assert store.events(0, 1)[0].fields == {"n": 0}


def test_many_events_are_kept_at_once_in_their_order(few_events: int, store: Store) -> None:
    many = few_events + 3
    events = [OperatorEvent(kind=f"k{n}", model="m") for n in range(many)]
    assert store.append_event(*events) == many
    kept = store.events(0, many)
    assert [event.kind for event in kept] == [f"k{n}" for n in range(3, many)]
    assert [event.seq for event in kept] == list(range(4, many + 1))


def test_only_the_newest_events_are_kept_and_numbers_go_on(few_events: int, store: Store) -> None:
    event = OperatorEvent(kind="fetch.progress", model="qwen")
    for _ in range(few_events + 3):
        last = store.append_event(event)
    kept = store.events(0, few_events * 2)
    assert (len(kept), kept[0].seq, kept[-1].seq) == (few_events, 4, last)


def test_epochs_grow_for_each_replica_alone_also_when_the_model_was_forgotten(store: Store) -> None:
    assert [store.next_epoch("a@llm", 0) for _ in range(3)] == [1, 2, 3]
    assert store.next_epoch("a@llm", 1) == store.next_epoch("b@llm", 0) == 1
    store.save_deployment(deployment("a"))
    store.delete_deployment("a", WorkerType.LLM)
    assert store.next_epoch("a@llm", 0) == 4
    assert [store.next_incarnation() for _ in range(2)] == [1, 2]


def test_a_generation_is_remembered_when_its_deployment_is_deleted(store: Store) -> None:
    assert store.last_generation("a", WorkerType.LLM) == 0
    for generation in (7, 9):
        store.save_deployment(deployment("a", generation=generation))
        assert store.delete_deployment("a", WorkerType.LLM)
        assert store.last_generation("a", WorkerType.LLM) == generation
    assert not store.delete_deployment("a", WorkerType.LLM)
    assert store.last_generation("a", WorkerType.LLM) == 9
    assert store.last_generation("a", WorkerType.RERANKER) == 0


HOUR = 1_800_000_000 // DAY_S * DAY_S


def batch(seq: int, *places: tuple[int, str, str], source: str = "g1") -> UsageBatch:
    return UsageBatch(
        source=source,
        seq=seq,
        counts=tuple(
            UsageCount(
                hour_s=HOUR + hour * HOUR_S,
                key_id=key_id,
                model=model,
                requests=2,
                failed=1,
                estimated=1,
                prompt_tokens=10,
                cached_tokens=4,
                completion_tokens=7,
            )
            for hour, key_id, model in places
        ),
    )


def test_usage_adds_up_and_a_batch_counts_once(store: Store) -> None:
    assert store.usage(UsageQuestion()) == ()
    assert store.add_usage(batch(1, (0, "k1", "a"), (0, "k2", "a")))
    assert not store.add_usage(batch(1, (0, "k1", "a"), (0, "k2", "a")))
    assert store.add_usage(batch(2, (1, "k1", "a"), (0, "k1", "b")))
    assert store.add_usage(batch(1, (0, "k1", "a"), source="g2"))
    assert not store.add_usage(batch(1, (0, "k1", "a")))
    rows = store.usage(UsageQuestion())
    assert [(row.key_id, row.model, row.requests) for row in rows] == [
        ("k1", "a", 6),
        ("k1", "b", 2),
        ("k2", "a", 2),
    ]
    assert rows[0] == UsageRow(
        key_id="k1",
        model="a",
        requests=6,
        failed=3,
        estimated=3,
        prompt_tokens=30,
        cached_tokens=12,
        completion_tokens=21,
    )


def test_usage_is_told_by_hour_day_key_and_model_of_what_is_asked_for(store: Store) -> None:
    store.add_usage(batch(1, (0, "k1", "a"), (1, "k1", "b"), (23, "k2", "a"), (24, "k2", "b")))

    def told(**asked: object) -> list[tuple[object, int]]:
        rows = store.usage(UsageQuestion(**asked))  # type: ignore[arg-type]
        return [(row.at_s or row.key_id or row.model, row.requests) for row in rows]

    assert told(by=UsageBy.HOUR) == [(HOUR + n * HOUR_S, 2) for n in (0, 1, 23, 24)]
    assert told(by=UsageBy.DAY) == [(HOUR, 6), (HOUR + DAY_S, 2)]
    assert told(by=UsageBy.KEY) == [("k1", 4), ("k2", 4)]
    assert told(by=UsageBy.MODEL) == [("a", 4), ("b", 4)]
    assert told(by=UsageBy.KEY, model="a") == [("k1", 2), ("k2", 2)]
    assert told(by=UsageBy.MODEL, key_id="k2", since_s=HOUR + 24 * HOUR_S + 1800.0) == [("b", 2)]
    assert told(by=UsageBy.HOUR, until_s=HOUR + HOUR_S) == [(HOUR, 2)]
    assert told(key_id="nobody") == []


SQL = "x'; DROP TABLE deployments; --"


def test_F108_text_that_looks_like_sql_is_only_text(store: Store) -> None:
    key = new_key(["inference"], name=SQL)
    store.save_deployment(deployment("a", params={"p": SQL}, upstream_model=SQL))
    store.save_key(key.stored)
    store.append_event(OperatorEvent(kind=SQL, model=SQL, message=SQL))
    assert store.next_epoch(SQL, 0) == 1
    assert not store.revoke_key(SQL)
    store.add_usage(batch(1, (0, SQL, SQL), source=SQL))
    assert [row.model for row in store.usage(UsageQuestion(key_id=SQL, model=SQL))] == [SQL]
    assert not store.delete_launch(SQL)
    assert store.keys() == (key.stored,)
    assert store.deployments()[0].params == {"p": SQL}
    assert [event.message for event in store.events(model=SQL)] == [SQL]
