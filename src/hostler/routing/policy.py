"""RoutingPolicy: what a routing policy of one's own derives from. Those that come along: policies.py."""

from collections.abc import Sequence, Set

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.policies import Loads


class RoutingPolicy:
    """How a router picks. One object a model; a class of your own derives from this one.

    name: what a client is told of it. why: what spoke for the last choice, in a few words: for the
    request's timeline. wants_tokens: whether Loads.prompt_tokens must be kept. learns: whether
    `taken` is to be called. problem: why it does not do what it should; "": it does.
    """

    name = "own"
    why = ""
    wants_tokens = False
    learns = False
    problem = ""

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        """Pick one of `ready`: never empty, in the order of `update`, each with a free slot."""
        raise NotImplementedError

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        """The request goes there (a choice for a question takes no slot, and is not told)."""

    def update(self, ready: Sequence[InstanceView]) -> None:
        """These are the model's ready instances from now on."""

    def forget(self, gone: Set[str]) -> None:
        """The instances with these ids are no more, and will not come back."""
