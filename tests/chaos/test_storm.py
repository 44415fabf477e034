"""Load while processes are killed: every request has one true end, and every answer is the right one."""

import pytest

from hostler.testing.cluster import Cluster
from hostler.testing.storm import Storm, storm_config


@pytest.mark.slow
def test_F01_F02_F07_F25_F65_in_a_storm_every_story_agrees() -> None:
    cluster = Cluster()
    cluster.config.write_text(storm_config(str(cluster.root)))
    with cluster:
        storm = Storm(cluster, seed=20261122)
        faults = [
            "none",
            "kill a worker",
            "kill an engine",
            "kill the controller",
            "restart a model",
        ]
        rounds = [storm.round(fault, requests=300) for fault in faults]
    for one in rounds:
        assert one.outcomes.get("ok", 0) > 200, one
        assert set(one.outcomes) <= {"ok", "error_event"}, one
    assert rounds[0].outcomes == {"ok": 300}
    assert rounds[3].outcomes == {"ok": 300}
