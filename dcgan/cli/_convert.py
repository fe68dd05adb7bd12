"""`dcgan convert` and `dcgan export`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dcgan._choices import Activation, Distribution, Output
from dcgan.cli._arguments import expect_new
from dcgan.cli._options import COUNT, FLAG, SIZE
from dcgan.cli._terminal import UsageError, exit_on_error, say


def convert(
    *paths: str,
    key: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    revision: str | None = None,
    image_size: Annotated[int | tuple[int, int] | None, SIZE] = None,
    latent_dim: Annotated[int | None, COUNT] = None,
    latent: Distribution | None = None,
    norm_eps: float | None = None,
    activation: Activation | None = None,
    slope: float | None = None,
    stem_activation: bool | None = None,
    output: Output | None = None,
    to: Literal["tutorial"] | None = None,
    discriminator: Annotated[bool, FLAG] = False,
    verbose: Annotated[bool, FLAG] = False,
    force: Annotated[bool, FLAG] = False,
) -> int:
    """Convert checkpoints of other programs to a folder that every command can load, or a folder to such a checkpoint.

    Args:
        paths: Files, folders or Hub repositories to read, followed by the folder to write; with --to, the folder to
            read and the file to write.
        key: Name of the network to read, such as netG_ema, if a file contains several; can be repeated.
        revision: Branch, tag or commit of a repository; by default its latest commit.
        image_size: Side of the images, or HEIGHTxWIDTH; by default inferred from the weights.
        latent_dim: Length of the latents to expect; the weights show it.
        latent: Distribution of the latents; by default normal, but uniform for the paper authors' networks other than
            SVHN's.
        norm_eps: Epsilon of the normalisation layers; by default 1e-5, but 1e-8 for the paper authors' networks.
        activation: Activation of the generator, or of a discriminator alone; by default relu, or leaky-relu.
        slope: Slope of leaky-relu below zero; by default 0.2.
        stem_activation: Whether an activation follows the generator's first layer; by default true, except for linear5
            and where that layer is not normalised.
        output: Last activation of the generator; by default tanh.
        to: Write a state dict for the classes of PyTorch's DCGAN example and tutorial instead.
        discriminator: With --to, write the discriminator instead of the generator.
        verbose: Say what each layer was taken for.
        force: Overwrite existing files.
    """
    with exit_on_error():
        if len(paths) < 2:
            raise UsageError(f"convert needs at least one path to read, then the path to write, got {len(paths)}")
        *sources, target = paths
        out = Path(target)
        files = [out] if to is not None else [out / "config.json", out / "discriminator/config.json"]
        expect_new(*files, force=force)
        if to is not None:
            from dcgan.convert import write_tutorial
            from dcgan.models import Discriminator, Generator

            if len(sources) > 1:
                raise UsageError(f"--to writes one network, got {len(sources)} paths to read")
            write_tutorial((Discriminator if discriminator else Generator).from_pretrained(sources[0]), out)
        else:
            import dcgan.convert

            converted = dcgan.convert.convert(
                sources,
                keys=key,
                revision=revision,
                image_size=image_size,
                latent_dim=latent_dim,
                latent=latent,
                norm_eps=norm_eps,
                activation=activation,
                slope=slope,
                stem_activation=stem_activation,
                output=output,
            )
            converted.save(out)
            for line in converted.notes + (converted.layers if verbose else ()):
                say(line)
    say(f"written to {out}")
    return 0


def export(
    model: str,
    out: Path,
    *,
    discriminator: Annotated[bool, FLAG] = False,
    force: Annotated[bool, FLAG] = False,
) -> int:
    """Export a generator or a discriminator to ONNX, for batches of any size.

    Args:
        model: Name of a model, folder of a run or of a saved generator, or Hub repository.
        out: File to write, such as generator.onnx.
        discriminator: Export the discriminator instead of the generator.
        force: Overwrite an existing file.
    """
    with exit_on_error():
        if out.suffix != ".onnx":
            raise UsageError(f"export writes ONNX: the file's name must end in .onnx, got {out}")
        expect_new(out, force=force)
        from dcgan.export import export_onnx
        from dcgan.models import Discriminator, Generator

        network = (Discriminator if discriminator else Generator).from_pretrained(model)
        export_onnx(network, out)
    say(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return 0
