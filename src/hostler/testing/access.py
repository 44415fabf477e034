"""What a running server's gateways say of their own work: the access log, and what is in flight."""

import json
import re
import time
from collections.abc import Set
from typing import Any

import msgspec

from hostler.testing.cluster import Cluster
from hostler.testing.ledger import AccessLine

LOGGED_S = 5.0
_IN_FLIGHT = re.compile(r"^hostler_in_flight(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_REQUEST_ID = re.compile(r'"request_id": ?"([^"]*)"')


def in_flight(cluster: Cluster) -> float:
    """The gateway's own count of requests under way."""
    _, _, text = cluster.request("GET", "/metrics")
    values = _IN_FLIGHT.findall(text.decode())
    assert values, "the gateway's /metrics has no hostler_in_flight"
    return sum(float(value) for value in values)


def access_lines(cluster: Cluster, asked: Set[str]) -> list[AccessLine]:
    """What the gateways wrote down of these requests; needs `log_json = true`.

    They hold lines back to write many at once: waits for those that are missing, up to LOGGED_S. The
    oracle judges what has come.
    """
    ends_at_s = time.monotonic() + LOGGED_S
    while True:
        found = _logged(cluster, asked)
        if {line.request_id for line in found} >= asked or time.monotonic() > ends_at_s:
            return found
        time.sleep(0.05)


# Private


def _logged(cluster: Cluster, asked: Set[str]) -> list[AccessLine]:
    found = []
    for log in (cluster.state_dir / "logs").glob("gateway*.log"):
        for line in log.read_text(errors="replace").splitlines():
            told = _REQUEST_ID.search(line)
            if told is None or told[1] not in asked:
                continue
            fields: Any = json.loads(line[line.index("{") :])
            if "status" in fields:
                found.append(msgspec.convert(fields, AccessLine))
    return found
