"""What goes wrong around a server, done to it on purpose: kills, full disks, clients that leave or are slow.

    result = faults(Path("repository"))

Supervised as by `serve` where Triton itself does not survive. The broken model file is in the reload
drill. Where the system allows no user namespaces, the scarce disk and /dev/shm are left out, and it says so.
"""

import asyncio
import math
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from retinaserve.build_tools.repository.configs import read_config
from retinaserve.eval.client.transport import Transport
from retinaserve.scripts.drills.drill import Check, Fixture, Log, Result, fixture, none_failed
from retinaserve.scripts.drills.load import closed_loop, percentile, send
from retinaserve.scripts.drills.scarce import run_scarce
from retinaserve.scripts.server.supervisor import RestartPolicy, Supervisor
from retinaserve.scripts.server.triton import SHARED_MEMORY
from retinaserve.training.errors import UserError
from retinaserve.training.spec import PREPROCESS, RETINANET

QUICK = RestartPolicy(interval=0.5, first_pause=0.2)
HEAD = b"POST /v2/models/detector/infer HTTP/1.1\r\nHost: drill\r\nContent-Length: %d\r\n\r\n"
CONNECTIONS = 50
SERVER = "tritonserver"
DISK_MEGABYTES = 0.5


def faults(repository: Path, *, images: list[bytes] | None = None, log: Log = lambda _: None) -> Result:
    """Run all of them: one to two minutes with a small model."""
    figures: dict[str, Any] = {}
    checks = [
        *killed(repository, figures, images, log),
        *never_loads(repository, figures, log),
        *clients(repository, figures, images, log),
        *cancelled(repository, figures, images, log),
        *scarce(repository, figures, log),
    ]
    return Result("faults", checks, figures)


def killed(
    repository: Path,
    figures: dict[str, Any],
    images: list[bytes] | None,
    log: Log,
    *,
    victims: Sequence[str] = (PREPROCESS, RETINANET, SERVER),
) -> list[Check]:
    """SIGKILL each python-backend process, then the server, under a supervisor."""
    checks = []
    with fixture(repository, images=images, start=False) as fix, supervised(fix, log):
        prefixes = []
        for victim in victims:
            assert fix.server
            prefixes.append(fix.server.shared_memory)
            server = fix.server.process.pid
            found = fix.usage().processes.values()
            os.kill(next(each.pid for each in found if each.name.split()[0] == victim), signal.SIGKILL)
            away, seen = asyncio.run(outage(fix, fix.images[0], server))
            log(f"{victim} killed: answers again after {away:.1f} s, meanwhile {seen}")
            figures[f"{victim} killed"] = {"outage_s": round(away, 2), "meanwhile": seen}
            checks.append(Check(f"{victim} killed: s until it answers", away, at_most=60, note=str(seen)))
        left = [file for prefix in prefixes for file in SHARED_MEMORY.glob(f"{prefix}*")]
        checks.append(Check("files the dead left in /dev/shm", len(left), at_most=0))
    return checks


def never_loads(repository: Path, figures: dict[str, Any], log: Log) -> list[Check]:
    """A model that can't be loaded: the supervisor gives up with the cause."""
    with fixture(repository, images=[b""], start=False) as fix:
        for graph in fix.repository.glob(f"{RETINANET}/*/model.onnx"):
            graph.write_bytes(b"garbage")
        tries = []
        policy = RestartPolicy(interval=0.5, first_pause=0.1, failures=3)
        supervisor = Supervisor(fix.start, b"", policy=policy, log=lambda text: tries.append(text))
        try:
            supervisor.run(threading.Event())
            cause = "never"
        except UserError as error:
            cause = error.message
    log(f"a model that can't load: given up after {len(tries) + 1} tries: {cause[:80]}")
    figures["hopeless"] = {"tries": len(tries) + 1, "cause": cause}
    named = float("model.onnx" in cause or RETINANET in cause)
    return [Check("a broken model: given up, cause named", named, at_least=1, note=f"{len(tries) + 1} tries")]


def clients(repository: Path, figures: dict[str, Any], images: list[bytes] | None, log: Log) -> list[Check]:
    """Clients that leave in the middle of a request, and some that send a byte at a time."""
    checks = []
    with fixture(repository, images=images) as fix:
        calm = asyncio.run(closed_loop(fix.http, fix.images, in_flight=1, seconds=2))
        before = fix.usage()
        for name, act in (("half a request", leave_in_the_middle), ("before the answer", leave_before_the_answer)):
            act(fix)
            away, refused = asyncio.run(busy(fix))
            requests = asyncio.run(closed_loop(fix.http, fix.images, in_flight=2, seconds=1))
            # Triton computes what it has taken, whoever still waits for it: its queue is full for a while.
            note = f"{refused} refused meanwhile" if refused else ""
            bound = 5 + 1.5 * CONNECTIONS * percentile((request.seconds for request in calm), 0.5)
            checks.append(Check(f"left {name}: s until others are answered", away, at_most=bound, note=note))
            checks.append(none_failed(f"left {name}: failed of others", requests))
        with slow_senders(fix):
            slow = asyncio.run(closed_loop(fix.http, fix.images, in_flight=1, seconds=2))
        checks.append(none_failed(f"{CONNECTIONS} slow senders: failed of others", slow))
        medians = [percentile((request.seconds for request in requests), 0.5) for requests in (calm, slow)]
        checks.append(Check("slow senders: p50 of others / calm", medians[1] / medians[0], at_most=2))
        time.sleep(1)
        after = fix.usage()
    kept = after.processes[SERVER].descriptors - before.processes[SERVER].descriptors
    log(f"{3 * CONNECTIONS} clients left or were slow; the server keeps {kept} more descriptors")
    checks.append(Check("descriptors kept of those that left", kept, at_most=2))
    figures["clients"] = {"calm_ms": 1000 * medians[0], "slow_ms": 1000 * medians[1], "descriptors_kept": kept}
    return checks


def cancelled(repository: Path, figures: dict[str, Any], images: list[bytes] | None, log: Log) -> list[Check]:
    """Clients that give up on gRPC requests, which may kill Triton 2.51: under a supervisor.

    Triton's issue 7368, fixed by its pull request 7840 for 24.12.
    """
    died: list[str] = []
    with fixture(repository, images=images, start=False) as fix, supervised(fix, died.append):
        for _ in range(5):
            asyncio.run(cancel(fix))
        away, refused = asyncio.run(busy(fix))
    log(
        f"{5 * CONNECTIONS} gRPC requests cancelled: the server died {len(died)} times; answers after {away:.1f} s"
    )
    figures["cancelled"] = {"died": len(died), "until_answered_s": round(away, 2), "refused": refused}
    note = f"it died {len(died)} times and was restarted" if died else "it survived"
    return [Check("gRPC cancelled: s until others are answered", away, at_most=60, note=note)]


def scarce_room(repository: Path) -> float:
    """Return the MB of /dev/shm in which a repository starts and answers images one by one, but not many at once.

    Each stub begins with 1 MB and grows by as much.
    """
    configs = [read_config(repository / model / "config.pbtxt") for model in (PREPROCESS, RETINANET)]
    processes = sum(int(group.count) for config in configs for group in config.instance_group)
    image = int(math.prod(configs[0].output[0].dims))  # bytes
    return 1.1 * processes + 0.3 + 3 * image / 1e6


def scarce(repository: Path, figures: dict[str, Any], log: Log) -> list[Check]:
    """/dev/shm nearly full, and the disk full."""
    checks = []
    with fixture(repository, images=[b""], start=False) as fix:
        room = scarce_room(fix.repository)
        shared = run_scarce("shm", fix.repository, megabytes=room, folder=fix.folder)
        disk = run_scarce("disk", fix.repository, megabytes=DISK_MEGABYTES, folder=fix.folder)
    figures["shm"], figures["disk"] = shared or "not tried", disk or "not tried"
    if shared is None or disk is None:
        log("left out: the scarce disk and /dev/shm, which need user namespaces (unshare -rm)")
        return []
    log(f"/dev/shm of {room:.1f} MB: {shared['crowded']} when crowded; disk full: {disk['build']}")
    checks.append(Check("/dev/shm full: the server lives", float(shared["alive"]), at_least=1))
    failed = sum(count for status, count in shared["after"].items() if status != "ok")
    crowded = "when crowded: " + ", ".join(f"{count} {status}" for status, count in shared["crowded"].items())
    checks.append(Check("/dev/shm full: failed one by one after it", failed, at_most=0, note=crowded))
    refused = float("No space left" in disk["build"])
    checks.append(Check("disk full: build says so", refused, at_least=1, note=disk["build"][-40:]))
    checks.append(Check("disk full: files that build left", len(disk["left_behind"]), at_most=0))
    lost = sum(count for status, count in disk["served"].items() if status != "ok")
    note = f"{disk['served'].get('ok', 0)} answered"
    checks.append(Check("log's disk full: failed requests", lost, at_most=0, note=note))
    return checks


@contextmanager
def supervised(fix: Fixture, log: Log, policy: RestartPolicy = QUICK) -> Iterator[None]:
    """Run the fixture's server under a supervisor, in a thread; it is ready when the body begins."""
    stop, ready = threading.Event(), threading.Event()
    supervisor = Supervisor(fix.start, fix.images[0], policy=policy, log=log, started=lambda _: ready.set())
    thread = threading.Thread(target=supervisor.run, args=[stop], daemon=True)
    thread.start()
    try:
        if not ready.wait(policy.ready):
            raise UserError("the supervised server did not become ready")
        yield
    finally:
        stop.set()
        thread.join(60)


async def outage(fix: Fixture, image: bytes, old: int, *, limit: float = 60.0) -> tuple[float, dict[str, int]]:
    """Ask until another server than process `old` answers; return the seconds, and the statuses meanwhile."""
    start, seen = time.monotonic(), Counter[str]()
    while time.monotonic() - start < limit:
        async with Transport(fix.endpoint, concurrency=1) as transport:
            request = await send(transport, image, timeout=5)
        replaced = fix.server is not None and fix.server.process.pid != old
        if request.status == "ok" and replaced:
            return time.monotonic() - start, dict(seen)
        if request.status != "ok":
            seen[request.status] += 1
        await asyncio.sleep(0.05)
    return limit, dict(seen)


async def busy(fix: Fixture, *, limit: float = 90.0) -> tuple[float, int]:
    """Ask until there is an answer; return the seconds, and how often there was none until then."""
    start, refused = time.monotonic(), 0
    async with Transport(fix.http, concurrency=1) as transport:
        while (await send(transport, fix.images[0], timeout=30)).status != "ok":
            refused += 1
            if time.monotonic() - start > limit:
                return float("inf"), refused
            await asyncio.sleep(0.05)
    return time.monotonic() - start, refused


def leave_in_the_middle(fix: Fixture) -> None:
    """Send half of each request and close the connection."""
    for _ in range(CONNECTIONS):
        with _connection(fix) as connection:
            connection.sendall(HEAD % 100_000 + bytes(50_000))


def leave_before_the_answer(fix: Fixture) -> None:
    """Send whole requests and close the connection without reading."""
    body = b'{"inputs":[{"name":"image_bytes","shape":[1,%d],"datatype":"UINT8"' % len(fix.images[0])
    body += b',"parameters":{"binary_data_size":%d}}]}' % len(fix.images[0])
    length = b"Inference-Header-Content-Length: %d\r\n\r\n" % len(body)
    for _ in range(CONNECTIONS):
        whole = body + fix.images[0]
        with _connection(fix) as connection, suppress(OSError):
            connection.sendall((HEAD % len(whole))[:-2] + length + whole)


async def cancel(fix: Fixture) -> None:
    """Give up on gRPC requests right after they were sent."""
    async with Transport(fix.endpoint, concurrency=CONNECTIONS) as transport:
        tasks = [asyncio.create_task(send(transport, fix.images[0])) for _ in range(CONNECTIONS)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def slow_senders(fix: Fixture) -> Iterator[None]:
    """Hold connections open that send a byte now and then (slow-loris)."""
    stop = threading.Event()
    with ExitStack() as stack:
        connections = [stack.enter_context(_connection(fix)) for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.sendall(HEAD % 1_000_000)

        def drip() -> None:
            while not stop.wait(0.2):
                for connection in connections:
                    with suppress(OSError):
                        connection.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _connection(fix: Fixture) -> socket.socket:
    return socket.create_connection((fix.http.host, fix.http.port), timeout=10)
