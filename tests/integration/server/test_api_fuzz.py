"""The short form of B26: a few good and bad requests for each operation; the soak sends a thousand."""

from collections import Counter

import pytest

from hostler.testing.cluster import Cluster, fake_model
from tests.fuzz.api import hammer

EXAMPLES = 2


@pytest.mark.slow
def test_F94_what_the_document_describes_and_what_it_does_not_is_answered_and_never_a_5xx() -> None:
    with Cluster(fake_model("echo")) as cluster:
        document = cluster.json("GET", "/api/v1/openapi.json")
        told = hammer(cluster.url, cluster.admin_key, "echo", document, EXAMPLES, number=1)
        statuses: Counter[str] = Counter()
        for words, count in told.items():
            statuses[words.rsplit(" ", 1)[1]] += count
        assert statuses["200"] > 10
        assert statuses["400"] > 10
        assert not [status for status in statuses if status.startswith("5")]
