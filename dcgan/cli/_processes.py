"""What torchrun tells the processes that it starts, through their environment; read without torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def process_count() -> int:
    """Return the number of processes that run this command together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def process_rank() -> int:
    """Return the number of this process; the first one speaks for all."""
    return int(os.environ["RANK"]) if process_count() > 1 else 0


def is_restarted() -> bool:
    """Whether torchrun has started this command before, and a process has failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether torchrun starts, or has started, this command again when a process fails."""
    return is_restarted() or int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def launcher() -> str:
    """Return the beginning of a command line that starts as many processes as now."""
    if process_count() == 1:
        return "dcgan"
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', process_count())} -m dcgan"


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes, if there are any, until the block ends."""
    if process_count() == 1:
        yield
        return
    from dcgan import _distributed

    with _distributed.process_group():
        yield
