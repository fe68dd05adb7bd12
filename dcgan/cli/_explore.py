"""`dcgan explore`."""

import errno
import os
import signal
from pathlib import Path
from threading import Thread
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from dcgan.cli._options import INTEGER
from dcgan.cli._terminal import UsageError, exit_on_error, say


def explore(
    model: str = "faces",
    *,
    port: Annotated[int, INTEGER, Parameter(validator=Number(gte=0, lte=65535))] = 7860,
    host: str = "127.0.0.1",
    browser: Annotated[bool, Parameter(name="--open", negative="--no-browser")] = False,
    export_space: Path | None = None,
) -> int:
    """Open a page on a model in the browser: its images, walks, sums, the latent of an image, its training.

    Ctrl-C stops it. The page loads nothing from elsewhere, and what is uploaded to it stays on this machine.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        port: Port of the page; 0 takes any that is free.
        host: Address to answer at; 0.0.0.0 lets other machines see the page, and the models on board, but no other.
        browser: Open the page in the browser.
        export_space: Do not open the page, but write it to this folder as a Space, which the Hugging Face Hub runs.
    """
    with exit_on_error():
        from dcgan import explore

        if export_space is not None:
            explore.export_space(model, export_space)
            say(f"{export_space}: app.py, requirements.txt, README.md")
            say("next:")
            say(f"  hf upload ORGANISATION/NAME {export_space} --repo-type space")
            return 0
        try:
            explore.serve(model, host=host, port=port, started=lambda url: announce(url, browser=browser))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES) and error.filename is None:
                raise UsageError(f"--host {host} --port {port}: {os.strerror(error.errno)}") from error
            raise
        except KeyboardInterrupt:
            say("")
    return 0


def announce(url: str, *, browser: bool) -> None:
    """Print the address of the page that is about to be served, and open it in the browser if that is asked for."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was uploaded is removed then, too
    say(f"{url}  (Ctrl-C stops it)")
    if browser:
        import webbrowser

        # Not waited for: a browser in a terminal runs until it is left, and asks for a page that is not served yet.
        Thread(target=webbrowser.open, args=[url], daemon=True).start()
