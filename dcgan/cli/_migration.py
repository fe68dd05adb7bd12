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
_NO_FILES = {("--netG", ""), ("--netD", "")}  # the script's own defaults
_THEIR_DEFAULTS = [("--epochs", "25"), ("--batch-size", "64")]  # where the recipe has the tutorial's
_FOLDERS = ("imagenet", "lfw")  # which the example takes as it does folders
_WHOLE = {"--dataset", "--dataroot"}  # options that a command of the example has


def _find_data(command: list[str]) -> None:
    """Say where the example finds its sets: some are folders of class folders, and one needs no folder at all."""
    name = command[command.index("--data") + 1] if "--data" in command[:-1] else ""
    if name in _FOLDERS:
        command[command.index("--data") + 1] = "folder"
    if name == "lsun" and "--classes" not in command:
        command += ["--classes", "bedroom"]
    if name == "fake" and "--root" in command[:-1]:
        del command[command.index("--root") : command.index("--root") + 2]


def translate(arguments: list[str]) -> str | None:
    """Return the command that does here what a published script does with these arguments; None if they are ours."""
    given = [argument.partition("=")[0] for argument in arguments]
    if not {*RENAMED, *FLAGS, *DROPPED} & set(given):
        return None
    if arguments[0].startswith("-"):  # the scripts have no commands
        arguments = ["generate" if {"--load_path", "-load_path"} & set(given) else "train", *arguments]
    words = [word for a in arguments for word in (a.split("=", 1) if a.startswith("-") else [a])]
    words = [word for word, after in zip(words, [*words[1:], ""], strict=True) if (word, after) not in _NO_FILES]
    command = ["dcgan"]
    before = ""
    for word in filter(None, words):
        if word in FLAGS:
            command += FLAGS[word].split()
        elif word not in DROPPED and before not in DROPPED:
            theirs = word.split(",") if before == "--classes" else [word]
            command += filter(None, (RENAMED.get(part, part) for part in theirs))
        before = word
    _find_data(command)
    if _WHOLE & set(given):
        data = [] if "--dataset" in given else ["--data", "folder"]  # of which the tutorial names only the root
        command[2:2] = ["--recipe", "tutorial", *data]  # whose networks and rates are the script's
        command += [word for name, *value in _THEIR_DEFAULTS if name not in command for word in (name, *value)]
    said = [f"these are options of a published script; here it is\n  {shlex.join(command)}"]
    said += [
        f"  after dcgan convert {shlex.quote(word)} FOLDER, and with this folder instead of the file"
        for word in words
        if word.endswith((".pth", ".pt"))
    ]
    return "\n".join(said)
