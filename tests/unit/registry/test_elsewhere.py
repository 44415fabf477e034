"""What other machines are told of the engines here."""

from hostler.core.snapshot import Endpoint, Snapshot
from hostler.registry.elsewhere import at_controller, for_elsewhere
from tests.unit.routing.fleet import instance

HERE = instance("aa", "m", endpoint=Endpoint(socket="/run/aa.sock"))
THERE = instance(
    "bb", "m", endpoint=Endpoint(host="10.0.0.2", port=8102, host_id="host2", prefix="/i/bb")
)
BY_URL = instance("cc", "m", endpoint=Endpoint(host="10.0.0.3", port=80))


def test_no_socket_of_this_machine_is_told_to_another() -> None:
    told = for_elsewhere(Snapshot(version=3, instances=(HERE, THERE, BY_URL)), 8102)
    assert told.version == 3
    assert told.instances[0].endpoint == Endpoint(host_id="controller", port=8102, prefix="/i/aa")
    assert told.instances[1:] == (THERE, BY_URL)


def test_the_controllers_engines_are_where_the_controller_was_reached() -> None:
    told = for_elsewhere(Snapshot(instances=(HERE, THERE, BY_URL)), 8102)
    found = at_controller(told, "10.0.0.1")
    assert found.instances[0].endpoint == Endpoint(
        host="10.0.0.1", port=8102, host_id="controller", prefix="/i/aa"
    )
    assert found.instances[1:] == (THERE, BY_URL)
    assert found.instances[0].endpoint.agent.prefix == "/a/aa"
