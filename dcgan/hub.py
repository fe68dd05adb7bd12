"""Networks as files: `config.json` and `model.safetensors`, in a folder or in a repository on the Hugging Face Hub."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dcgan.files import replacing

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Pretrained(nn.Module):
    """A network that is rebuilt from its constructor's arguments, `config`, and its tensors.

    A generator's files lie at the root of a folder or repository, a discriminator's in `discriminator/`.
    """

    config: dict[str, Any]
    subfolder: ClassVar[str] = ""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load a network from a folder, such as that of a run, or from the Hub; it is in evaluation mode.

        Args:
            name_or_path: A folder, or a repository `"organisation/name"`.
            revision: Branch, tag or commit of the repository.
            cache_dir: Where downloads are kept, if not in the Hub's usual cache.
            token: Access token for a private repository; by default the one that is logged in.
            local_files_only: Look in the cache only.
            force_download: Download even what the cache holds.
            device: Where the weights go.
            dtype: Floating-point type of the weights, if not that of the file.

        Raises:
            FileNotFoundError: If there is no such folder, repository or file.
            ValueError: If the configuration or the weights do not fit this class.
        """
        names = [f"{cls.subfolder}/{file}".lstrip("/") for file in (CONFIG, WEIGHTS)]
        if Path(name_or_path).is_dir():
            paths = [Path(name_or_path, name) for name in names]
            if absent := [path for path in paths if not path.is_file()]:
                raise FileNotFoundError(f"{name_or_path} holds no {cls.__name__}: {absent[0]} is missing")
        else:
            paths = _download(
                os.fspath(name_or_path),
                names,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        network = cls._from_files(*paths, device=torch.device(device))
        return network.to(dtype=dtype) if dtype is not None else network

    @classmethod
    def _from_files(cls, config_path: Path, weights_path: Path, *, device: torch.device) -> Self:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_path} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{config_path} must hold a JSON object, got {type(config).__name__}")  # noqa: TRY004
        if (kind := config.pop("class", cls.__name__)) != cls.__name__:
            raise ValueError(f"{config_path} describes a {kind}, not a {cls.__name__}")
        try:
            with torch.device("meta"):  # no memory and no random weights for what is about to be replaced
                network = cls(**config)
        except TypeError as error:
            raise ValueError(f"{config_path} does not fit {cls.__name__}: {error}") from error
        try:
            state = load_file(weights_path, device=str(device))
        except SafetensorError as error:
            raise ValueError(f"{weights_path} is not a whole safetensors file: {error}") from error
        expect_fit(state, network.state_dict(), f"{weights_path} does not fit the {cls.__name__} of {CONFIG}")
        network.load_state_dict(state, assign=True)
        return network.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the configuration and the weights into `folder`, each file whole or not at all; return its path.

        A discriminator goes into `folder/discriminator`, beside its generator.
        """
        from safetensors.torch import save

        target = Path(folder, self.subfolder)
        target.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        config = {"class": type(self).__name__, **self.config}
        for name, data in {WEIGHTS: save(state, {"format": "pt"}), CONFIG: _json(config)}.items():
            with replacing(target / name) as file:
                file.write(data)
        return target


def _json(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()


def _download(repo_id: str, names: list[str], **options: Any) -> list[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return [Path(hf_hub_download(repo_id, name, **options)) for name in names]
    except HFValidationError as error:
        raise FileNotFoundError(f"there is no folder {repo_id!r}, nor can it be a repository's name") from error


def expect_fit(state: dict[str, Tensor], expected: dict[str, Tensor], message: str) -> None:
    """Check that two sets of tensors have the same names and shapes.

    Raises:
        ValueError: If they have not; after `message`, it lists what is missing, unexpected and misshapen.
    """
    shared = sorted(state.keys() & expected.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    faults = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "misshapen": misshapen,
    }
    if any(faults.values()):
        raise ValueError(f"{message}: " + "; ".join(f"{k} {', '.join(v)}" for k, v in faults.items() if v))
