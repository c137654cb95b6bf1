"""Which of several equal servers gets the next request, and how many requests are under way.

replicas = Replicas([Endpoint.parse(word) for word in "gpu-1:8001,gpu-2:8001".split(",")])
replicas.open(concurrency=64)
async with slots:                       # Slots(300)
    replica = replicas.next()           # in turn, those that are down left out
    ...                                 # then slots.answered(), slots.refused() or replicas.set_aside(replica)
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from retinaserve.eval.client.transport import Endpoint, Transport

DOWN_SECONDS = 2.0  # a dead host costs one request in this time, and a restarted one is found again in it


@dataclass(eq=False)
class Replica:
    """One server, the way to it, and until when (time.monotonic) it is left out."""

    endpoint: Endpoint
    down_until: float = field(default=0.0, init=False)
    transport: Transport = field(init=False)


class Replicas:
    """Takes servers in turn. Their health is what requests meet: nothing asks for it beforehand."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.all = [Replica(endpoint) for endpoint in endpoints]
        self._turn = 0

    def open(self, *, concurrency: int) -> None:
        """Open the transports, in the event loop that will use them."""
        for replica in self.all:
            replica.transport = Transport(replica.endpoint, concurrency=concurrency)

    async def close(self) -> None:
        """Close every connection."""
        for replica in self.all:
            await replica.transport.close()

    def next(self) -> Replica:
        """Return the next server that is not set aside; where all are, the one that has been for longest."""
        now = time.monotonic()
        for _ in self.all:
            replica = self.all[self._turn % len(self.all)]
            self._turn += 1
            if replica.down_until <= now:
                return replica
        return min(self.all, key=lambda replica: replica.down_until)

    def first(self) -> Replica:
        """Return the first server that is not set aside: for questions that all answer alike."""
        now = time.monotonic()
        return next((each for each in self.all if each.down_until <= now), self.all[0])

    def set_aside(self, replica: Replica) -> bool:
        """Leave a server out for a while; return whether another one is left."""
        now = time.monotonic()
        replica.down_until = now + DOWN_SECONDS
        return any(each.down_until <= now for each in self.all)


class Slots:
    """How many requests are under way: at most `most`, and fewer while the server refuses some.

    A refused request takes its slot along, so that what is left is what the server holds; every round of answers
    opens one more. Without it, the retries of a client that asks for far more than a server does would crowd out
    one another, and some would be given up.
    """

    def __init__(self, most: int) -> None:
        self.most = self.width = most
        self._free = asyncio.Semaphore(most)
        self._to_close = self._answers = 0

    async def __aenter__(self) -> None:
        await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._to_close:
            self._to_close -= 1
        else:
            self._free.release()

    def answered(self) -> None:
        """Open a slot after as many answers as there are slots."""
        self._answers += 1
        if self.width < self.most and self._answers >= self.width:
            self._answers = 0
            self.width += 1
            self._free.release()

    def refused(self) -> None:
        """Close a slot, except the last."""
        if self.width > 1:
            self.width -= 1
            self._to_close += 1
