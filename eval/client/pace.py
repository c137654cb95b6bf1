"""How many requests a client has under way: as many as it may, fewer while the server refuses some.

    pace = Pace(300)
    async with pace.slot():
        ...                         # ask; then pace.answered(), or pace.refused(sent)

A refusal halves the number, once for all requests that were under way together; every round of answers adds one
(additive increase, multiplicative decrease, as TCP does: Chiu and Jain, 1989). So a client that asks for more than
a server holds settles at what it holds, and its retries are few. For one event loop; it knows nothing of time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pace:
    """A gate of changing width; `most` is the widest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._width = float(most)
        self._inside = 0
        self._cuts = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def width(self) -> int:
        """How many may be inside now."""
        return int(self._width)

    @asynccontextmanager
    async def slot(self, *, again: bool = False) -> AsyncIterator[int]:
        """Wait for a place, before all others when it was had `again`; give what `refused` wants to be told."""
        if self._inside < self.width and not self._waiting:
            self._inside += 1
        else:
            await self._wait(again)
        try:
            yield self._cuts
        finally:
            self._inside -= 1
            self._admit()

    def answered(self) -> None:
        """Widen by one for every round of answers."""
        self._width = min(float(self.most), self._width + 1 / self._width)
        self._admit()

    def refused(self, ticket: int) -> None:
        """Halve, unless the request was already inside at the last halving."""
        if ticket == self._cuts:
            self._cuts += 1
            self._width = max(1.0, self._width / 2)

    async def _wait(self, again: bool) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given the place and can't take it
                self._inside -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._inside < self.width:
            place = self._waiting.popleft()
            if not place.done():
                self._inside += 1
                place.set_result(None)
