"""Run a function in several processes of one process group."""

import socket
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=120)


def run_in_processes(function, count, *args):
    """Call `function(rank, *args)` in `count` new processes that are in a gloo process group; raise what one raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (count, port, function, args), nprocs=count)


def _start(rank, count, port, function, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count, timeout=TIMEOUT)
    try:
        function(rank, *args)
        dist.barrier()  # none leaves while another still talks to it
    finally:
        dist.destroy_process_group()
