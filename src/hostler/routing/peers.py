"""Peers: other routers that lend slots of the same instances. How they talk is not known here."""

from collections.abc import Iterable
from typing import Protocol


class Peers(Protocol):
    """What a router needs of the others, as long as there are any.

    A slot that is free goes to the router that waits and has least of the model; so no router is left
    out because another one takes up again whatever it gives back.
    """

    count: int  # routers, this one included

    def note(self, instance_id: str, in_flight: int) -> None:
        """Tell the others how many requests of ours this instance has."""

    def elsewhere(self, instance_id: str) -> int:
        """How many requests of the others it has."""

    def note_waiting(self, model: str, waiting: int) -> None:
        """Tell how many wait here for a slot of this model; 0 if what is free is nothing for them."""

    def go_first(self, model: str, instance_ids: Iterable[str], *, ties: bool) -> bool:
        """Does one of the others wait for this model that has less of it (ties: or as much)? Then it is
        woken, and this router is asked again soon, whether that took something or not.
        """

    def wake(self, model: str) -> None:
        """A slot is free that nobody here needs: wake whoever waits for it."""
