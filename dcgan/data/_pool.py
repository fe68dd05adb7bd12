"""Decoding in child processes, which keeps all cores busy: threads mostly wait for the interpreter's lock.

The children are started as `python -m dcgan.data._pool`, import no torch, and need no guard in the program that has them.
"""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from dcgan.data._decoding import Decoder

logger = logging.getLogger(__name__)


class DecoderPool:
    """A decoder that works in a child process for each thread that calls it. Use it as a context manager."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._own = threading.local()
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            with contextlib.suppress(BrokenPipeError), child:
                pass  # waits, and closes its pipes

    def __call__(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Decode as `Decoder` does."""
        part = replace(self._decoder, source=self._decoder.source.part(indices))
        try:
            answer = self._ask((part, list(indices), _settings()))
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            # Out of memory, most likely; what it was to do is still to be done.
            logger.warning("a process that decodes images has ended, and is done without: %s", error)
            self._own.child = None
            return self._decoder(indices)
        if isinstance(answer, BaseException):
            raise answer
        images, failures = answer
        return images, failures

    def _ask(self, question: Any) -> Any:
        if not hasattr(self._own, "child"):
            self._own.child = self._started()
        child = self._own.child
        if child is None:
            raise EOFError("there is none any more")
        pickle.dump(question, child.stdin, pickle.HIGHEST_PROTOCOL)
        child.stdin.flush()
        return pickle.load(child.stdout)  # noqa: S301 - of a process of ours

    def _started(self) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(
            [sys.executable, "-m", "dcgan.data._pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # a Ctrl-C is for the program; the child ends when its pipe does
        )
        self._children.append(child)
        return child


def _settings() -> tuple[int | None, bool]:
    """Return what a program may have set in Pillow, and its children should too."""
    from PIL import Image, ImageFile

    return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES


def main() -> None:
    """Decode what is asked for until there is nobody to ask."""
    from PIL import Image, ImageFile

    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may come between the answers
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            decoder, indices, settings = pickle.load(questions)  # noqa: S301 - of the process that started this one
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = settings
            try:
                answer = decoder(indices)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where it was asked for
                answer = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


if __name__ == "__main__":
    main()
