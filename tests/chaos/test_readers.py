"""F48, B20 in small: clients that do not read cost little memory, and the others nothing."""

import time

import pytest

from hostler.testing.access import in_flight
from hostler.testing.cluster import Cluster, fake_model
from tests.chaos.figures import tell
from tests.chaos.pressure import Pressure, target_of
from tests.chaos.readers import ENDLESS, TOKENS, Readers, client_bytes, has_ss, rss_bytes

READERS = 80
EACH_BYTES = 300 * 1024  # I13
STALL_S = 3.0

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not has_ss(), reason="needs ss, of iproute2")
def test_F48_B20_eighty_readers_that_stall_are_bounded_and_cut_and_harm_nobody() -> None:
    settings = f"[limits]\nwrite_stall_s = {STALL_S}\n"
    models = fake_model(ENDLESS, concurrency=READERS, tokens=TOKENS) + fake_model("echo", tokens=6)
    with Cluster(settings + models) as cluster:
        target = target_of(cluster)
        (gateway,) = cluster.pids("gateway")
        with Pressure(cluster, clients=4, name="before"):
            time.sleep(1.0)
        before = rss_bytes(gateway)
        with (
            Pressure(cluster, clients=4, name="beside") as beside,
            Readers(target, READERS),
        ):
            cluster.wait_for(lambda: in_flight(cluster) >= READERS, 20, "all have begun")
            time.sleep(STALL_S / 2)
            held = rss_bytes(gateway) - before + client_bytes(target.port)
            cluster.wait_for(lambda: in_flight(cluster) <= 4, 20, "all are cut")
        beside.assert_unharmed(at_least=100)
        tell(f"F48 {READERS} readers: {held / 2**20:.1f} MiB, beside them {beside.slowest_s:.2f} s")
        assert held <= READERS * EACH_BYTES
