"""Changes which version of a detector a running server answers with, without failing a request.

    deployment = Deployment(Path("repository"), Endpoint.parse("localhost:8001"), token)
    deployment.canary(2)        # version 2 answers as `detector_canary`, beside version 1
    deployment.use(2)           # version 2 answers as `detector`; version 1 stays in memory
    deployment.rollback()       # version 1 again, at once

The repository's configs are changed first, because the server reads them and would read them after a restart; when
the server then refuses, they are put back, and what was served goes on. The server must have been started with
`serve --reload`, on this repository or on one that has the same files.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from retinaserve.build_tools.repository.versions import (
    CANARY,
    Pins,
    read_pins,
    steps_of,
    versions_of,
    write_pins,
)
from retinaserve.eval.client.transport import Endpoint, ServerError, Transport
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_bytes
from retinaserve.training.spec import DETECTOR

T = TypeVar("T")
LOAD_TIMEOUT = 300.0  # seconds; a large plan on a slow disk


class Deployment:
    """A repository, and the server that serves it."""

    def __init__(self, repository: Path, endpoint: Endpoint, admin_token: str | None = None) -> None:
        self.repository = repository
        self.endpoint = endpoint
        self._admin_token = admin_token
        self._steps = steps_of(repository)

    def use(self, version: int) -> Pins:
        """Answer with `version` and keep the one before in memory. Raises UserError; the old one serves on."""
        old = self._checked(version)
        if version == old.served and old.loaded == (version,):
            return old
        both = replace(old, loaded=_sorted(old.served, version, old.canary, old.previous))
        canary = None if old.canary == version else old.canary
        new = replace(both, served=version, previous=old.served if old.served != version else old.previous)
        final = replace(new, canary=canary, loaded=_sorted(version, new.previous, canary))
        # Load, switch, and only then let go: each is a state in which every ensemble has its steps.
        self._apply(both, self._steps)
        self._apply(replace(final, loaded=both.loaded), (DETECTOR,))
        self._apply(final, self._steps if final.loaded != both.loaded else ())
        return final

    def canary(self, version: int) -> Pins:
        """Answer with `version` too, as `detector_canary`. Raises UserError; nothing has changed then."""
        old = self._checked(version)
        loaded = _sorted(old.served, old.previous, version)
        both = replace(old, loaded=_sorted(*loaded, old.canary))
        self._apply(both, self._steps)
        self._apply(replace(both, canary=version), (CANARY,))
        new = replace(both, canary=version, loaded=loaded)
        self._apply(new, self._steps if new != replace(both, canary=version) else ())
        return new

    def rollback(self) -> Pins:
        """Answer with the version that did before."""
        previous = self._current().previous
        if previous is None:
            raise UserError(
                f"{self.repository}: no version was served before this one",
                "name one: retinaserve models use REPO VERSION",
                code=Exit.USAGE,
            )
        return self.use(previous)

    def unload(self, version: int) -> Pins:
        """Take a version that does not serve out of memory; its files stay."""
        old = self._current()
        if version == old.served:
            raise UserError(f"version {version} is served", "use another one first", code=Exit.USAGE)
        new = Pins(
            served=old.served,
            loaded=_sorted(*(each for each in old.loaded if each != version)),
            previous=None if old.previous == version else old.previous,
            canary=None if old.canary == version else old.canary,
        )
        if new.loaded == old.loaded:
            raise UserError(f"version {version} is not in memory", code=Exit.USAGE)
        self._apply(new, self._steps)
        return new

    def status(self) -> dict[str, Any]:
        """Return the versions on disk, what the configs pin, and what the server says it has."""
        ready = self._ready()
        on_disk = versions_of(self.repository)
        return {"on_disk": on_disk, **asdict(self._current(ready)), "ready": ready}

    def _ready(self) -> dict[str, list[int]]:
        """Return the versions that the server has ready, by model."""

        async def index(transport: Transport) -> list[dict[str, Any]]:
            return await transport.index(timeout=10)

        ready: dict[str, list[int]] = {}
        for model in self._ask(index):
            if model.get("state") == "READY":
                ready.setdefault(str(model["name"]), []).append(int(model["version"]))
        return {name: sorted(ready[name]) for name in sorted(ready)}

    def _current(self, ready: dict[str, list[int]] | None = None) -> Pins:
        """Return what the repository pins, or where it pins nothing, what the server took when it started."""
        pins = read_pins(self.repository)
        if pins:
            return pins
        served = (ready or self._ready()).get(DETECTOR)
        if not served:
            raise UserError(f"{self.endpoint} serves no {DETECTOR}", "see its log")
        return Pins(served[-1], (served[-1],))

    def _checked(self, version: int) -> Pins:
        available = versions_of(self.repository)
        if version not in available:
            raise UserError(
                f"{self.repository} has no version {version}",
                f"it has {', '.join(map(str, available))}; `retinaserve build` adds one",
                code=Exit.USAGE,
            )
        current = self._current()
        if read_pins(self.repository) is None:
            # An ensemble that pins nothing would take its steps from the new version as soon as that is loaded.
            self._apply(current, (DETECTOR,))
        return current

    def _apply(self, pins: Pins, models: Sequence[str]) -> None:
        """Write pins and have the server load what they concern; put the configs back when it does not."""
        had_canary = (self.repository / CANARY).is_dir()
        before = _configs(self.repository)
        write_pins(self.repository, pins)

        async def load(transport: Transport) -> None:
            if had_canary and pins.canary is None:
                await transport.unload(CANARY, timeout=LOAD_TIMEOUT)
            for model in models:
                await transport.load(model, timeout=LOAD_TIMEOUT)

        try:
            self._ask(load)
        except BaseException:
            _restore(self.repository, before)
            raise

    def _ask(self, call: Callable[[Transport], Coroutine[Any, Any, T]]) -> T:
        async def asked() -> T:
            async with Transport(self.endpoint, concurrency=1, admin_token=self._admin_token) as transport:
                return await call(transport)

        try:
            return asyncio.run(asked())
        except ServerError as error:
            raise _explained(self.endpoint, error) from None


def _sorted(*versions: int | None) -> tuple[int, ...]:
    return tuple(sorted({version for version in versions if version}))


def _configs(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.glob("*/config.pbtxt")}


def _restore(repository: Path, configs: dict[Path, bytes]) -> None:
    canary = repository / CANARY / "config.pbtxt"
    if canary not in configs:
        shutil.rmtree(canary.parent, ignore_errors=True)
    for path, content in configs.items():
        if path.parent.is_dir():
            write_bytes(path, content)


def _explained(endpoint: Endpoint, error: ServerError) -> UserError:
    text = " ".join(error.message.split("\n\nAt:")[0].split())
    if "restricted" in text:
        return UserError(
            f"{endpoint} keeps this for administrators",
            "--admin-token-file: the file that `serve` was given",
            code=Exit.USAGE,
        )
    if "not allowed" in text or "polling is enabled" in text:
        return UserError(
            f"{endpoint} does not change its models", "start it with: retinaserve serve --reload REPO"
        )
    if error.status in ("unavailable", "timeout"):
        return UserError(f"no Triton server answers at {endpoint}: {text}", "nothing has changed")
    return UserError(
        f"the server can't load it: {text}", "what was served before goes on; the configs are as before"
    )
