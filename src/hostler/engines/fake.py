"""The `fake` engine: an OpenAI server with known answers and faults on order, as a child process.

For tests, demonstrations and benchmarks. What it answers and how it can fail: docs/reference/fake-engine.md.
"""

import msgspec

from hostler.app.environment import own_python
from hostler.core.errors import BadRequest
from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, PrefixReach, WorkerType
from hostler.engines.command import Command, option
from hostler.engines.parameters import FakeParameters
from hostler.engines.process import ProcessEngine

_DIMENSIONS = 8


def fake_command(spec: WorkerSpec) -> Command:
    """Return the command of a fake engine.

    Raises:
        BadRequest: a parameter or the script is no good.
    """
    try:
        given = msgspec.convert(dict(spec.params), FakeParameters)
        script = msgspec.json.decode(given.script or "{}", type=dict)
    except msgspec.DecodeError as error:
        raise BadRequest(f"engine 'fake': {error}", param="params") from error
    script = {"tokens": given.tokens, "delay_ms": given.delay_ms, **script}
    model = given.model or spec.model_name
    argv = [
        *own_python("-m"),
        "hostler.testing.fake_engine",
        option("socket", spec.engine_socket),
        option("model", model),
        option("script", msgspec.json.encode(script).decode()),
    ]
    if given.ledger:
        argv.append(option("ledger", given.ledger))
    return Command(
        argv=tuple(argv),
        upstream_model=model,
        metadata=ModelMetadata(
            model=spec.model_name,
            label="fake engine",
            worker_type=spec.worker_type,
            context_length=4096 if spec.worker_type is WorkerType.LLM else None,
            dimensions=_DIMENSIONS if spec.worker_type is WorkerType.TEXT2VEC else None,
            prefix_reach=PrefixReach(given.prefix_reach),
        ),
        busy_path="/metrics",
        busy_metric="fake:requests_running",
    )


class FakeEngine(ProcessEngine):
    """The fake engine, as the worker runs it."""

    def __init__(self) -> None:
        super().__init__(fake_command)
