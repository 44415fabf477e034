"""One started manager an implementation, for all quick tests of the suite."""

from collections.abc import Iterator

import pytest

from tests.conformance.rigs import FAKES, RIGS, Rig, rigs
from tests.leftovers import nothing_is_left_of_the_package as nothing_is_left_of_the_package


@pytest.fixture(scope="package", params=rigs())
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A manager with models of the fake engine and of Python classes."""
    with RIGS[request.param](FAKES) as rig:
        yield rig
