"""From a request to a deployment: what is given stays what it is."""

import pytest

from hostler.catalog.catalog import Catalog
from hostler.core.errors import BadRequest
from hostler.core.worker import WorkerStartupRequest
from hostler.manager.resolve import resolve


def test_a_concurrency_of_nothing_is_refused_not_replaced_by_the_default() -> None:
    request = WorkerStartupRequest(model="smollm2-135m-instruct", concurrency=0)
    with pytest.raises(BadRequest, match="concurrency: need 1 or more, got 0"):
        resolve(request, Catalog())
