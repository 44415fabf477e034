"""Memory: of `hostler up` without models, and of what an agent adds to its engine."""

import time

from bench import machine
from bench.figures import Part
from hostler.app.process import tagged
from hostler.manager.workers import INSTANCE_TAG
from hostler.testing.cluster import Cluster, fake_model

SETTLE_S = 2.0

# The engine's own process at its barest: the same library, the same file, the same settings, no hostler.
_BARE = {
    "onnx": """
import sys, os, json
import numpy, onnxruntime, tokenizers
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
encoded = tokenizer.encode("warm")
feed = {one.name: numpy.array([encoded.ids]) * (one.name == "input_ids") for one in session.get_inputs()}
session.run(None, feed)
print("ready", flush=True)
sys.stdin.read()
""",
}


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


def measure(part: Part, real: Cluster) -> None:
    """Add all figures of this part. Stops the models of `real` for good."""
    measure_agent(part)
    measure_idle(part, real)
