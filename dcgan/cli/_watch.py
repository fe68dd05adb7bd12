"""The page of `dcgan train --watch`, in a process of its own.

It is served until its standard input ends, as it does when the training process closes it, or is gone in whatever way.
"""

import logging
import os
import subprocess
import sys
import time
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO

from dcgan.cli._explore import announce
from dcgan.cli._terminal import exit_on_error

_SECONDS_TO_END = 10

logger = logging.getLogger(__name__)


@contextmanager
def page(folder: Path) -> Iterator[None]:
    """Show the page of `dcgan explore` on the folder of a run until the block ends."""
    # No process of those that torchrun has started, and out of reach of the Ctrl-C that is meant for training.
    named = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    alone = {key: value for key, value in os.environ.items() if key not in named and "TORCHELASTIC" not in key}
    process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=alone,
        start_new_session=True,
    )
    Thread(target=_log_address, args=[process.stdout], daemon=True).start()
    try:
        yield
    finally:
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()


def _log_address(lines: IO[str]) -> None:
    if line := lines.readline():
        logger.info("watch it at %s", line.split()[0])


def _end_with_input() -> None:
    sys.stdin.read()
    interrupt_main()
    time.sleep(_SECONDS_TO_END / 2)
    os._exit(0)  # a server may wait for a visitor for ever, and nobody is left to interrupt it again


def main() -> None:
    """Serve the page on the folder that the first argument names."""
    Thread(target=_end_with_input, daemon=True).start()
    with exit_on_error(), suppress(KeyboardInterrupt):
        from dcgan import explore

        explore.serve(sys.argv[1], port=0, follow=True, started=lambda url: announce(url, browser=True))


if __name__ == "__main__":
    main()
