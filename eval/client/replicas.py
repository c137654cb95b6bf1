"""Which of several equal servers gets the next request.

    replicas = Replicas([Endpoint.parse(word) for word in "gpu-1:8001,gpu-2:8001".split(",")])
    replicas.open(concurrency=64)
    replica = replicas.next()           # in turn, those that are down left out
    replicas.set_aside(replica)         # it did not answer; asked again after two seconds

It asks nobody for health: what a request meets is what counts. Weights, zones and discovery are a proxy's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from retinaserve.eval.client.transport import Endpoint, Transport, open_transport

DOWN_SECONDS = 2.0  # a dead host costs one request in this time, and a restarted one is found again in it


@dataclass(eq=False)
class Replica:
    """One server, the way to it, and until when (time.monotonic) it is left out."""

    endpoint: Endpoint
    down_until: float = field(default=0.0, init=False)
    transport: Transport = field(init=False)


class Replicas:
    """Takes servers in turn."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.all = [Replica(endpoint) for endpoint in endpoints]
        self._turn = 0

    def open(self, *, concurrency: int) -> None:
        """Open the transports, in the event loop that will use them."""
        for replica in self.all:
            replica.transport = open_transport(replica.endpoint, concurrency=concurrency)

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
        """Leave a server out for a while; say whether another one is left."""
        now = time.monotonic()
        replica.down_until = now + DOWN_SECONDS
        return any(each.down_until <= now for each in self.all)
