"""The page as a Space: a folder that the Hugging Face Hub runs."""

from importlib.metadata import version
from pathlib import Path

from dcgan import __version__
from dcgan._errors import InputError
from dcgan.explore._server import expect_gradio
from dcgan.explore._view import Models
from dcgan.zoo import list_models, load_record

_APP = '''"""A page on a trained DCGAN."""

import os
from pathlib import Path

from dcgan.explore import serve

serve({model}, host="0.0.0.0", port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
'''


def export_space(model: str, folder: Path) -> None:
    """Write a folder that is a Space: `app.py`, `requirements.txt`, `README.md`, and the weights if they are ours.

    A model of a folder is written beside the page; one that comes with the package or from the Hub is taken from there.

    Args:
        model: Name of a model, folder of a run or of a saved generator, or Hub repository.
        folder: Folder to write, which must not exist or be empty.

    Raises:
        ImportError: If the package gradio is missing.
        OSError: If the folder holds files or cannot be written, or the model is not there.
        ValueError: If the model cannot be loaded.
    """
    expect_gradio()
    from huggingface_hub import SpaceCardData

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists: a Space is written to a new or empty folder")
    models = Models(model)
    named = models.default in list_models()
    from_hub = models.folder(models.default) is None and not named
    folder.mkdir(parents=True, exist_ok=True)
    title = models.default.removeprefix("./")
    if named or from_hub:
        argument = repr(models.default)
    else:
        models.load(models.default).save_pretrained(folder / title)
        argument = f"str(Path(__file__).parent / {title!r})"
    card = SpaceCardData(
        title=f"{title}, a DCGAN",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version="3.11",
        app_file="app.py",
        license=load_record(title).licence if named else None,
        models=[models.default] if from_hub else None,
    )
    text = (
        f"---\n{card.to_yaml()}\n---\n# {title}\n\nA page on a trained DCGAN, made by `dcgan explore --export-space`.\n"
    )
    (folder / "app.py").write_text(_APP.format(model=argument), encoding="utf-8")
    (folder / "requirements.txt").write_text(f"dcgan[explore]=={__version__}\n", encoding="utf-8")
    (folder / "README.md").write_text(text, encoding="utf-8")
