"""The command line; `dcgan --help` lists the commands.

Commands import what they need when they run, so that they print help and report mistakes without torch.

Exit codes: 0 done; 1 the run failed; 2 something the user can correct; 128 + N stopped by signal N.
"""

import errno
import sys
from collections.abc import Callable

from cyclopts import App, CycloptsError
from rich.console import Console

import dcgan
from dcgan.cli._arguments import locate_data
from dcgan.cli._bench import bench
from dcgan.cli._convert import convert, export
from dcgan.cli._dedup import dedup
from dcgan.cli._evaluate import evaluate
from dcgan.cli._explore import explore
from dcgan.cli._features import features
from dcgan.cli._generate import generate
from dcgan.cli._latents import arithmetic, project, walk
from dcgan.cli._migration import translate
from dcgan.cli._models import models
from dcgan.cli._options import read_recipe_file
from dcgan.cli._pack import pack
from dcgan.cli._processes import process_count, process_rank
from dcgan.cli._push import push
from dcgan.cli._recipes import recipes
from dcgan.cli._show import show
from dcgan.cli._terminal import RunError, Terminated, UsageError, has_lost_output, raise_on_signals, say
from dcgan.cli._train import train
from dcgan.cli._visualize import visualize

app = App(
    name="dcgan",
    help="Deep convolutional GANs: train them, and generate images with them.",
    version=dcgan.__version__,
    error_console=Console(stderr=True),
    suppress_keyboard_interrupt=False,  # it would exit by itself
)
app.command(train, config=read_recipe_file)
_COMMANDS: list[Callable[..., int]] = [recipes, models, show, generate, walk, arithmetic, project, explore, visualize]
_COMMANDS += [features, dedup, pack, evaluate, convert, export, push, bench]
for _command in _COMMANDS:
    app.command(_command)

_RENAMED = {  # since 0.1
    "--g-channels": "--base-channels, and the discriminator has the same width unless --d-base-channels is given",
    "--d-channels": "--d-base-channels",
    "--work": "--workload",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        with raise_on_signals():
            code = _run(arguments)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        say(f"dcgan: standard output: {error.strerror}", error=True)  # rich could not print a help
        return 1
    return code or int(has_lost_output())


def _run(arguments: list[str] | None) -> int:
    rank = process_rank()  # of several processes, the first one reports what happens to all of them
    try:
        arguments = locate_data(sys.argv[1:] if arguments is None else arguments)
        _refuse_old_names(arguments)
        code: int = (
            app(
                arguments,
                console=Console(quiet=True) if rank else None,
                print_error=not rank,
                exit_on_error=False,
                result_action="return_value",
            )
            or 0
        )
    except CycloptsError:
        return 2  # cyclopts has printed it
    except UsageError as error:
        if not rank:
            say(f"dcgan: {error}", error=True)
        return 2
    except RunError as error:
        if not (rank and error.everywhere):
            say(f"dcgan: {f'process {rank}: ' if rank else ''}{error}", error=True)
        return 1
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        if not rank:
            say(f"dcgan: {'terminated' if terminated else 'interrupted'}", error=True)
        return 143 if terminated else 130
    except SystemExit:  # raised by rich when the reader of a pipe has gone
        return 0
    return code


def _refuse_old_names(arguments: list[str]) -> None:
    together = ("train", "generate", "evaluate", "features")
    if process_count() > 1 and arguments and arguments[0] not in together and arguments[0][:1] != "-":
        raise UsageError(
            f"{arguments[0]} runs in one process, and torchrun has started {process_count()}: start it alone"
        )
    for argument in arguments:
        if (name := argument.partition("=")[0]) in _RENAMED:
            raise UsageError(f"{name} is now {_RENAMED[name]}")
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for option, first, second in zip(words, words[1:], words[2:], strict=False):
        if option == "--image-size" and first.isdecimal() and second.isdecimal():
            raise UsageError(f"--image-size takes HEIGHTxWIDTH: {first}x{second}")
    if (command := translate(arguments)) is not None:
        raise UsageError(command)
