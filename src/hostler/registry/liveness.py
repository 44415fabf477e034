"""Judges silence. It does not send beats (registry/client.py does) and changes no state itself."""

from collections.abc import Sequence
from math import inf

from hostler.app.config import HeartbeatConfig
from hostler.app.telemetry import logger
from hostler.core.lifecycle import Signal

log = logger(__name__)

MASS_LEAST = 2  # silent workers that can be a mass: one that hangs alone is only that


def judge_heartbeat(silence_s: float, config: HeartbeatConfig, *, in_mass: bool = False) -> Signal:
    """Say what a worker's silence means.

    silence_s: seconds since it last proved to be well, by this process's monotonic clock.
    in_mass: see `is_mass_loss`. Then silence says nothing of a worker for `mass_lost_after_s`.
    Source: SWIM's suspect-before-dead (Das et al. 2002); one observer, so no confirmations.
    """
    if silence_s < config.suspect_after_s:
        return Signal.SEEN
    if in_mass:
        return Signal.SEEN if silence_s < config.mass_lost_after_s else Signal.LOST
    return Signal.LATE if silence_s < config.lost_after_s else Signal.LOST


def is_mass_loss(silences_s: Sequence[float], config: HeartbeatConfig) -> bool:
    """Whether so many workers are silent at once that the fault is more likely ours than theirs.

    More than half of all: Kubernetes stops evictions at 55 % of a zone, Envoy's panic threshold is 50 %.
    """
    silent = sum(silence_s >= config.suspect_after_s for silence_s in silences_s)
    return is_mass(silent, len(silences_s))


def is_mass(silent: int, of: int) -> bool:
    """As `is_mass_loss`, by numbers."""
    return silent >= MASS_LEAST and 2 * silent > of


class Mass:
    """Whether most are silent at once, and since when they are not any more."""

    def __init__(self, whom: str, event: str) -> None:
        """event: the line of the log that tells when one begins and ends; it counts them as `whom`."""
        self._whom = whom
        self._event = event
        self._ended_s = -inf
        self.is_on = False

    def look(self, is_mass_now: bool, of: int, now_s: float, paused_s: float) -> bool:
        """Take what was just counted; return whether one is on. paused_s: how long nobody listened here."""
        self._ended_s += paused_s
        if is_mass_now is not self.is_on:
            self.is_on = is_mass_now
            self._ended_s = now_s
            log.warning(self._event, is_on=is_mass_now, **{self._whom: of})
        return self.is_on

    def counted_s(self, silence_s: float, now_s: float, config: HeartbeatConfig) -> float:
        """Say how much of a silence counts: what passed in a mass may not have been its fault.

        When the first of them are back, the others have all the time that a suspect has to come back, too.
        """
        if self.is_on:
            return silence_s
        return min(silence_s, config.suspect_after_s + now_s - self._ended_s)


def own_pause_s(since_last_look_s: float, look_every_s: float, config: HeartbeatConfig) -> float:
    """Say for how long this process itself did not run, in seconds; 0 when it was on time.

    A checker that was stopped (a paused machine, SIGSTOP) has heard nothing because it did not listen:
    that time is no worker's silence. Source: Lifeguard's local health (Dadgar et al. 2017).
    """
    late_s = since_last_look_s - look_every_s
    return late_s if late_s > config.suspect_after_s - config.interval_s else 0.0
