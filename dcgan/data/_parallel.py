"""Work ahead in threads, and decode in child processes: threads mostly wait for the interpreter's lock.

The children are our own because none of the libraries fits: `multiprocessing` and `concurrent.futures` run the caller's
main module again in every child, so that every script would need a guard; loky's workers outlive a killed parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import warnings
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

    from dcgan.data._decoding import Decoded, Decoder, Indices

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


def prefetch(
    executor: Executor, function: Callable[[Job], Result], jobs: Iterable[Job], depth: int
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in order, while at most `depth` later ones are under way."""
    pending: deque[Future[Result]] = deque()
    for job in jobs:
        pending.append(executor.submit(function, job))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def decode_in_processes(decoder: Decoder, count: int) -> Iterator[Callable[[Indices], Decoded]]:
    """Yield a function that decodes as `decoder` does, but in one of `count` child processes; threads may share it."""
    children = [_start_child() for _ in range(count)]
    idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
    for child in children:
        idle.put(child)

    def decode(indices: Indices) -> Decoded:
        answer: Decoded | BaseException | None = None
        child = idle.get()
        try:
            if child:
                answer = _request(child, decoder, indices)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("a decoding process has ended (out of memory?); falling back to a thread: %s", error)
            child = None
        finally:
            idle.put(child)
        if isinstance(answer, BaseException):
            raise answer
        return answer or decoder(indices)

    try:
        yield decode
    finally:
        started = [child for child in children if child]
        for child in started:
            child.kill()
        for child in started:
            with contextlib.suppress(BrokenPipeError), child:
                pass  # waits, and closes its pipes


def _start_child() -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", "from dcgan.data._parallel import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},  # noqa: PTH109
            # A Ctrl-C is for the parent alone; the child ends when its pipe does.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        logger.warning("a decoding process could not be started; falling back to a thread: %s", error)
        return None


def _request(child: subprocess.Popen[bytes], decoder: Decoder, indices: Indices) -> Decoded | BaseException:
    from PIL import Image, ImageFile

    if child.stdin is None or child.stdout is None:
        raise EOFError("the pipes are closed")
    pillow_settings = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    request = decoder.subset(indices), list(indices), pillow_settings
    pickle.dump(request, child.stdin, pickle.HIGHEST_PROTOCOL)
    child.stdin.flush()
    return pickle.load(child.stdout)  # type: ignore[no-any-return]  # noqa: S301 - from a process of ours


def serve() -> None:
    """Answer decoding requests from stdin on stdout until the parent closes the pipe."""
    from PIL import Image, ImageFile

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may come between the answers
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            decoder, indices, pillow_settings = pickle.load(requests)  # noqa: S301 - from the parent
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = pillow_settings
            try:
                answer = decoder(indices)
            except Exception as error:  # noqa: BLE001 - raised in the parent
                answer = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
