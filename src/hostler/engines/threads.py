"""How many threads an engine gets when nobody says."""

import os


def thread_count(wanted: int) -> int:
    """Return the threads to use: `wanted`, or for 0 one fewer than the cores we may run on.

    Several models share a machine. With as many spinning threads as cores, one busy neighbour cut
    an engine's speed to a tenth; one core left free keeps both moving, and the agents' beats too.
    """
    if wanted > 0:
        return wanted
    return max(1, len(os.sched_getaffinity(0)) - 1)
