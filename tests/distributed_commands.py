"""Commands that torchrun starts in several processes, in new processes of their own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import dcgan

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def start(*arguments, processes=2, restarts=0, folder=None):
    """Start a command under torchrun; return the process of torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dcgan.__file__).parents[1])}
    launch = [*TORCHRUN, "--nproc-per-node", str(processes), "--max-restarts", str(restarts), "-m", "--", "dcgan"]
    # Files, which never fill up as pipes do that nobody reads.
    files = {"stdout": TemporaryFile("w+"), "stderr": TemporaryFile("w+")}  # noqa: SIM115 - `finish` closes them
    launcher = subprocess.Popen([*launch, *map(str, arguments)], env=environment, cwd=folder, **files)
    launcher.stdout, launcher.stderr = files.values()
    return launcher


def finish(launcher, seconds=240):
    """Wait for torchrun; return its exit code and what all processes printed to the two streams."""
    try:
        launcher.wait(seconds)
    finally:
        if launcher.poll() is None:  # which torchrun passes on
            launcher.send_signal(signal.SIGTERM)
    texts = []
    for file in (launcher.stdout, launcher.stderr):
        file.seek(0)
        texts.append(file.read())
        file.close()
    return launcher.returncode, *texts


def workers(launcher):
    """Return the numbers of the processes that torchrun has started, in the order of their ranks; on Linux."""
    ranks = {}
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks |= {int(v[5:]): int(child) for v in variables if v.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


def wait(condition, launcher, seconds=240):
    """Wait until a condition holds; raise AssertionError if torchrun ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert launcher.poll() is None, finish(launcher)
        assert time.monotonic() < deadline
        time.sleep(0.01)
