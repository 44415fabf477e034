"""Judges silence. It does not send beats (registry/client.py does) and changes no state itself."""

from hostler.app.config import HeartbeatConfig
from hostler.core.lifecycle import Signal


def judge_heartbeat(silence_s: float, config: HeartbeatConfig) -> Signal:
    """Say what a worker's silence means.

    silence_s: seconds since its last beat arrived here, by this process's monotonic clock.
    Source: SWIM's suspect-before-dead (Das et al. 2002); one observer, so no confirmations.
    """
    if silence_s < config.suspect_after_s:
        return Signal.SEEN
    return Signal.LATE if silence_s < config.lost_after_s else Signal.LOST


def own_pause_s(since_last_look_s: float, look_every_s: float, config: HeartbeatConfig) -> float:
    """Say for how long this process itself did not run, in seconds; 0 when it was on time.

    A checker that was stopped (a paused machine, SIGSTOP) has heard nothing because it did not listen:
    that time is no worker's silence. Source: Lifeguard's local health (Dadgar et al. 2017).
    """
    late_s = since_last_look_s - look_every_s
    return late_s if late_s > config.suspect_after_s - config.interval_s else 0.0
