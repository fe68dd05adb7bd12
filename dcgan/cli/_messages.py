"""Messages of the library in the words of the command line."""

import re
from dataclasses import fields

# What only Python passes, and what one can do without it.
_PYTHON_ONLY = {
    "pass token= or log in": "set HF_TOKEN, or log in with: hf auth login",
    "try again, or pass revision=": "try again",
    "force_download=True downloads it again": "remove it to download it again",
    "verify=False loads them": "from_pretrained(FOLDER, verify=False) of dcgan.Generator or dcgan.Discriminator loads "
    "them in Python",
}
# Where a name of one word, such as `data`, is that of an option.
_CONTEXTS = (
    r"(?:^|(?<=: )){}(?= (?:and \S+ )?(?:must|needs|apply|exclude))",
    r"^{}(?= \S+ (?:cannot be read|is not available))",
    r"(?:(?<=needs )|(?<=takes no )|(?<=excludes )){}",
    r"(?<=and ){}(?= exclude)",
    r"{}(?= and --)",
    r"(?<!the ){}(?= ')",
)


def in_options(message: str) -> str:
    """Write arguments of Python as the options that were typed: `batch_size` as `--batch-size`."""
    from dcgan.recipe import Recipe

    for theirs, ours in _PYTHON_ONLY.items():
        message = message.replace(theirs, ours)
    names = sorted([field.name for field in fields(Recipe)] + ["per_class"], key=len, reverse=True)
    flags = rf"(?<![\w.])({'|'.join(names)})=(True|False)(?!\w)"
    message = re.sub(flags, lambda match: _option(match[1] if match[2] == "True" else f"no_{match[1]}"), message)
    message = re.sub(r"(?<= change )[a-z0-9_]+(?:, [a-z0-9_]+)*(?=[;.])", lambda match: _options(match[0]), message)
    long = "|".join(name for name in names if "_" in name)
    short = f"({'|'.join(name for name in names if '_' not in name)})"
    patterns = [f"({long})", *(context.format(short) for context in _CONTEXTS)]
    for pattern in patterns:
        message = re.sub(rf"(?<![\w'/.-]){pattern}(?![\w'/.=-])", lambda match: _option(match[1]), message)
    return message


def count(number: int, noun: str) -> str:
    """Say how many there are of what a regular noun stands for."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _options(names: str) -> str:
    return ", ".join(map(_option, names.split(", ")))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
