"""`dcgan models`."""

from typing import Annotated

from dcgan._errors import InputError
from dcgan.cli._options import FLAG
from dcgan.cli._terminal import RunError, say, say_table
from dcgan.zoo import Model, list_models, load_record

_HEADINGS = ("name", "images", "MB", "licence", "figure", "what it draws", "from")


def models(*, verify: Annotated[bool, FLAG] = False) -> int:
    """List the trained models that commands take by name: ours, on board, and others', which are fetched.

    Args:
        verify: Compare the hashes of those on board, fetch the others anew, and draw an image of each.
    """
    if verify:
        return _verify()
    rows: list[tuple[str, ...]] = [_HEADINGS]
    rows += [_summarize(load_record(name)) for name in list_models()]
    say_table(rows)
    say("\n* not verified here: dcgan models --verify fetches and checks them")
    say("next:")
    say("  dcgan generate faces --grid")
    return 0


def _summarize(model: Model) -> tuple[str, ...]:
    channels, height, width = model.shape
    if model.on_board:
        weight = sum(path.stat().st_size for path in model.folder.rglob("*.safetensors"))
    else:
        weight = sum(file.size or 0 for file in model.files)
    figure = next((f"{name} {value}".partition(" (")[0].partition(",")[0] for name, value in model.figures.items()), "")
    mark = "" if model.on_board or model.verified else " *"
    return (
        model.name,
        f"{height}x{width}x{channels}",
        f"{weight / 1e6:.1f}" if weight else "?",
        model.licence,
        figure,
        model.description,
        ("the package" if model.on_board else model.source.partition(", http")[0]) + mark,
    )


def _verify() -> int:
    import hashlib

    from dcgan.models import Generator
    from dcgan.zoo._fetch import fetch

    failed = []
    for name in list_models():
        model = load_record(name)
        try:
            if model.repository:
                generator = Generator.from_pretrained(model.repository, revision=model.revision, force_download=True)
            else:
                folder = fetch(model, force_download=True)  # which compares the hashes of what it fetches
                for file, digest in model.sha256.items():
                    if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
                        raise InputError(f"{folder / file} is not the file that it was")
                generator = Generator.from_pretrained(folder)
            if (shape := tuple(generator.float().sample(1, seed=0).shape[1:])) != model.shape:
                raise InputError(f"it draws {shape}, not {model.shape}")
            say(f"{name}: as it was, and draws {shape}")
        except (OSError, ValueError) as error:
            failed.append(name)
            say(f"{name}: {error}", error=True)
    if failed:
        raise RunError(f"{len(failed)} of {len(list_models())} models could not be verified: {', '.join(failed)}")
    return 0
