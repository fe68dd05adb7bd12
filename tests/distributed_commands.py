"""Commands that torchrun starts in several processes, in new processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dcgan

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def start(*arguments, processes=2, restarts=0, folder=None):
    """Start a command under torchrun; return the process of torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dcgan.__file__).parents[1])}
    launch = [*TORCHRUN, "--nproc-per-node", str(processes), "--max-restarts", str(restarts), "-m", "--", "dcgan"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    return subprocess.Popen([*launch, *map(str, arguments)], env=environment, **pipes)


def finish(launcher, seconds=240):
    """Wait for torchrun; return its exit code and what all processes printed to the two streams."""
    try:
        out, err = launcher.communicate(timeout=seconds)
    finally:
        if launcher.poll() is None:  # which torchrun passes on
            launcher.send_signal(signal.SIGTERM)
    return launcher.returncode, out, err


def workers(launcher):
    """Return the numbers of the processes that torchrun has started, in the order of their ranks; on Linux."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    ranks = {int(child): [v for v in found if v.startswith(b"RANK=")] for child, found in variables.items()}
    return sorted((child for child, rank in ranks.items() if rank), key=lambda child: int(ranks[child][0][5:]))
