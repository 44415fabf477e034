"""What is left when processes die, for how long, and how soon a killed controller is back."""

import time

from bench import machine
from bench.figures import Part, median, spread
from hostler.app.process import tagged
from hostler.manager.workers import INSTANCE_TAG
from hostler.testing.cluster import Cluster, fake_model

INSTANCES = 20
POLL_S = 0.005


def measure(part: Part) -> None:
    """Add the figures of this part: 20 fake engines, the controller killed, then each agent killed."""
    config = "[life]\ncrash_limit = 1000\n\n" + fake_model("echo", replicas=INSTANCES)
    with Cluster(config) as cluster:
        with machine.watch_noise() as noise:
            settled = [restart_controller(cluster) for _ in range(3)]
        part.add(
            f"controller killed, until {INSTANCES} instances are settled",
            median([took_s for took_s, _ in settled]),
            "s",
            noise=noise.others_cores,
            note=f"{spread([took_s for took_s, _ in settled])}; "
            f"{min(kept for _, kept in settled)} of {INSTANCES} adopted",
        )
        with machine.watch_noise() as noise:
            gone = [kill_agent(cluster, instance) for instance in cluster.ready("echo")]
        others = noise.others_cores
        part.add(
            "agent killed, until nothing of it is left",
            median(gone),
            "s",
            noise=others,
            note=f"of {len(gone)}",
        )
        part.add("the same, the longest", max(gone), "s", at_most=2.0, noise=others)


def restart_controller(cluster: Cluster) -> tuple[float, int]:
    """Kill the controller; return seconds until its successor says all are ready, and how many it kept."""
    before = {one["instance_id"] for one in cluster.ready("echo")}
    began_s = time.monotonic()
    killed = set(cluster.kill("controller"))

    def is_settled() -> bool:
        new = set(cluster.pids("controller")) - killed
        return (
            bool(new)
            and cluster.answers("/api/v1/status")
            and len(cluster.ready("echo")) == INSTANCES
        )

    cluster.wait_for(is_settled, 60.0, "the new controller has all instances")
    after = {one["instance_id"] for one in cluster.ready("echo")}
    return time.monotonic() - began_s, len(before & after)


def kill_agent(cluster: Cluster, instance: dict[str, object]) -> float:
    """Kill one agent; return seconds until no process carries its instance's tag."""
    instance_id = str(instance["instance_id"])
    pids = tagged(INSTANCE_TAG, instance_id)
    agents = set(cluster.pids("worker"))
    found = [pid for pid in [*pids, int(str(instance["pid"]))] if pid in agents]
    began_s = time.monotonic()
    cluster.kill_pid(found[0])
    while found[0] in all_alive(pids) or tagged(INSTANCE_TAG, instance_id):
        if time.monotonic() - began_s > 10.0:
            break
        time.sleep(POLL_S)
    return time.monotonic() - began_s


def all_alive(pids: dict[int, str]) -> set[int]:
    """Those that have not ended: a zombie has."""
    return {pid for pid in pids if (found := machine.stat_fields(pid)) and found[0] != "Z"}
