"""What a relay says of an instance is no error of the engine's."""

import pytest

from hostler.manager.calls import check_relay
from hostler.wire.relay import LOST_FIELD
from hostler.wire.sink import UpstreamLost


def test_an_instance_that_is_not_there_was_not_asked() -> None:
    with pytest.raises(UpstreamLost) as caught:
        check_relay(421, [])
    assert caught.value.refused


def test_F07_an_engine_that_died_with_a_request_counts_as_asked() -> None:
    with pytest.raises(UpstreamLost) as caught:
        check_relay(502, [(b"content-type", b"application/json"), (LOST_FIELD, b"1")])
    assert (caught.value.refused, caught.value.sent_bytes) == (False, True)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 502, 503])
def test_an_error_of_the_engine_is_its_own(status: int) -> None:
    check_relay(status, [(b"content-type", b"application/json")])
