"""Jobs of several ranks, started as torchrun starts them, but for torchrun itself, which takes seconds more."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1]


class Ended(NamedTuple):
    code: int
    said: str


def environment(rank: int, count: int, port: int, **more: str) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    fixed = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **{name: str(value) for name, value in ranks.items()}, **fixed, **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Process = subprocess.Popen[str]


def start(
    count: int, code: str, *arguments: object, of_rank: dict[int, str] | None = None, **more: str
) -> list[Process]:
    """Processes that run Python ``code`` with ``sys.argv[1:]``; ``of_rank`` is the code of some of them."""
    port, words = free_port(), [str(argument) for argument in arguments]
    return [
        subprocess.Popen(
            [sys.executable, "-c", (of_rank or {}).get(rank, code), *words],
            env=environment(rank, count, port, **more), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]  # fmt: skip


def ended(processes: list[Process], timeout: float = 240) -> list[Ended]:
    """What became of them; once one has failed the others are stopped, as torchrun does."""
    until = time.monotonic() + timeout
    with ThreadPoolExecutor(len(processes)) as pool:
        said = [pool.submit(lambda process: process.communicate()[0], process) for process in processes]
        while any(process.poll() is None for process in processes) and time.monotonic() < until:
            if any(process.poll() for process in processes):
                time.sleep(1)  # for those that have noticed
                break
            time.sleep(0.05)
        for process in processes:
            process.kill()
        return [Ended(process.wait(), future.result()) for process, future in zip(processes, said, strict=True)]


def run(count: int, code: str, *arguments: object, **more: str) -> None:
    """Run ``code`` on ``count`` ranks, which all have to succeed."""
    every = ended(start(count, code, *arguments, **more))
    assert all(process.code == 0 for process in every), "\n\n".join(f"{code}: {said}" for code, said in every)
