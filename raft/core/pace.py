"""How fast a stage is, and how long it will still take: measured between what it finishes, and not from its start."""

SOME = 0.05  # of the work, before which nothing is said of the rest
LEAST = 1.0  # seconds of measuring, before which nothing is said
BREAK = 0.5  # of the longest pause of late: a pause that ends a burst


class Pace:
    """The pace of a stage whose units may end one by one or in bursts.

    A point (time, done) is taken before a pause, when a burst is over; the pace is that between the first point and the
    last. So starting up counts for nothing, and half of a burst is never taken for the whole.
    """

    def __init__(self) -> None:
        self._latest: tuple[float, int] | None = None  # of all that was seen
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None
        self._pause = 0.0  # the longest of late

    def see(self, done: int, now: float) -> None:
        """`done` units are finished at the time `now`, by this process or an earlier one."""
        if self._latest is not None:
            pause = now - self._latest[0]
            self._pause = max(pause, self._pause - pause)
            if pause >= BREAK * self._pause:
                self._take(self._latest, pause)
        self._latest = (now, done)

    def rate(self) -> float | None:
        """Units a second, None while it is not known."""
        if self._first is None or self._last is None:
            return None
        seconds, units = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return units / seconds if seconds >= LEAST and units > 0 else None

    def left(self, total: int, now: float, before: int = 0) -> float | None:
        """Seconds until `total` units are finished, None while too little is. `before` were there at the start."""
        rate = self.rate()
        if rate is None or self._first is None or self._last is None:
            return None
        if self._last[1] - self._first[1] < SOME * (total - before):
            return None
        return max(0.0, (total - self._last[1]) / rate - (now - self._last[0]))

    def _take(self, point: tuple[float, int], pause: float) -> None:
        longer = self._first is None or pause > point[0] - self._first[0]
        if longer:  # than all that was measured: what came before was a part of one burst
            self._first = point
        self._last = point
