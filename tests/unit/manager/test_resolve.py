"""From a request to a deployment: what is given stays what it is."""

import pytest

from hostler.catalog.catalog import Catalog
from hostler.core.errors import BadRequest
from hostler.core.worker import WorkerStartupRequest
from hostler.engines.base import find_engine
from hostler.manager.resolve import check_source, resolve


def test_a_concurrency_of_nothing_is_refused_not_replaced_by_the_default() -> None:
    request = WorkerStartupRequest(model="smollm2-135m-instruct", concurrency=0)
    with pytest.raises(BadRequest, match="concurrency: need 1 or more, got 0"):
        resolve(request, Catalog())


def test_a_source_that_is_none_is_refused_before_it_is_written_down() -> None:
    request = WorkerStartupRequest(model="mine", source="mine.gguf")
    with pytest.raises(BadRequest, match="say where it is"):
        resolve(request, Catalog())
    with pytest.raises(BadRequest, match="say where it is"):
        check_source(find_engine("llama.cpp"), "mine.gguf")
