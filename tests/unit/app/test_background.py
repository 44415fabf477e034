"""The list of background tasks is whole, and a fault reaches the task where it waits."""

import ast
import asyncio
from pathlib import Path

import pytest

from hostler.app.background import FAULTS_VARIABLE, Background, InjectedFault, begin

SRC = Path(__file__).parents[3] / "src" / "hostler"
# Tasks that end with one request, one order, one instance or one wait; each has its own boundary, or
# its end is awaited by who began it.
PASSING = {
    "admin.gone",
    "admin.hold",
    "admin.stream",
    "agent.hasten",
    "agent.lending",
    "agent.stop",
    "canary",
    "control.join",
    "files.beat",
    "gateway.close",
    "gateway.drain",
    "gateway.hasten",
    "gateway.idle",
    "hasten",
    "host.offer",
    "host.renew",
    "hosts.ask",
    "load",
    "loan",
    "probe",
    "probe.host",
    "ray.dismiss",
    "ray.keep",
    "registry.hold",
    "registry.usage",
    "registry.watch",
    "relay.log",
    "relay.sweep",
    "renew gateways",
    "request",
    "requests",
    "settle",
    "silence.ask",
    "silence.token",
    "stop",
    "supervisor.exit",
    "supervisor.pulse",
    "tokenize",
    "wire.asgi",
    "wire.connect",
    "wire.open",
}


def test_F83_every_task_is_listed_or_known_to_pass() -> None:
    named: set[str] = set()
    for path in SRC.rglob("*.py"):
        if "testing" in path.parts or path.name == "background.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "create_task":
                continue
            for keyword in node.keywords:
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    named.add(str(keyword.value.value))
    assert named == PASSING


def test_F83_each_is_begun_in_one_place() -> None:
    text = "\n".join(path.read_text() for path in SRC.rglob("*.py"))
    for name in Background:
        assert text.count(f"Background.{name.name}, ") == 1, name


def test_F83_a_fault_is_raised_where_the_task_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, str(tmp_path))
    (tmp_path / Background.SWEEP.value).touch()
    met: list[BaseException] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except InjectedFault as error:
            met.append(error)
            raise

    async def main() -> None:
        other = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, Background.SWEEP, work())
            await other.wait()

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [type(error) for error in caught.value.exceptions] == [InjectedFault]
    assert len(met) == 1


def test_F83_a_cancelled_task_is_only_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, str(tmp_path))

    async def main() -> str:
        async with asyncio.TaskGroup() as tasks:
            task = begin(tasks, Background.SWEEP, asyncio.Event().wait())
            quick = begin(tasks, Background.PROBE, asyncio.sleep(0, "done"))
            assert await quick == "done"
            task.cancel()
        assert task.cancelled()
        return "left"

    assert asyncio.run(main()) == "left"
