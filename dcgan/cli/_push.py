"""`dcgan push`."""

from pathlib import Path
from typing import Annotated

from dcgan.cli._options import FLAG
from dcgan.cli._terminal import UsageError, exit_on_error, say

_OF_A_RUN = ("metrics.jsonl", "curves.png", "samples.gif", "samples/*.png")  # beside networks, card and recipe


def push(folder: Path, name: str, *, private: Annotated[bool, FLAG] = False) -> int:
    """Publish a run or a saved network on the Hugging Face Hub, in one commit.

    Of a run that is everything but its states, and the paths in its recipe. The title and the example of the card get
    the repository's name; a folder without a card gets a plain one.

    Args:
        folder: Folder of a run, or of saved networks, which are loaded first to see that they are whole.
        name: Repository, as ORGANISATION/NAME; it is created if there is none.
        private: Create the repository as a private one.
    """
    with exit_on_error():
        from dcgan.hub._card import is_licensed
        from dcgan.hub._client import expect_access, push_files

        files = _read_files(folder, name)
        expect_access(name)
    with exit_on_error(running=True):
        url = push_files(name, files, private=private)
    say(f"{len(files)} files in {url}")
    if not is_licensed(files["README.md"].decode()):
        say("the card states no licence: add a line such as `license: mit` at the top of README.md, and push again")
    say("next:")
    say(f"  dcgan generate {name} -n 64 --out samples")
    return 0


def _read_files(folder: Path, name: str) -> dict[str, bytes]:
    """Return the files to publish, by their paths in the repository, once the networks in them have been loaded."""
    from dcgan.hub._card import model_card, rename
    from dcgan.hub._pretrained import CARD, CONFIG, WEIGHTS
    from dcgan.models import Discriminator, Generator
    from dcgan.recipe import load_recipe

    if not folder.is_dir():
        raise UsageError(f"push takes the folder of a run or of saved networks, but there is no folder {folder}")
    recipe, card = folder / "recipe.yaml", folder / CARD
    both = (Generator, Discriminator)
    kinds = [kind for kind in both if recipe.exists() or (folder / kind.subfolder / CONFIG).exists()]
    networks = [kind.from_pretrained(folder) for kind in kinds or both]
    paths = [folder / network.subfolder / file for network in networks for file in (CONFIG, WEIGHTS)]
    if recipe.exists():
        paths += [path for pattern in _OF_A_RUN for path in sorted(folder.glob(pattern))]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if recipe.exists():
        files[recipe.name] = load_recipe(recipe).without_paths().to_yaml().encode()
    text = card.read_text(encoding="utf-8") if card.exists() else model_card(name, networks[0].config)
    return files | {CARD: rename(text, name).encode()}
