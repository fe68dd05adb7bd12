"""Networks as files: `config.json` and `model.safetensors`, in a folder or in a repository on the Hugging Face Hub."""

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcgan._files import atomic_write
from dcgan.hub._client import download, pickles_among, translate_hub_errors

Network = TypeVar("Network", bound="Pretrained")
Module = TypeVar("Module", bound=nn.Module)

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


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

        Nothing in the files is executed, and a network is returned whole or not at all.

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
            FileNotFoundError: If there is no such folder, repository, revision or file.
            NotADirectoryError: If `name_or_path` is a file.
            PermissionError: If the repository asks for a token, or for another one.
            OSError: If the download fails.
            ValueError: If the configuration or the weights do not fit this class.
        """
        torch.empty(0, device=device)  # raises where there is no such device, before anything is read
        names = [f"{cls.subfolder}/{file}".lstrip("/") for file in (CONFIG, WEIGHTS)]
        path = Path(name_or_path)
        if not os.fspath(name_or_path):
            raise ValueError("name_or_path must be a folder or a repository's name, got an empty one")
        if path.is_file():
            kind = pickles_among([path.name]) or f"; its folder is {path.parent}"
            raise NotADirectoryError(f"{path} is a file, and networks are loaded from folders{kind}")
        if path.is_dir():
            config_path, weights_path = _local(path, names, cls.__name__)
        else:
            options = {
                "cache_dir": cache_dir,
                "token": token,
                "local_files_only": local_files_only,
                "force_download": force_download,
            }
            config_path, weights_path = download(os.fspath(name_or_path), names, revision, cls.__name__, options)
        network = cls._from_files(config_path, weights_path, device=str(device))
        return network.to(dtype=dtype) if dtype is not None else network

    @classmethod
    def _from_files(cls, config_path: Path, weights_path: Path, *, device: str) -> Self:
        config = _read_config(config_path)
        state, saved_config = _read_weights(weights_path, device)
        unknown = config.keys() - signature(cls).parameters.keys() - {"class", "dcgan"}
        if saved_config is not None and saved_config != config and not unknown:
            # A save was cut between its two files: the weights are the newer and know what they belong to.
            logger.warning("%s is not what the weights beside it were saved with: using theirs", config_path)
            config = saved_config
        if (kind := config.pop("class", cls.__name__)) != cls.__name__:
            raise ValueError(f"{config_path} describes a {kind}, not a {cls.__name__}")
        writer = config.pop("dcgan", None)
        try:
            # mypy does not see that a class is hashable.
            skeleton: Self = _skeleton(cls, json.dumps(config))  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            import dcgan

            by = f"; it was written by dcgan {writer}, and this is {dcgan.__version__}" if writer else ""
            raise ValueError(f"{config_path} does not describe a {cls.__name__}: {error}{by}") from error
        expect_fit(state, skeleton.state_dict(), f"{weights_path} does not fit the {cls.__name__} of {CONFIG}")
        network: Self = _filled(skeleton, state)
        network.config = copy.deepcopy(skeleton.config)
        return network

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the configuration and the weights into `folder`; return the path of the files.

        A discriminator goes into `folder/discriminator`, beside its generator. A kill at any moment, or a full disk,
        leaves the network that was there before, or this one.
        """
        import dcgan

        target = Path(folder, self.subfolder)
        target.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        config = {"class": type(self).__name__, "dcgan": dcgan.__version__, **self.config}

        from safetensors.torch import save

        # The weights come first and carry the configuration: from the moment they are in place, the new network is.
        # One entry alone, since safetensors writes several in an order of its own, each time another.
        weights = save(state, metadata={"config": json.dumps(config)})
        for name, data in ((WEIGHTS, weights), (CONFIG, f"{json.dumps(config, indent=2)}\n".encode())):
            with atomic_write(target / name) as file:
                file.write(data)
        return target

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        commit_message: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        card: str | None = None,
    ) -> str:
        """Upload the network in one commit, to a repository that is made if there is none; return the commit's URL.

        A repository without a model card gets a plain one; `dcgan.card.model_card` writes a fuller one.

        Args:
            repo_id: Repository `"organisation/name"`.
            private: Whether a repository that is made is private.
            commit_message: By default, one that names the class.
            token: Access token; by default the one that is logged in.
            revision: Branch to commit to.
            card: Text of README.md, replacing the one that is there.

        Raises:
            PermissionError: If there is no token, or it does not allow this.
            OSError: If the upload fails.
            ValueError: If `repo_id` is not a repository's name.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

        from dcgan.hub._card import model_card

        validate_repo_id(repo_id)
        api = HfApi(token=token)
        message = commit_message or f"Upload {type(self).__name__}"
        with tempfile.TemporaryDirectory() as folder, translate_hub_errors(repo_id, revision):
            self.save_pretrained(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if card is None and not api.file_exists(repo_id, CARD, revision=revision):
                card = model_card(repo_id, self.config)
            if card is not None:
                Path(folder, CARD).write_text(card, encoding="utf-8")
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision)
        return str(commit.commit_url)


class Skeleton(TorchFunctionMode):
    """Build modules without memory and without drawing weights, for what is about to be replaced.

    `torch.device("meta")` does as much, but imports a second's worth of torch on its first use.
    """

    _MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.tensor})
    _FILLERS = frozenset({"normal_", "uniform_", "kaiming_uniform_", "zeros_", "ones_", "zero_", "fill_"})

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._MAKERS:
            return func(*args, **{**kwargs, "device": "meta"})
        if getattr(func, "__name__", "") in self._FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@lru_cache(maxsize=8)  # building the modules takes longer than reading the weights
def _skeleton(cls: Callable[..., Network], arguments: str) -> Network:
    with Skeleton():
        return cls(**json.loads(arguments)).eval()


def _filled(skeleton: Module, state: dict[str, Tensor], prefix: str = "") -> Module:
    """Return a module like `skeleton`, with structure of its own and the tensors of `state`."""
    module = skeleton.__class__.__new__(skeleton.__class__)
    module.__dict__ = {name: v.copy() if isinstance(v, dict) else v for name, v in vars(skeleton).items()}
    # The private dictionaries, since no public call replaces tensors without touching each several times.
    tensors, buffers, children = module._parameters, module._buffers, module._modules  # noqa: SLF001
    tensors |= {name: nn.Parameter(state[prefix + name]) for name, tensor in tensors.items() if tensor is not None}
    buffers |= {name: state[prefix + name] for name, tensor in buffers.items() if tensor is not None}
    for name, child in skeleton.named_children():
        children[name] = _filled(child, state, f"{prefix}{name}.")
    return module


def _local(folder: Path, names: list[str], kind: str) -> list[Path]:
    paths = [folder / name for name in names]
    if absent := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{folder} holds no {kind}: {absent[0]} is missing{pickles_among(path.name for path in folder.iterdir())}"
        )
    return paths


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")  # noqa: TRY004 - the file's fault
    return config


def _read_weights(path: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the tensors and the configuration saved with them; both lie in a file of their own size, never more."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device) as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        saved_config = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, ValueError) as error:
        again = "; if it was downloaded, force_download=True gets it again"
        raise ValueError(f"{path} is not a whole safetensors file: {error}{again}") from error
    return state, saved_config if isinstance(saved_config, dict) else None


def expect_fit(state: dict[str, Tensor], expected: dict[str, Tensor], message: str) -> None:
    """Check that two sets of tensors have the same names, shapes and kinds of numbers.

    Raises:
        ValueError: If they have not; after `message`, it lists what is missing, unexpected and misshapen.
    """
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in sorted(state.items())
        if name in expected and tensor.shape != expected[name].shape
    ]
    floating = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    mistyped = [
        f"{name} {tensor.dtype}"
        for name, tensor in sorted(state.items())
        if name in expected and tensor.is_floating_point() != expected[name].is_floating_point()
    ]
    faults = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "misshapen": misshapen,
        "mistyped": mistyped or (sorted(map(str, floating)) if len(floating) > 1 else []),
    }
    if any(faults.values()):
        raise ValueError(f"{message}: " + "; ".join(f"{k} {_listed(v)}" for k, v in faults.items() if v))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
