"""What every store does. Each test runs on each implementation."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostler.app.auth import new_key
from hostler.core.deployment import Deployment, Wish
from hostler.core.fleet import WorkerSpec
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
from hostler.storage.memory import MemoryStore
from hostler.storage.sql import SqlStore
from hostler.storage.store import EVENTS_KEPT, Store

KINDS: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sql": lambda folder: SqlStore(folder / "hostler.db"),
}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = KINDS[request.param](tmp_path)
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


def test_only_the_newest_events_are_kept_and_numbers_go_on(store: Store) -> None:
    event = OperatorEvent(kind="fetch.progress", model="qwen")
    for _ in range(EVENTS_KEPT + 3):
        last = store.append_event(event)
    kept = store.events(0, EVENTS_KEPT * 2)
    assert (len(kept), kept[0].seq, kept[-1].seq) == (EVENTS_KEPT, 4, last)


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
