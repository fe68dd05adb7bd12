"""The options of published scripts, in the words of this command line."""

import shlex

# Of PyTorch's examples/dcgan, and of a widely copied pair of scripts, one of which generates.
RENAMED = {
    "--dataset": "--data",
    "--dataroot": "--root",
    "--batchSize": "--batch-size",
    "--imageSize": "--image-size",
    "--nz": "--latent-dim",
    "--ngf": "--base-channels",
    "--ndf": "--d-base-channels",
    "--niter": "--epochs",
    "--netG": "--generator",
    "--netD": "--discriminator",
    "--outf": "--out",
    "--manualSeed": "--seed",
    "--load_path": "",
    "-load_path": "",
    "--num_output": "--number",
    "-num_output": "--number",
}
FLAGS = {"--cuda": "--device cuda", "--accel": "", "--mps": "--device mps"}  # the default device is the best one
DROPPED = {"--ngpu"}  # with its value: one process trains on one device
_WHOLE = {"--dataset", "--dataroot"}  # options that a command of the example has


def translate(arguments: list[str]) -> str | None:
    """Return the command that does here what a published script does with these arguments; None if they are ours."""
    given = [argument.partition("=")[0] for argument in arguments]
    if not {*RENAMED, *FLAGS, *DROPPED} & set(given):
        return None
    words = [word for argument in arguments for word in argument.split("=", 1)]
    command = ["dcgan"]
    skip = False
    for word in words:
        if skip or word in DROPPED:
            skip = word in DROPPED
        elif word in FLAGS:
            command += FLAGS[word].split()
        else:
            command += [RENAMED.get(word, word)] if RENAMED.get(word, word) else []
    if _WHOLE & set(given):
        command[2:2] = ["--recipe", "tutorial"]  # which trains as the script does
    said = [f"these are options of a published script; here it is\n  {shlex.join(command)}"]
    said += [
        f"  after dcgan convert {shlex.quote(word)} FOLDER, and with this folder instead of the file"
        for word in words
        if word.endswith((".pth", ".pt"))
    ]
    return "\n".join(said)
