"""F05 on a real server: an engine that looks well and says nothing is replaced, after a second look."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler.core.fleet import Doubt
from hostler.core.snapshot import Endpoint
from hostler.testing.cluster import Cluster, fake_model
from hostler.wire.client import Response, fetch
from tests.chaos.pressure import Pressure

CONFIG = "[life]\nbackoff_first_s = 0.1\n[gateway]\nstall_s = 1.0\ncanary_timeout_s = 1.0\n"
DETECT_S = 1.0 + 1.0 + 1.0  # stall, canary, and what looking takes

pytestmark = pytest.mark.slow


def post(socket: Path, path: str, body: Any) -> Response:
    return asyncio.run(
        fetch(
            Endpoint(socket=str(socket)),
            "POST",
            path,
            headers=[(b"content-type", b"application/json")],
            body=msgspec.json.encode(body),
            timeout_s=5,
        )
    )


def test_F05_an_engine_that_says_nothing_is_replaced_and_nobody_sees_it() -> None:
    model = fake_model("echo", replicas=2, tokens=6)
    with Cluster(CONFIG + model) as cluster:
        run = cluster.state_dir / "run"
        (stuck, well) = (i["instance_id"] for i in cluster.ready("echo"))
        # a gateway that lies about a healthy engine achieves nothing
        lie = Doubt(instance_id=well, epoch=1)
        assert post(run / "registry.sock", "/doubt", lie).status == 200
        assert post(run / "registry.sock", "/doubt", Doubt(instance_id=well, epoch=9)).status == 409
        assert post(run / "registry.sock", "/doubt", Doubt(instance_id="x", epoch=1)).status == 410

        def is_gone(instance_id: str) -> bool:
            return instance_id not in {i["instance_id"] for i in cluster.ready("echo")}

        with Pressure(cluster, clients=4, name="half-alive") as pressure:
            assert post(run / f"{stuck}.sock", "/_fake/script", {"hang_at": 0}).status == 200
            cluster.wait_for(
                lambda: is_gone(stuck) and len(cluster.ready("echo")) == 2, 30, "it is replaced"
            )
        pressure.assert_survived(at_least=20)
        assert not is_gone(well)
        events = cluster.json("GET", "/api/v1/events")
        assert "takes requests and answers none" in str(events)
