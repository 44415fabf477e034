"""Memory: of `hostler up` without models, and of what an agent adds to its engine."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import machine
from bench.engines import CHAT_MODEL, EMBED_MODEL, TEXT, Door, UnixConnection, stream_tokens
from bench.figures import Part
from hostler.app.config import engine_environment
from hostler.app.process import tagged
from hostler.catalog.catalog import Catalog
from hostler.catalog.sources import is_present
from hostler.engines.parameters import LlamaParameters
from hostler.engines.threads import thread_count
from hostler.manager.workers import INSTANCE_TAG
from hostler.testing.cluster import Cluster, fake_model

SETTLE_S = 2.0


def measure_idle(part: Part, cluster: Cluster) -> None:
    """Add the memory of up, controller and gateway after a start at which no model is wished."""
    for model in cluster.json("GET", "/api/v1/models")["models"]:
        cluster.json("DELETE", f"/api/v1/models/{model['name']}")
    cluster.wait_for(lambda: not cluster.pids("worker"), 60.0, "every worker has stopped")
    cluster.stop()
    cluster.start()
    time.sleep(SETTLE_S)
    total = [0.0, 0.0]
    parts = []
    for role in ("up", "controller", "gateway"):
        rss, pss = machine.memory_mb(cluster.pids(role))
        total = [total[0] + rss, total[1] + pss]
        parts.append(f"{role} {pss:.0f}")
    part.add("hostler up without models, PSS", total[1], "MB", at_most=150, note=", ".join(parts))
    part.add("hostler up without models, RSS", total[0], "MB", note="shared pages counted in each")


def measure_agent(part: Part) -> None:
    """Add the memory of the agent of an engine that is a process of its own."""
    with Cluster(fake_model("echo")) as cluster:
        time.sleep(SETTLE_S)
        instance = cluster.ready("echo")[0]
        agents = set(cluster.pids("worker"))
        pids = set(tagged(INSTANCE_TAG, instance["instance_id"])) | {instance["pid"]}
        rss, pss = machine.memory_mb(pids & agents)
        part.add(
            "agent of a process engine, PSS",
            pss,
            "MB",
            at_most=60,
            note=f"{len(pids & agents)} process",
        )
        part.add("agent of a process engine, RSS", rss, "MB")
        rest = pids - agents
        part.add(
            "its fake engine and warden, PSS",
            machine.memory_mb(rest)[1],
            "MB",
            note=f"{len(rest)} processes",
        )


def measure_in_process(part: Part, cluster: Cluster) -> None:
    """Add what the agent adds to an engine in its own process: the worker beside the engine alone.

    RSS, because the two share their libraries' pages while both run. Each has worked once.
    """
    cluster.json("POST", "/v1/embeddings", {"model": EMBED_MODEL, "input": TEXT})
    cluster.chat(CHAT_MODEL, "Hello.", max_tokens=8)
    folder = Path(tempfile.mkdtemp(prefix="hst-bare", dir="/tmp"))
    models = cluster.state_dir / "models"
    onnx, llama = _file(EMBED_MODEL, models), _file(CHAT_MODEL, models)
    if onnx.is_dir():
        onnx = next(onnx.rglob("*.onnx"))
    if llama.is_dir():
        llama = next(llama.rglob("*.gguf"))
    socket, default = folder / "b.sock", LlamaParameters()
    set_ = cluster.ready(CHAT_MODEL)[0]
    told = {**_numbers(default), **set_["model_params"]}
    jobs: tuple[tuple[str, str, dict[str, object]], ...] = (
        (
            EMBED_MODEL,
            "onnx",
            {"model": str(onnx), "tokenizer": str(_tokenizer(onnx)), "text": TEXT},
        ),
        (
            CHAT_MODEL,
            "llama.cpp",
            {
                **told,
                "model": str(llama),
                "socket": str(socket),
                "slots": set_["limit_model_concurrency"],
            },
        ),
    )
    for name, engine, given in jobs:
        given["threads"] = thread_count(int(told["threads"]))
        pid = cluster.ready(name)[0]["pid"]
        worker_mb = machine.memory_mb([pid])[0]
        alone_mb = _alone_mb(engine, given, socket)
        part.add(
            f"agent around {engine}, RSS",
            worker_mb - alone_mb,
            "MB",
            at_most=60,
            note=f"worker {worker_mb:.0f} - engine alone {alone_mb:.0f}",
        )


def measure(part: Part, real: Cluster) -> None:
    """Add all figures of this part. Stops the models of `real` for good."""
    measure_agent(part)
    measure_in_process(part, real)
    measure_idle(part, real)


# Private


def _file(model: str, models_dir: Path) -> Path:
    found = is_present(Catalog().require(model).source, models_dir)
    if found is None:
        raise RuntimeError(f"the files of {model} are not here")
    return found


def _tokenizer(onnx: Path) -> Path:
    near = [folder / "tokenizer.json" for folder in (onnx.parent, onnx.parent.parent)]
    return next(path for path in near if path.exists())


def _numbers(parameters: LlamaParameters) -> dict[str, int]:
    names = ("threads", "context_length", "batch_size", "ubatch_size", "prompt_cache_bytes")
    return {name: getattr(parameters, name) for name in names}


def _alone_mb(engine: str, given: dict[str, object], socket: Path) -> float:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.bare", engine, json.dumps(given)],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=engine_environment({"OMP_WAIT_POLICY": "passive"}),
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise RuntimeError(f"{engine} alone did not start")
        if engine == "llama.cpp":
            stream_tokens(Door(lambda: UnixConnection(str(socket), 60), {}), "Hello.", 8)
        time.sleep(SETTLE_S)
        return machine.memory_mb([process.pid])[0]
    finally:
        machine.end(process)
