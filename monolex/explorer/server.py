"""``monolex serve``: the application behind uvicorn, on this machine alone."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from monolex.config import require
from monolex.errors import UserError
from monolex.explorer.app import app
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links

HOST = "127.0.0.1"
PORT = 8040
LIMITS: dict[str, Any] = {"timeout_graceful_shutdown": 2, "h11_max_incomplete_event_size": 2**18, "http": "h11"}
"""Of uvicorn: an address holds every token id of its prompt."""
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


def serve(folders: Sequence[Path], port: int | None, say: Callable[[str], None]) -> None:
    """Serve runs until Ctrl-C; ``say`` is told the address.

    Raises:
        UserError: no run, a damaged one, or no port.
    """
    explorer = Explorer(folders)
    listener = bind(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    only = next(iter(explorer.runs)) if len(explorer.runs) == 1 else ""
    say(f"open {address}{Links().run(only) if only else '/'} in a browser; Ctrl-C ends it")
    config = uvicorn.Config(app(explorer), log_level="warning", lifespan="on", **LIMITS)
    uvicorn.Server(config).run(sockets=[listener])
