"""Controllers: where a host finds its controller, and the connections to it. It says nothing itself."""

from collections.abc import Callable, Sequence

from hostler.core.snapshot import Endpoint
from hostler.wire.client import Pool


class Controllers:
    """Where the controller may be found: one address, or several of which one serves.

    They are tried in turn, and the one that answered is kept to.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], make_pool: Callable[[Endpoint], Pool]
    ) -> None:
        self._endpoints = list(endpoints)
        self._make_pool = make_pool
        self._pool: Pool | None = None

    @property
    def url(self) -> str:
        """Of the one in use, for what is asked outside of the link."""
        first = self._endpoints[0]
        host = f"[{first.host}]" if ":" in first.host else first.host
        return f"https://{host}:{first.port}"

    def pool(self) -> Pool:
        """Connections to the one in use."""
        if self._pool is None:
            self._pool = self._make_pool(self._endpoints[0])
        return self._pool

    async def failed(self, pool: Pool) -> None:
        """It did not answer: the next one's turn, unless that has come already."""
        if pool is self._pool:
            self._pool = None
            self._endpoints.append(self._endpoints.pop(0))
            await pool.close()

    async def renew(self) -> None:
        """Connect anew, with the certificate of now."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
