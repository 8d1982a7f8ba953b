"""Notices a run whose replies are all unfit for one and the same reason from the first on: more of them are in vain."""

from __future__ import annotations


class EarlyStop:
    """Counts the first replies of a run by the reason that makes them unfit.

    A fit reply, or one that is unfit for another reason, shows that server and model can do better: from then on
    nothing is counted any more.
    """

    def __init__(self, count: int) -> None:
        """count: replies after which the run is hopeless."""
        self._left = count
        self._reason: str | None = None
        self._over = False

    def add(self, reason: str | None) -> bool:
        """Count one reply by the reason that makes it unfit, None if it is fit; True once all first ones were alike."""
        self._over = self._over or reason is None or self._reason not in (None, reason)
        if self._over:
            return False
        self._reason, self._left = reason, self._left - 1
        return self._left <= 0
