"""Expected: what a launcher knows of an instance before it says a word."""

import msgspec

from hostler.core.lifecycle import Instance
from hostler.core.model import PrefixReach, WorkerType
from hostler.core.snapshot import Endpoint, InstanceView


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one; what it says when it registers is added.

    secret_hash: hex SHA-256 of what the process must show; "" for a server given by URL, and for one on
        another host, which never register.
    """

    worker_type: WorkerType
    engine: str
    secret_hash: str = ""
    concurrency: int = 1
    endpoint: Endpoint = Endpoint()
    upstream_model: str = ""
    prefix_reach: PrefixReach = PrefixReach.SLOT

    @property
    def is_ours(self) -> bool:
        """Whether it was started by us, here or on another host."""
        return bool(self.secret_hash or self.endpoint.host_id)

    def view(self, instance: Instance) -> InstanceView:
        """The instance, as a router sees it."""
        return InstanceView(
            instance_id=instance.instance_id,
            epoch=instance.epoch,
            model_name=instance.model_name,
            worker_type=self.worker_type,
            engine=self.engine,
            state=instance.state,
            endpoint=self.endpoint,
            concurrency=self.concurrency,
            upstream_model=self.upstream_model,
            replica=instance.replica,
            prefix_reach=self.prefix_reach,
        )
