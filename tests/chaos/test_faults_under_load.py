"""Every fault of the table on real processes, while the OpenAI SDK and raw clients load two models at once.

Judged by the ledger: no error for who had no byte, one end for each, the right answer of the right model.
"""

from collections.abc import Iterator

import pytest

from tests.chaos.arena import Arena
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.figures import IS_LONG, tell

pytestmark = pytest.mark.slow(45)

SEED = 20261128


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena(SEED, is_long=IS_LONG) as running:
        yield running


@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if IS_LONG or not fault.is_long],
    ids=lambda fault: fault.name.replace(" ", "-"),
)
def test_F01_F02_F03_F04_F05_F06_F08_F25_F50_F57_F60_F61_F62_F65_no_fault_is_a_client_s(
    arena: Arena, fault: Fault
) -> None:
    story = arena.play(
        fault.name, fault.deed, breaks_streams=fault.breaks_streams, within_s=fault.within_s
    )
    tell(f"{fault.name}: {story}")
    assert story.by_sdk >= 20
