"""ManualClock: time that passes when a test says so."""


class ManualClock:
    """A clock for whatever takes `clock: Callable[[], float]`."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> float:
        """Let time pass; return the new now. Time does not go back."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self.now_s += seconds
        return self.now_s
