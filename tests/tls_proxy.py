"""TLS in front of a plain server on this machine."""

import asyncio
import ssl
import threading
from contextlib import suppress

from tests.certificates import Pair


class EncryptingProxy:
    """TLS in front of Triton's HTTP, as an ingress has it: relays bytes, knows no HTTP."""

    def __init__(self, pair: Pair, target: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)
        self._host, self._port = target.split(":")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> int:
        self._thread.start()
        start = asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError, ssl.SSLError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(reader, inner_writer))
                group.create_task(copy(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()
