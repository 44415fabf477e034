"""Joinable: the part of a manager that lets other machines in, and says which are here.

Not here: the port they join at (`control_port.py`), and what runs on them (`machines.py`).
"""

import time

from hostler.app.tokens import DAY_S, LONGEST_S, StoredToken, new_token
from hostler.core.errors import BadRequest, Conflict, NotFound
from hostler.core.hosts import CreatedToken, HostView, Role
from hostler.core.worker import OperatorEvent
from hostler.manager.base import twin
from hostler.manager.control_port import ControlPort
from hostler.manager.journal import Journal
from hostler.manager.looks import InstanceLooks
from hostler.storage.store import Store
from hostler.storage.writer import Writer

NO_PORT = (
    "there is no control port for other machines: start with `hostler up --tls`, or with a [control] "
    "section in the settings"
)


class Joinable(InstanceLooks):
    """For a manager with a store of its own."""

    store: Store
    writer: Writer
    journal: Journal
    control_port: ControlPort

    async def create_join_token(
        self,
        role: Role | str = Role.HOST,
        *,
        expires_in_s: float = DAY_S,
        uses: int | None = 1,
        name: str = "",
    ) -> CreatedToken:
        """Make a token that lets another machine join, and the command that uses it.

        role: `host` runs models by our orders, `worker` brings one of its own, `gateway` serves users.
        uses: machines it is for; None: any number until it expires. name: for people.

        Raises:
            BadRequest: a value that cannot be. Conflict: there is no control port.
        """
        self.check_running()
        if role not in (*Role,):
            raise BadRequest(f"role: need one of {', '.join(Role)}, got {role!r}", param="role")
        if not 1 <= expires_in_s <= LONGEST_S or (uses is not None and uses < 1):
            raise BadRequest(
                f"expires_in_s: need 1 to {LONGEST_S:g}, and uses 1 or more, or None for any number"
            )
        port = self.control_port
        if not port.url:
            raise Conflict(NO_PORT)
        made = new_token(
            Role(role),
            port.fingerprint,
            lasts_s=expires_in_s,
            uses=uses,
            name=name,
            clock=_now_at_s,
        )
        await self.writer.do(self.store.save_token, made.stored)
        self.journal.tell(token_event("token.created", made.stored))
        return CreatedToken(
            token=made.plain,
            url=port.url,
            command=join_command(made.stored.role, port.url, made.plain),
            token_id=made.stored.token_id,
            role=made.stored.role,
            expires_at_s=made.stored.expires_at_s,
        )

    async def revoke_join_token(self, token_id: str) -> None:
        """Let nobody in by it any more; who came in stays.

        Raises:
            NotFound: there is no such token.
        """
        self.check_running()
        if not await self.writer.do(self.store.revoke_token, token_id):
            raise NotFound(f"no token {token_id[:40]!r} here")
        self.journal.tell(
            OperatorEvent(kind="token.revoked", message=token_id, fields={"token_id": token_id})
        )

    async def hosts(self) -> list[HostView]:
        """The machines that joined, by name, and how each is."""
        self.check_running()
        return self.machines.views()

    async def drain_host(self, name: str, *, is_draining: bool = True) -> HostView:
        """Empty a machine, by its name or id, or let it take instances again. Raises NotFound, Conflict."""
        self.check_running()
        return await self.machines.drain(name, is_draining=is_draining)

    async def remove_host(self, name: str, *, force: bool = False) -> HostView:
        """Know a machine no more. force: also when it has instances, which are given up.

        Raises:
            NotFound. Conflict: it has instances, or several have this name.
        """
        self.check_running()
        return await self.machines.remove(name, force=force)

    sync_create_join_token = twin(create_join_token)
    sync_revoke_join_token = twin(revoke_join_token)
    sync_hosts = twin(hosts)
    sync_drain_host = twin(drain_host)
    sync_remove_host = twin(remove_host)


def join_command(role: Role, url: str, token: str) -> str:
    """The command for the machine that is to join."""
    where = f"--controller {url} --token {token}"
    match role:
        case Role.HOST:
            return f"hostler host join {where}"
        case Role.WORKER:
            return f"hostler worker {where} --name MODEL --source SOURCE"
        case Role.GATEWAY:
            return f"hostler gateway run {where}"


def token_event(kind: str, token: StoredToken, **by: str) -> OperatorEvent:
    """What is told of a token. by: who did it, for the audit."""
    fields = {"token_id": token.token_id, "role": token.role.value, **by}
    text = f"for a {token.role}{f' ({token.name})' if token.name else ''}"
    return OperatorEvent(kind=kind, message=text, fields=fields)


# Private

_now_at_s = time.time  # Unix time, as people are told
