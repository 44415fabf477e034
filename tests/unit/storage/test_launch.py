"""The record of a process: it knows the worker's secret without holding it."""

import msgspec
import pytest

from hostler.core.fleet import WorkerSpec
from hostler.core.launch import Launch, order
from hostler.core.model import WorkerType

SPEC = WorkerSpec(
    instance_id="i1",
    epoch=4,
    secret="s3cret",
    model_name="qwen",
    worker_type=WorkerType.LLM,
    engine="llama.cpp",
    engine_socket="/r/i1.sock",
    agent_socket="/r/i1.agent",
    registry_socket="/r/registry.sock",
)


def test_a_launch_proves_the_secret_and_does_not_hold_it() -> None:
    launch = order(SPEC, worker_key="qwen@llm", replica=1, generation=2, started_at_s=9.0)
    assert launch.proves("s3cret")
    assert not launch.proves("")
    assert b"s3cret" not in msgspec.json.encode(launch)
    assert (launch.instance_id, launch.epoch, launch.replica, launch.pid) == ("i1", 4, 1, None)
    assert msgspec.json.decode(msgspec.json.encode(launch), type=Launch) == launch


def test_a_specification_with_its_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="plain secret"):
        Launch(
            instance_id="i1",
            worker_key="qwen@llm",
            replica=0,
            epoch=1,
            generation=1,
            secret_hash="",
            spec=SPEC,
        )
