"""From a request to a deployment: what is given stays what it is."""

import msgspec
import pytest

from hostler.app.config import ModelConfig
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import Wish
from hostler.core.errors import BadRequest, Conflict
from hostler.core.hosts import Offer
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerStartupRequest
from hostler.engines.base import find_engine
from hostler.manager.resolve import (
    changed,
    check_same,
    check_source,
    joined,
    request_of,
    resolve,
)


def test_a_concurrency_of_nothing_is_refused_not_replaced_by_the_default() -> None:
    request = WorkerStartupRequest(model="smollm2-135m-instruct", concurrency=0)
    with pytest.raises(BadRequest, match="concurrency: need 1 or more, got 0"):
        resolve(request, Catalog())


def test_a_source_that_is_none_is_refused_before_it_is_written_down() -> None:
    request = WorkerStartupRequest(model="mine", source="mine.gguf")
    with pytest.raises(BadRequest, match="say where it is"):
        resolve(request, Catalog())
    with pytest.raises(BadRequest, match="say where it is"):
        check_source(find_engine("llama.cpp"), "mine.gguf")


def test_the_machine_of_a_model_is_part_of_what_was_asked() -> None:
    request = WorkerStartupRequest(model="smollm2-135m-instruct", labels={"gpu": "a100"}, host="b")
    asked = resolve(request, Catalog())
    assert (asked.host, asked.labels) == ("b", {"gpu": "a100"})
    for given, kept in (
        (None, ""),
        ("", ""),
        ("127.0.0.1", "localhost"),
        ("localhost", "localhost"),
    ):
        request = WorkerStartupRequest(model="smollm2-135m-instruct", host=given)
        assert resolve(request, Catalog()).host == kept


def test_another_machine_makes_another_process_necessary() -> None:
    old = resolve(WorkerStartupRequest(model="smollm2-135m-instruct"), Catalog())
    for new in (
        msgspec.structs.replace(old, host="b"),
        msgspec.structs.replace(old, labels={"gpu": "a100"}),
    ):
        assert changed(old, new).process_generation == old.generation + 1


def test_a_config_names_a_machine_as_an_order_does() -> None:
    model = ModelConfig(name="smollm2-135m-instruct", host="b", labels={"gpu": "a100"})
    asked = resolve(request_of(model), Catalog())
    assert (asked.host, asked.labels) == ("b", {"gpu": "a100"})


@pytest.mark.parametrize("labels", [{"": "x"}, {"a": "x" * 200}, {str(n): "" for n in range(40)}])
def test_labels_have_bounds(labels: dict[str, str]) -> None:
    request = WorkerStartupRequest(model="smollm2-135m-instruct", labels=labels)
    with pytest.raises(BadRequest, match="labels: need up to 32"):
        resolve(request, Catalog())


def test_a_server_given_by_url_is_on_no_machine_of_ours() -> None:
    request = WorkerStartupRequest(model="mine", urls=("http://127.0.0.1:1/v1",), host="b")
    with pytest.raises(BadRequest, match="runs where it is"):
        resolve(request, Catalog())


OFFER = Offer(model_name="own", worker_type=WorkerType.LLM, engine="fake")


def test_a_model_that_others_bring_workers_for_has_no_copies_of_our_own() -> None:
    found = joined(OFFER)
    assert (found.origin, found.wanted_instances, found.shown_instances) == ("joined", 0, 1)
    stopped = msgspec.structs.replace(found, wish=Wish.STOPPED)
    assert stopped.shown_instances == 0


def test_what_is_offered_must_be_the_same_model() -> None:
    known = joined(OFFER)
    check_same(known, joined(msgspec.structs.replace(OFFER, concurrency=9)))
    other = joined(msgspec.structs.replace(OFFER, worker_type=WorkerType.TEXT2VEC))
    with pytest.raises(Conflict, match="under another name"):
        check_same(known, other)
    stopped = msgspec.structs.replace(known, wish=Wish.STOPPED)
    with pytest.raises(Conflict, match="was stopped"):
        check_same(stopped, known)


@pytest.mark.parametrize(
    "offer",
    [
        msgspec.structs.replace(OFFER, engine="no-such"),
        msgspec.structs.replace(OFFER, model_name="../up"),
        msgspec.structs.replace(OFFER, params={"no_such": 1}),
        msgspec.structs.replace(OFFER, concurrency=0),
        msgspec.structs.replace(OFFER, engine="openai"),
    ],
)
def test_what_cannot_be_is_not_taken_in(offer: Offer) -> None:
    with pytest.raises(BadRequest):
        joined(offer)
