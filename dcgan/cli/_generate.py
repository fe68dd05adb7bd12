"""`dcgan generate`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dcgan._allocator import keep_memory
from dcgan._choices import Precision
from dcgan.cli import _processes
from dcgan.cli._arguments import load_generator
from dcgan.cli._options import COUNT, FLAG, NATURAL, STEP
from dcgan.cli._terminal import UsageError, exit_on_error, progress_bar, say

_FILES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".webm"),
    *(".npy", ".pt", ".pth", ".safetensors", ".h5", ".hdf5"),
    *(".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
}


def generate(
    model: str = "faces",
    *,
    number: Annotated[int, Parameter(name=["--number", "-n"]), COUNT] = 64,
    out: Path = Path("samples"),
    label: Annotated[int | None, NATURAL] = None,
    seed: Annotated[int, NATURAL] = 0,
    start: Annotated[int, NATURAL] = 0,
    step: Annotated[int | Literal["best"] | None, STEP] = None,
    grid: Annotated[bool, FLAG] = False,
    force: Annotated[bool, FLAG] = False,
    batch_size: Annotated[int | None, COUNT] = None,
    precision: Precision = "fp32",
    device: str = "auto",
) -> int:
    """Generate images as PNG files, or as one archive. Each image depends only on the seed and its index.

    Started by torchrun, as torchrun --nproc-per-node 2 -m dcgan generate, each process writes a part of the folder.

    Args:
        model: Name of a model, which dcgan models lists; folder of a run or of a saved generator; or Hub repository.
        number: Number of images.
        out: Folder to write 000000.png and so on to; or a .zip of these files, or a .npz of all images in one array.
        label: Class of all images, for a conditional model; by default its classes come in turn.
        seed: Seed of the latents.
        start: Index of the first image.
        step: Of a run, take the generator as it was at this step, or at the best one, instead of the last.
        grid: Write all images as a single picture: grid.png in the folder, or --out itself if it is a .png.
        force: Overwrite existing files.
        batch_size: Number of images computed at once; by default as many as make a million pixels, at most 256.
        precision: Floating-point format to compute in.
        device: Device to compute on, such as cpu, cuda or mps; auto picks the best one available.
    """
    keep_memory()
    from dcgan._build import select_device
    from dcgan._distributed import fail_together, gather
    from dcgan._precision import DTYPES
    from dcgan.generate import default_batch_size, existing_files, is_archive, write_grid, write_part

    processes = _processes.process_count()
    with _processes.process_group():
        with exit_on_error(), fail_together():
            if grid and is_archive(out):
                raise UsageError(f"--grid writes a picture, but --out is an archive, {out}")
            if processes > 1 and (grid or is_archive(out)):
                raise UsageError(
                    f"{processes} processes write a folder of images together; a single file takes one process"
                )
            if out.suffix.lower() in _FILES and not (grid and out.suffix.lower() == ".png"):
                raise UsageError(
                    f"--out must be a folder, a .zip or a .npz; with --grid, a folder or a .png; got {out}"
                )
            picture = out if grid and out.suffix.lower() == ".png" else out / "grid.png"
            is_file = is_archive(out) or picture == out
            if out.exists() and out.is_dir() == is_file:
                raise UsageError(f"{out} is a folder" if is_file else f"--out must be a folder, but {out} is a file")
            existing = (
                [path for path in [picture] if path.exists()] if grid else existing_files(out, number, start=start)
            )
            if existing and not force:
                more = f" (and {len(existing) - 1} more of these files)" if existing[1:] else ""
                raise UsageError(f"{existing[0]} exists{more}: --force overwrites existing files")
            generator = load_generator(model, select_device(device), step)
            classes = generator.config["num_classes"]
            if label is not None and classes is None:
                raise UsageError(f"--label is for conditional models, and {model} has no classes")
            if label is not None and label >= classes:
                raise UsageError(f"--label must be from 0 to {classes - 1}, the classes of {model}, got {label}")
            batch_size = batch_size or default_batch_size(generator)
            options: dict[str, Any] = {"labels": label, "seed": seed, "start": start, "batch_size": batch_size}
            options |= {"dtype": DTYPES[precision]}
            part = {"rank": _processes.process_rank(), "processes": processes}
        with exit_on_error(running=True):
            if grid:
                write_grid(generator, picture, number, **options)
            else:
                with progress_bar("generating", "img") as progress:
                    for done in write_part(generator, out, number, **part, **options):
                        progress(done, number)
            gather(None)  # so that all are written
    say(f"{number} images in {picture if grid else out}")
    return 0
