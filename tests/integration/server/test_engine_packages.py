"""Engines of other packages: built, installed beside ours, used by a real server; broken ones told of."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.app.config import child_environment
from hostler.testing.cluster import Cluster

GOOD = """
from typing import Annotated
from msgspec import Meta
from hostler import EngineKind, ModelMetadata, ModelOutput, ModelWorker, WorkerType
from hostler.core.model import ModelParameters

class AcmeParameters(ModelParameters, frozen=True, kw_only=True):
    loudness: Annotated[int, Meta(title="Loudness", description="How loud.", ge=1, le=9,
                                  extra={"unit": "marks"})] = 1
    licence: Annotated[str, Meta(title="Licence", description="Its key.",
                                 extra={"secret": True})] = ""

class Shout(ModelWorker):
    def load(self, spec):
        self.loudness = spec.params.get("loudness", 1)
        return ModelMetadata(model=spec.model_name)

    def generate_stream(self, request):
        text = request.messages[-1]["content"].upper() + "!" * self.loudness
        yield ModelOutput(text=text, finish_reason="stop")

    def count_token(self, prompt):
        return len(prompt)

KIND = EngineKind(name="acme", description="Shouts.", worker_types=(WorkerType.LLM,),
                  parameters=AcmeParameters, implementation="acme_engine:Shout", needs_files=False)
"""
BROKEN = "raise RuntimeError('built for another machine')\n"
THIEF = GOOD.replace('name="acme"', 'name="llama.cpp"')


def install(folder: Path, name: str, code: str) -> None:
    """Build a wheel of one module with one entry point, and install it into a folder with pip."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    files = {
        f"{module}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[hostler.engines]\n{name} = {module}:KIND\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*argv, "--target", str(folder / "site"), str(wheel)], check=True, timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packages")
    install(folder, "acme-engine", GOOD)
    install(folder, "broken-engine", BROKEN)
    install(folder, "thief-engine", THIEF)
    here = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(folder / "site"), *([here] if here else [])])


@pytest.fixture(scope="module")
def cluster(site: str) -> Iterator[Cluster]:
    model = '[[models]]\nname = "loud"\ntype = "llm"\nengine = "acme"\n'
    params = '[models.params]\nloudness = 3\nlicence = "hush-1"\n'
    with Cluster(model + params, env={"PYTHONPATH": site}) as made:
        yield made


def run(cluster: Cluster, site: str, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hostler", *words, f"--state-dir={cluster.state_dir}"],
        env=child_environment({"PYTHONPATH": site}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def said(answer: tuple[int, dict[str, str], bytes]) -> Any:
    assert answer[0] == 200, answer
    return json.loads(answer[2])["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_an_engine_of_another_package_serves_like_one_of_ours(cluster: Cluster, site: str) -> None:
    assert said(cluster.chat("loud", "hey")) == "HEY!!!"
    assert cluster.json("POST", "/tokenize", {"model": "loud", "prompt": "four"})["count"] == 4
    supported = cluster.json("GET", "/api/v1/supported-models")
    (row,) = [one for one in supported["models"] if one["engine"] == "acme"]
    assert row["model"] == "acme"
    assert [one["name"] for one in row["params"]] == ["loudness", "licence"]
    assert any(one["model"] == "smollm2-135m-instruct" for one in supported["models"])
    code, _, err = run(cluster, site, "model", "start", "acme", "--loudness=9")
    assert code == 0, err
    assert said(cluster.chat("acme", "a")) == "A!!!!!!!!!"
    code, _, err = run(cluster, site, "model", "start", "x", "--engine=acme", "--loudness=10")
    assert (code, "at most 9 marks" in err) == (2, True)
    schemas = cluster.json("GET", "/api/v1/openapi.json")["components"]["schemas"]
    assert schemas["AcmeParameters"]["properties"]["loudness"]["x-unit"] == "marks"
    assert schemas["AcmeParameters"]["properties"]["licence"]["writeOnly"] is True
    assert run(cluster, site, "model", "stop", "acme", "--delete")[0] == 0


@pytest.mark.slow
def test_broken_packages_are_told_of_in_one_line_and_harm_nobody(
    cluster: Cluster, site: str
) -> None:
    problems = cluster.json("GET", "/api/v1/supported-models")["problems"]
    assert len(problems) == 2
    assert "broken-engine 1.0: RuntimeError: built for another machine" in problems[0]
    assert "belongs to an engine of Hostler's own" in problems[1]
    code, out, err = run(cluster, site, "model", "list", "--all")
    assert code == 0
    assert "acme" in out
    assert [line for line in err.splitlines() if "built for another machine" in line]
    _, out, _ = run(cluster, site, "doctor", "--offline")
    (line,) = [one for one in out.splitlines() if one.startswith("warn  engines")]
    assert "built for another machine" in line


@pytest.mark.slow
def test_a_secret_is_shown_nowhere(cluster: Cluster, site: str) -> None:
    answers = [
        run(cluster, site, "model", "show", "loud"),
        run(cluster, site, "model", "show", "loud", "--json"),
        run(cluster, site, "model", "list", "--json"),
        run(cluster, site, "ps", "--json"),
        run(cluster, site, "events", "--json"),
        run(cluster, site, "model", "start", "loud", "--engine=acme", "--licence=hush-2"),
        run(cluster, site, "model", "start", "y", "--engine=acme", "--help"),
    ]
    assert answers[5][0] == 6, answers[5]  # a conflict: it runs with another one
    for code, out, err in answers:
        assert "hush" not in out + err, (code, out, err)
    assert '"***"' in answers[1][1]
    update = run(cluster, site, "model", "update", "loud", "--licence=hush-3", "--loudness=2")
    assert update[0] == 0, update
    assert "hush" not in update[1] + update[2]
    assert said(cluster.chat("loud", "hey")) == "HEY!!"
    logs = "".join(path.read_text() for path in (cluster.state_dir / "logs").glob("*.log"))
    assert "hush" not in logs + cluster.output.read_text()
