"""Which of the processes that torchrun started this is, as their environment says; needs no torch."""

import os

ASKED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def size() -> int:
    """How many ranks there are; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in ASKED) else 1


def rank() -> int:
    """The number of this one."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> int:
    """Its number on this machine, by which it takes a GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0
