"""What stops a training in its own process, and a clock by which every update is told."""

__all__ = ["Clock", "Killed"]


class Killed(BaseException):
    """As abrupt as a signal."""


class Clock:
    """A second passes between any two looks: every update is reported, every few are saved."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now
