"""The operations on hosts: what is asked reaches the control plane, and what it says comes back."""

import asyncio
from pathlib import Path

from hostler.core.hosts import Standing
from tests.unit.admin.plane import Plane


def test_hosts_are_listed_drained_and_removed(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        listed = await plane.ask("GET", "/api/v1/hosts")
        assert [one["host_id"] for one in listed.json["hosts"]] == ["id-b"]
        shown = await plane.ask("GET", "/api/v1/hosts/b")
        assert (shown.json["host"]["standing"], shown.json["instances"]) == ("alive", [])
        drained = await plane.ask("POST", "/api/v1/hosts/b/drain", {})
        assert drained.json["standing"] == Standing.DRAINING
        back = await plane.ask("POST", "/api/v1/hosts/b/drain", {"draining": False})
        assert back.json["standing"] == Standing.ALIVE
        assert (await plane.ask("DELETE", "/api/v1/hosts/b")).status == 409
        assert (await plane.ask("DELETE", "/api/v1/hosts/b?force=true")).status == 200
        assert (await plane.ask("GET", "/api/v1/hosts/nobody")).status == 404

    asyncio.run(main())
