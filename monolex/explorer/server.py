"""``monolex serve``: the application behind uvicorn, on this machine alone."""

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, final

import uvicorn
from starlette.applications import Starlette

from monolex.config import require
from monolex.errors import UserError
from monolex.explorer.app import app
from monolex.explorer.explorer import Explorer
from monolex.explorer.index import remove_temporary
from monolex.explorer.links import Links

HOST = "127.0.0.1"
PORT = 8040
LIMITS: dict[str, Any] = {"h11_max_incomplete_event_size": 2**18, "http": "h11"}
"""Of uvicorn: an address holds every token id of its prompt."""
GRACE = 1.0
"""Seconds that answers under way may still take once the server is stopped."""
TRIED = 20
"""Ports after the first that are tried where one is taken."""


def bind(port: int | None) -> socket.socket:
    """A socket on the loopback interface: at ``port``, or at the first free one from :data:`PORT` on.

    Raises:
        UserError: the port is taken, or none can be.
    """
    require(port is None or 0 <= port < 2**16, f"port = {port}: give one from 0 (any free one) to {2**16 - 1}")
    for number in range(PORT, PORT + TRIED) if port is None else (port,):
        # asyncio sends small packets at once (TCP_NODELAY) only where the protocol is named: else a page takes 40 ms
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
        except OSError:
            listener.close()
            continue
        return listener
    taken = f"port {port} is" if port is not None else f"ports {PORT} to {PORT + TRIED - 1} are"
    raise UserError(f"{taken} taken; give another one by --port")


@final
class StoppingServer(uvicorn.Server):
    """A server that ends soon after Ctrl-C, also where a thread runs the model, which nothing can interrupt.

    What such a thread writes into an index is whole or not there.
    """

    def __init__(self, application: Starlette) -> None:
        super().__init__(uvicorn.Config(application, log_level="warning", lifespan="on", **LIMITS))
        self._leaving: list[threading.Timer] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more requests, and leave at the latest after :data:`GRACE`."""
        super().handle_exit(sig, frame)
        timer = threading.Timer(GRACE, _leave, [sig])
        timer.daemon = True
        self._leaving.append(timer)
        timer.start()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes, which is raised again once all answers are given."""
        try:
            super().run(sockets)
        finally:
            for timer in self._leaving:
                timer.cancel()


def _leave(sig: int) -> None:
    with suppress(OSError):
        sys.stderr.write("monolex: stopped, with an answer under way; the same command serves again\n")
        sys.stderr.flush()
    remove_temporary()
    os._exit(128 + sig)


def serve(folders: Sequence[Path], port: int | None, tell: Callable[[str], None]) -> None:
    """Serve runs until Ctrl-C; ``tell`` is told the address.

    Raises:
        UserError: no run, a damaged one, or no port.
    """
    explorer = Explorer(folders)
    listener = bind(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    listener.listen()  # whoever reads the address may ask at once
    only = next(iter(explorer.runs)) if len(explorer.runs) == 1 else ""
    tell(address + (Links().run(only) if only else "/"))
    StoppingServer(app(explorer)).run([listener])
