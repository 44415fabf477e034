"""Looks at instances, models and parameters: the same of every implementation, and free."""

import pytest

from hostler import WorkerRunData
from hostler.core.errors import ModelNotFound
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from tests.conformance.rigs import Rig

LLM, TEXT2VEC, RERANKER = WorkerType.LLM, WorkerType.TEXT2VEC, WorkerType.RERANKER


def test_the_instances_of_a_model(rig: Rig) -> None:
    found = rig.run(lambda: rig.manager.get_model_instances(LLM, "echo"))
    assert [data.replica for data in found] == [0, 1]
    for data in found:
        assert (data.worker_key, data.model_name, data.worker_type) == ("echo@llm", "echo", LLM)
        assert (data.state, data.stopped, data.engine) == (State.READY, False, "fake")
        assert data.limit_model_concurrency == 4
        assert data.pid is not None
        assert data.print_key == f"model echo@llm({data.host}:{data.port})"
        assert data.last_heartbeat_s is not None
        assert data.command_args
    assert len({data.instance_id for data in found}) == 2


def test_an_alias_is_looked_up_as_the_model_it_means(rig: Rig) -> None:
    by_alias = rig.run(lambda: rig.manager.get_model_instances(LLM, "parrot"))
    assert {data.model_name for data in by_alias} == {"echo"}
    chosen = rig.run(lambda: rig.manager.select_one_instance(LLM, "parrot"))
    assert chosen.model_name == "echo"


@pytest.mark.parametrize(
    ("worker_type", "name"),
    [(LLM, "nobody"), (TEXT2VEC, "echo"), (LLM, ""), (LLM, "../x"), (LLM, "a b?&=%")],
)
def test_a_name_without_instances_gives_none(rig: Rig, worker_type: WorkerType, name: str) -> None:
    assert rig.run(lambda: rig.manager.get_model_instances(worker_type, name)) == []
    assert rig.run(lambda: rig.manager.get_model_instances(worker_type, name, False)) == []


def test_the_instances_of_all_models_of_a_type(rig: Rig) -> None:
    names = {
        worker_type: {
            data.model_name
            for data in rig.run(lambda kind=worker_type: rig.manager.get_all_model_instances(kind))  # type: ignore[misc]
        }
        for worker_type in WorkerType
    }
    assert names[LLM] == {"echo", "single", "talker"}
    assert names[TEXT2VEC] == {"vectors", "py-vectors"}
    assert names[RERANKER] == {"ranks", "py-ranks"}
    assert names[WorkerType.AUDIO] == set()


def test_selection_is_one_that_serves_now_and_takes_turns(rig: Rig) -> None:
    async def main() -> list[WorkerRunData]:
        return [await rig.manager.select_one_instance(LLM, "echo") for _ in range(4)]

    for data in rig.run(main):
        assert (data.model_name, data.state, data.stopped) == ("echo", State.READY, False)


def test_selection_of_what_is_not_there_is_not_found(rig: Rig) -> None:
    for worker_type, name in ((LLM, "nobody"), (TEXT2VEC, "echo")):
        with pytest.raises(ModelNotFound):
            rig.run(lambda kind=worker_type, name=name: rig.manager.select_one_instance(kind, name))  # type: ignore[misc]


def test_looking_for_unknown_models_leaves_nothing_behind(rig: Rig) -> None:
    async def table() -> list[tuple[str, str]]:
        found = [
            (data.worker_key, data.instance_id)
            for kind in WorkerType
            for data in await rig.manager.get_all_model_instances(kind, healthy_only=False)
        ]
        return sorted(found)

    async def main() -> None:
        before = await table()
        for number in range(50):
            name = f"nobody-{number}"
            assert await rig.manager.get_model_instances(LLM, name, False) == []
            for work in (
                rig.manager.select_one_instance(LLM, name, False),
                rig.manager.get_model_metadata({"model": name}),
                rig.manager.count_token({"model": name, "prompt": "a"}),
                rig.manager.parameter_descriptions(LLM, name),
                rig.manager.generate({"model": name, "prompt": "a"}),
            ):
                with pytest.raises(ModelNotFound):
                    await work
        assert await table() == before

    rig.run(main)


def test_what_can_be_started_here(rig: Rig) -> None:
    found = {one.model: one for one in rig.run(rig.manager.supported_models)}
    chat = found["smollm2-135m-instruct"]
    assert (chat.worker_type, chat.engine) == (LLM, "llama.cpp")
    assert chat.memory_bytes
    assert "context_length" in {one.name for one in chat.params}
    assert found["bge-small-en-v1.5"].worker_type is TEXT2VEC


def test_parameters_are_described_for_models_that_run_and_that_do_not(rig: Rig) -> None:
    async def main() -> None:
        running = {d.name: d for d in await rig.manager.parameter_descriptions(LLM, "echo")}
        assert running["tokens"].type == "integer"
        assert (running["tokens"].default, running["tokens"].minimum) == (16, 0)
        assert running["tokens"].label == "Tokens"
        assert running["tokens"].unit == "tokens"
        not_started = {
            d.name: d
            for d in await rig.manager.parameter_descriptions(LLM, "smollm2-135m-instruct")
        }
        assert not_started["context_length"].help
        with pytest.raises(ModelNotFound):
            await rig.manager.parameter_descriptions(LLM, "nobody")

    rig.run(main)
