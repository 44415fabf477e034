"""What `hostler up` does for its two processes when they die again and again, or only look alive."""

import signal
import time

import pytest

from hostler.testing.cluster import Cluster, fake_model

CONFIG = "[life]\nhung_after_s = 3.0\norphan_grace_s = 30.0\n" + fake_model(replicas=1, tokens=3)


@pytest.mark.slow
def test_F03_a_gateway_or_controller_that_hangs_is_ended_and_replaced() -> None:
    with Cluster(CONFIG) as cluster:
        workers = cluster.pids("worker")
        for role in ("gateway", "controller"):
            time.sleep(1.5)  # it has told of itself
            hung = cluster.kill(role, signal.SIGSTOP)
            # The request waits in the listening socket, and the next gateway answers it.
            status, _, _ = cluster.chat("echo", "are you there?")
            assert status == 200
            cluster.wait_for(
                lambda: bool(cluster.pids(role)) and cluster.pids(role) != hung,  # noqa: B023
                30,
                f"another {role}",
            )
            cluster.wait_for(cluster.is_ready, 30, "all is ready")
        assert cluster.pids("worker") == workers
        assert "controller.hangs" in cluster.output.read_text()


@pytest.mark.slow
def test_F25_a_controller_killed_again_and_again_is_back_as_soon_as_the_first_time() -> None:
    with Cluster(CONFIG) as cluster:
        for _ in range(6):
            cluster.wait_for(
                lambda: cluster.answers("/api/v1/status"), 30, "the controller is back"
            )
            time.sleep(0.5)  # it has told of itself: its start is sound
            old = cluster.kill("controller")
            cluster.wait_for(lambda: cluster.pids("controller") not in ([], old), 30, "another one")  # noqa: B023
        cluster.wait_for(cluster.is_ready, 30, "all is ready")
        waits = [
            line for line in cluster.output.read_text().splitlines() if "controller.died" in line
        ]
        assert len(waits) == 6
        assert all("restart_in_s=0.1" in line for line in waits), waits
