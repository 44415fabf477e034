"""What was acknowledged survives SIGKILL at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from hostler.storage.sql import SqlStore

KILLS = 30

# For each line on stdin a child that opens the store, says its pid, and then what was acknowledged to
# it, one JSON line a write, until it is killed. A child is forked, so that imports are paid for once.
WRITER = """
import json, os, pathlib, sys
from hostler.app.auth import new_key
from hostler.core.deployment import Deployment
from hostler.core.model import WorkerType
from hostler.core.worker import OperatorEvent
from hostler.storage.sql import SqlStore

def say(line):
    os.write(1, json.dumps(line).encode() + b"\\n")

def write():
    say({"pid": os.getpid()})
    store = SqlStore(pathlib.Path(sys.argv[1]))
    run = store.next_incarnation()
    n = 0
    while True:
        n += 1
        name = f"m-{run}-{n}"
        store.save_deployment(Deployment(name=name, worker_type=WorkerType.LLM, engine="e"))
        key = new_key(["inference"], name=name)
        store.save_key(key.stored)
        seq = store.append_event(OperatorEvent(kind="k", message=name))
        epoch = store.next_epoch("m@llm", 0)
        say({"run": run, "name": name, "key": key.view.key_id, "seq": seq, "epoch": epoch})

for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        write()
    os.waitpid(child, 0)
    say({"killed": child})
"""


def test_B32_no_acknowledged_write_is_lost_by_thirty_kills(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    path = tmp_path / "hostler.db"
    SqlStore(path).close()
    told: list[dict[str, str | int]] = []
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd="src", **pipes) as parent:  # type: ignore[call-overload]
        for _ in range(KILLS):
            parent.stdin.write(b"go\n")
            parent.stdin.flush()
            pid = json.loads(parent.stdout.readline())["pid"]
            told += [json.loads(parent.stdout.readline()) for _ in range(chance.randrange(1, 9))]
            os.kill(pid, signal.SIGKILL)
            while "killed" not in (line := json.loads(parent.stdout.readline())):
                told.append(line)
        parent.stdin.close()
    with closing(SqlStore(path)) as store:
        stored = store.keys()
        names = {one.name for one in store.deployments()}
        keys = {one.view.key_id for one in stored}
        messages = {one.seq: one.message for one in store.events(0, 100_000)}
        assert store.next_incarnation() == KILLS + 1, f"seed {seed}"
        assert store.next_epoch("m@llm", 0) > max(int(one["epoch"]) for one in told)
    assert len(told) >= KILLS
    for one in told:
        assert one["name"] in names, f"seed {seed}: {one}"
        assert one["key"] in keys, f"seed {seed}: {one}"
        assert messages[int(one["seq"])] == one["name"], f"seed {seed}: {one}"
    for field in ("epoch", "seq"):
        numbers = [int(one[field]) for one in told]
        assert numbers == sorted(set(numbers)), f"{field} went back or was given twice"
