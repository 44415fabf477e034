"""Who is probed: servers given by URL always, instances of ours when something speaks for it."""

import msgspec

from hostler.app.config import GatewayConfig
from hostler.core.change import Change
from hostler.core.lifecycle import State
from hostler.core.snapshot import Endpoint
from hostler.gateway.probes import Prober
from hostler.routing.router import Router
from tests.unit.routing.fleet import instance, model


def test_one_of_ours_that_has_no_endpoint_yet_is_no_server_given_by_url() -> None:
    router = Router()
    prober = Prober(GatewayConfig(), router, lambda one: None, lambda one: None)
    server = instance("url", endpoint=Endpoint(host="127.0.0.1", port=1))
    starting = instance("ours", endpoint=Endpoint(), state=State.STARTING)
    ready = msgspec.structs.replace(
        starting, state=State.READY, endpoint=Endpoint(socket="/nowhere/ours.sock")
    )
    for change in (
        Change(version=1, models=(model("m"),), instances=(server, starting)),
        Change(since=1, version=2, instances=(ready,)),
    ):
        router.take(change)
        prober.take(change)
    assert [one.instance_id for one in prober._doubted()] == ["url"]
    router.note_probe("ours", False)
    router.health.failed("ours")
    assert {one.instance_id for one in prober._doubted()} == {"url", "ours"}
    gone = Change(since=2, version=3, gone=("url", "ours"))
    router.take(gone)
    prober.take(gone)
    assert prober._doubted() == []
