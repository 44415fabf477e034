"""A person's own class as a model of a real server: as the docs show it, and as badly as it can be."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hostler.app.config import child_environment
from hostler.testing.cluster import Answer, Cluster, fake_model
from hostler.testing.load import Outcome, Seen, Target, run_load

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "python-worker.md"
PYTHON = ("--type", "llm", "--engine", "python", "--worker-class")
LIFE = "[life]\ndrain_timeout_s = 2.0\nkill_grace_s = 1.0\n"

BAD = """
import asyncio, ctypes, os, time
from hostler import ModelMetadata, ModelOutput, ModelWorker

class Bad(ModelWorker):
    def load(self, spec):
        return ModelMetadata(model=spec.model_name)

    def generate_stream(self, request):
        deed = request.messages[-1]["content"].split()[0]
        if deed == "raise":
            raise RuntimeError("the prompt was: raise")
        if deed == "exit":
            os._exit(7)
        if deed == "crash":
            ctypes.string_at(0)
        if deed == "eat":
            bytearray(8 << 30)
        if deed == "block":
            time.sleep(2)
        yield ModelOutput(text="fine", finish_reason="stop")

class BlocksLoop(Bad):
    async def generate_stream(self, request):
        time.sleep(600)
        yield ModelOutput(text="never")
"""


def bad_model(name: str, class_name: str, folder: Path) -> str:
    return (
        f'[[models]]\nname = "{name}"\ntype = "llm"\nengine = "python"\nconcurrency = 2\n'
        f'[models.params]\nworker_class = "bad:{class_name}"\npython_path = "{folder}"\n'
        f"memory_limit_bytes = {4 << 30}\n"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("classes")
    (made / "bad.py").write_text(BAD)
    (made / "broken.py").write_text("import no_such_module_anywhere\n")
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    models = bad_model("bad", "Bad", folder) + bad_model("stuck", "BlocksLoop", folder)
    with Cluster(LIFE + fake_model("echo", tokens=6) + models) as made:
        yield made


def hostler(cluster: Cluster, folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a command of `hostler` in a folder, as a person would."""
    done = subprocess.run(
        [sys.executable, "-m", "hostler", *words, f"--state-dir={cluster.state_dir}"],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_example_of_the_docs_runs_as_it_is_written(cluster: Cluster, tmp_path: Path) -> None:
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "mine.py").write_text(code)
    (typed,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    assert "$ hostler model start mine --type llm --engine python --worker-class" in typed
    start = [
        "model",
        "start",
        "mine",
        "--type",
        "llm",
        "--engine",
        "python",
        "--worker-class",
        "mine:Backwards",
        "--options",
    ]
    code_, _, err = hostler(cluster, tmp_path, *start, '{"joint": "-"}')
    assert code_ == 0, err
    told, out, err = hostler(cluster, tmp_path, "chat", "mine", "one two three")
    assert (told, out.strip()) == (0, typed.splitlines()[-1]), err
    status, _, body = cluster.chat("mine", "one two three", stream=True, max_tokens=2)
    assert status == 200
    assert b'"finish_reason":"length"' in body
    assert body.rstrip().endswith(b"[DONE]")
    vectors = cluster.json("POST", "/v1/embeddings", {"model": "mine", "input": ["ab", "abc"]})
    assert [one["embedding"] for one in vectors["data"]] == [[2.0, 1.0], [3.0, 1.0]]
    assert cluster.json("POST", "/tokenize", {"model": "mine", "prompt": "a b c"})["count"] == 3
    assert hostler(cluster, tmp_path, "model", "stop", "mine", "--delete")[0] == 0


@pytest.mark.slow
def test_a_class_that_cannot_be_imported_says_why_and_where(cluster: Cluster, folder: Path) -> None:
    cases = {
        "broken:Any": ("ModuleNotFoundError", "no_such_module_anywhere", "broken.py"),
        "missing:Any": ("No module named 'missing'", str(folder)),
    }
    start = [
        "model",
        "start",
        "wrong",
        "--type",
        "llm",
        "--engine",
        "python",
        "--timeout",
        "20",
        "--worker-class",
    ]
    for named, reasons in cases.items():
        code, _, err = hostler(cluster, folder, *start, named)
        assert code == 1, err
        for reason in reasons:
            assert reason in err, err
        assert hostler(cluster, folder, "model", "stop", "wrong", "--delete")[0] == 0


@pytest.mark.slow
def test_a_bad_class_harms_no_other_model(cluster: Cluster) -> None:
    answers: dict[str, Answer] = {}

    async def misbehave() -> None:
        ask = asyncio.to_thread
        for deed in ("raise", "eat", "block"):
            answers[deed] = await ask(cluster.chat, "bad", deed)
        answers["still"] = await ask(cluster.chat, "bad", "fine")
        stuck = asyncio.ensure_future(ask(_quietly_stuck, cluster))
        for deed in ("exit", "crash"):
            answers[deed] = await ask(cluster.chat, "bad", deed)
            await ask(cluster.wait_for, lambda: _is_fine(cluster), 30.0, f"it is back after {deed}")
        await stuck

    async def main() -> list[Seen]:
        address = urlsplit(cluster.url)
        target = Target(
            port=address.port or 0, headers={"authorization": f"Bearer {cluster.admin_key}"}
        )
        seen: list[Seen] = []
        deeds = asyncio.ensure_future(misbehave())
        round_ = 0
        while not deeds.done():
            round_ += 1
            seen += await run_load(
                target, models=["echo"], clients=4, requests=40, seed=round_, pause_s=0.02
            )
        await deeds
        return seen

    seen = asyncio.run(main())
    assert len(seen) >= 40
    assert [one for one in seen if one.outcome is not Outcome.OK] == []
    status, _, body = answers["raise"]
    assert status == 500
    assert json.loads(body)["error"]["message"].endswith("RuntimeError")
    assert b"the prompt was" not in body
    assert answers["eat"][0] == 500
    assert b"MemoryError" in answers["eat"][2]
    assert answers["block"][0] == answers["still"][0] == 200
    for deed in ("exit", "crash"):
        assert answers[deed][0] >= 500


def _is_fine(cluster: Cluster) -> bool:
    return cluster.chat("bad", "fine")[0] == 200


def _quietly_stuck(cluster: Cluster) -> None:
    """Block a worker's event loop; the manager must see that it has fallen silent."""
    with pytest.raises(TimeoutError):
        cluster.request(
            "POST",
            "/v1/chat/completions",
            {"model": "stuck", "messages": [{"role": "user", "content": "now"}]},
            timeout_s=1.0,
        )
    cluster.wait_for(lambda: not cluster.ready("stuck"), 30.0, "the stuck one is not ready")
