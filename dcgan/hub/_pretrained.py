"""Networks as files: `config.json` and `model.safetensors`, in a folder or in a repository on the Hugging Face Hub."""

import json
import logging
import os
import re
import tempfile
from inspect import Parameter, signature
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Self
from zlib import crc32

import torch
from torch import Tensor, nn

from dcgan import __version__
from dcgan._errors import InputError
from dcgan._files import atomic_write
from dcgan.hub._client import IDENTITY, conversion_hint, download, translate_hub_errors
from dcgan.zoo import Model, list_models, load_record

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_FOREIGN = ". If it is another program's, `dcgan convert` may convert its folder or repository"
_DOWNLOAD_AGAIN = "; if it was downloaded, force_download=True downloads it again"
_CHECKSUM = "crc32"  # beside the copy of the configuration in the file of the weights
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that layers compute in
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how the text that Git LFS puts in a file's place begins


class Pretrained(nn.Module):
    """A network that is rebuilt from its constructor's arguments, `config`, and its tensors.

    A generator's files are at the root of a folder or repository, a discriminator's in `discriminator/`. A subclass
    whose constructor takes further arguments adds them to `config` in its `__init__`.
    """

    config: dict[str, Any]
    subfolder: ClassVar[str] = ""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        verify: bool = True,
    ) -> Self:
        """Load a network, in evaluation mode: of the zoo, from a folder, such as that of a run, or from the Hub.

        Nothing in the files is executed. The tensors are copied out of the file, which may then be changed or removed.

        Args:
            name_or_path: A model that `dcgan.list_models` names; a folder, in which `~` is the home directory; or a
                repository `"organisation/name"`. A folder in the working directory that holds a network is taken
                instead of a model of its name; `"./name"` always is the folder.
            revision: Branch, tag or commit of the repository; models of the zoo are at one commit.
            subfolder: Folder inside the folder or repository to load from; a discriminator is in its `discriminator/`.
            cache_dir: Folder for downloads; by default the Hub's usual cache, and for models of others that of
                this package.
            token: Access token for a private repository; by default that of `hf auth login`.
            local_files_only: Use the cache only.
            force_download: Download even what the cache holds.
            device: Device of the network.
            dtype: Floating-point type of the network; by default that of the file, and for models of the zoo float32.
            verify: Whether to compare the checksum that `save_pretrained` has stored with the weights, and to refuse
                weights that are not finite; pass False to load weights that were changed in the file on purpose, or
                that have diverged.

        Raises:
            FileNotFoundError: If there is no such model, folder, repository, revision or file, or the cache lacks it
                and `local_files_only` or the variable HF_HUB_OFFLINE forbids downloads.
            NotADirectoryError: If `name_or_path` is a file.
            PermissionError: If the repository needs a token, or refuses the given one.
            OSError: If the download fails.
            ValueError: If `subfolder` is not a path inside the folder, a model of the zoo is given a `revision`, the
                weights are damaged, or the configuration or the weights do not fit this class.
        """
        torch.empty(0, device=device)  # raises for an unknown device before anything is downloaded
        names = [str(PurePosixPath(_inner_path(subfolder), cls.subfolder, file)) for file in (CONFIG, WEIGHTS)]
        path = _expand_home(name_or_path)
        if not os.fspath(name_or_path):
            raise InputError("name_or_path must be a folder or a repository's name, got an empty one")
        inside = path / subfolder
        holds_network = any((inside / inner / CONFIG).is_file() for inner in ("", "discriminator", cls.subfolder))
        model = _find_model(name_or_path, holds_network=holds_network)
        if model is None and path.is_file():
            remedy = conversion_hint(str(path.parent), [path.name]) or f"; its folder is {path.parent}"
            raise NotADirectoryError(f"{path} is a file, but networks are loaded from folders{remedy}")
        options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        options["force_download"] = force_download
        repository = "" if path.is_dir() else os.fspath(name_or_path)
        if model is not None:
            if revision is not None:
                raise InputError(f"{model.name} is a model of the zoo, at one commit, but revision is {revision!r}")
            repository, revision = model.repository, model.revision
            dtype = dtype or torch.float32  # ours are stored in half precision
            if not repository:
                from dcgan.zoo._fetch import fetch  # which converts to networks of this class

                path = fetch(model, **options)
        if not repository:
            config_path, weights_path = _local_files(path, names, cls.__name__)
        else:
            config_path, weights_path = download(repository, names, revision, cls.__name__, options | {"token": token})
        return cls._from_files(config_path, weights_path, verify=verify).to(device, dtype)

    @classmethod
    def _from_files(cls, config_path: Path, weights_path: Path, *, verify: bool) -> Self:
        config = _read_config(config_path)
        cls._expect_known(config, config_path)
        state, saved_config = _read_weights(weights_path)
        stored = (saved_config or {}).pop(_CHECKSUM, None)  # none in files of other programs, and before 0.3
        if verify and stored is not None and stored != _checksum(state):
            raise InputError(
                f"{weights_path} is damaged: its weights are not those that were saved{_DOWNLOAD_AGAIN}. If they were "
                "changed on purpose, verify=False loads them"
            )
        if verify:
            _expect_finite(state, weights_path)
        try:
            network = cls._build(config, state, config_path, weights_path)
        except ValueError as error:
            if saved_config in (None, config):
                raise
            # A save was cut off between its two files: the weights are newer, and hold their own configuration.
            cls._expect_known(saved_config, weights_path)
            network = cls._build(saved_config, state, weights_path, weights_path)
            logger.warning("using the configuration inside %s, since %s", weights_path, error)
        else:
            saved = network.config | (saved_config or {})
            if fields := ", ".join(name for name, value in network.config.items() if saved[name] != value):
                logger.warning("using %s, which differs from the copy in %s: %s", config_path, WEIGHTS, fields)
        network.load_state_dict(state)  # copies, since these tensors are mapped to the file
        return network.eval()

    @classmethod
    def _expect_known(cls, config: dict[str, Any], path: Path) -> None:
        """Check that the constructor takes every argument of a configuration: one left out would be another network.

        Raises:
            ValueError: If not, naming the arguments and the versions that wrote the file and read it.
        """
        if (name := config.get("class", cls.__name__)) != cls.__name__:
            raise InputError(f"{path} describes a {name}, not a {cls.__name__}")
        if unknown := sorted(config.keys() - {"class", "dcgan"} - _accepted_arguments(cls)):
            arguments = ", ".join(map(repr, unknown))
            raise InputError(
                f"{path} does not describe a {cls.__name__}: unknown argument{'s' * (len(unknown) > 1)} {arguments}; "
                f"{_versions(config)}{'' if 'dcgan' in config else _FOREIGN}"
            )

    @classmethod
    def _build(cls, config: dict[str, Any], state: dict[str, Tensor], config_path: Path, weights_path: Path) -> Self:
        """Build a network from its configuration, on the CPU, with the type of the tensors, which must fit it.

        Raises:
            ValueError: If it does not describe a network of this class, or the tensors do not fit.
        """
        arguments = {name: value for name, value in config.items() if name not in ("class", "dcgan")}
        try:
            _expect_size(cls._minimum_parameters(arguments), sum(tensor.numel() for tensor in state.values()))
            # On the CPU, whatever the caller's default is, and without disturbing the random numbers drawn there.
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                network = cls(**arguments)
        except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise InputError(
                f"{config_path} does not describe a {cls.__name__}: {error}; {_versions(config)}"
            ) from error
        expect_fit(state, network.state_dict(), f"{weights_path} does not fit the {cls.__name__} of {config_path.name}")
        dtypes = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
        return network.to(dtypes[0]) if dtypes else network

    @classmethod
    def _minimum_parameters(cls, config: dict[str, Any]) -> int:  # noqa: ARG003 - for subclasses
        """Return a lower bound on the size of the network that `config` describes."""
        return 0

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the configuration and the weights into `folder`; return the folder that holds the files.

        A discriminator goes into `folder/discriminator`, next to its generator. A kill at any moment, or a full disk,
        leaves either the network that was there before or this one. Only where both have weights of the same shapes may
        a kill between the two files leave this one's weights to the configuration before, of which loading warns. It
        warns of weights that are not finite, too, and writes them.

        Raises:
            ValueError: If the constructor of a subclass takes arguments that `config` does not hold.
        """
        _expect_complete_config(self)
        target = _expand_home(folder) / self.subfolder
        target.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # Of numbers of one byte, of which some kinds have no NaN, torch does not tell.
        broken = [name for name, tensor in state.items() if tensor.itemsize > 1 and not tensor.isfinite().all()]
        if broken:
            logger.warning("saving a %s whose %s is not finite (NaN or infinity)", type(self).__name__, broken[0])
        config = {"class": type(self).__name__, "dcgan": __version__, **self.config}

        from safetensors.torch import save

        # The weights come first and hold the configuration: once they are in place, the new network is saved.
        # As a single entry, since safetensors writes several in a different order each time.
        weights = save(state, metadata={"config": json.dumps({**config, _CHECKSUM: _checksum(state)})})
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
        """Upload the network in one commit, to a repository that is created if needed; return the commit's URL.

        A repository without a model card gets a plain one; [`model_card`][dcgan.hub.model_card] writes a fuller one.

        Args:
            repo_id: Repository `"organisation/name"`.
            private: Whether to create the repository as a private one.
            commit_message: By default "Upload" and the name of the class.
            token: Access token; by default that of `hf auth login`.
            revision: Branch to commit to; by default `main`.
            card: Text of README.md, replacing an existing one.

        Raises:
            PermissionError: If there is no token, or it does not allow this.
            OSError: If the upload fails.
            ValueError: If `repo_id` is not a valid name, or `save_pretrained` refuses the network.
        """
        from huggingface_hub import HfApi

        from dcgan.hub._card import model_card

        api = HfApi(token=token, **IDENTITY)
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


def _expect_size(minimum: int, available: int) -> None:
    # Smaller differences, of tens of megabytes, are found and explained better once the network is built.
    if minimum > available + 2**23:
        raise InputError(
            f"its network has at least {minimum:,} parameters, but the weights have only {available:,} numbers"
        )


def _expect_complete_config(network: Pretrained) -> None:
    """Check that a network can be rebuilt from its `config`."""
    name, accepted = type(network).__name__, _accepted_arguments(type(network))
    if absent := sorted(accepted - network.config.keys()):
        remedy = "; ".join(f'self.config["{argument}"] = {argument}' for argument in absent)
        raise InputError(
            f"{name} cannot be saved: its constructor takes {', '.join(absent)}, which its config does not hold. "
            f"Record it in __init__, after super().__init__(): {remedy}"
        )
    if unknown := sorted(network.config.keys() - accepted):
        raise InputError(
            f"{name} cannot be saved: its config holds {', '.join(unknown)}, which its constructor does not take. "
            f"Accept **kwargs in __init__, and pass them on to super().__init__()"
        )


def _accepted_arguments(cls: type[Pretrained]) -> set[str]:
    """Return the names of a constructor's arguments, and of those that it passes on to its bases as `**kwargs`."""
    accepted: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            _, *parameters = signature(vars(base)["__init__"]).parameters.values()
            accepted |= {p.name for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)}
            if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
                break
    return accepted


def _versions(config: dict[str, Any]) -> str:
    writer = config.get("dcgan")
    by = f"was written by dcgan {writer}" if writer else "does not name the version of dcgan that wrote it"
    return f"the file {by}, and this is {__version__}"


def _inner_path(subfolder: str) -> str:
    """Return a path inside a folder or repository with forward slashes, as the Hub has them."""
    path = PureWindowsPath(subfolder)  # which knows both kinds of slash, and drives
    if path.anchor or ".." in path.parts:
        raise InputError(f"subfolder must be a relative path without '..', such as 'faces/ema', got {subfolder!r}")
    return path.as_posix()


def _find_model(name_or_path: str | os.PathLike[str], *, holds_network: bool) -> Model | None:
    """Return the model of the zoo that a name without a slash is, unless a folder of that name holds a network.

    Raises:
        FileNotFoundError: If it is neither; repositories on the Hub have a slash in their name.
    """
    name = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or not re.fullmatch(r"\w[\w.-]*", name):
        return None
    if holds_network:
        if name in list_models():
            logger.warning("%s is the folder of that name here, and not the model of the zoo", name)
        return None
    if name in list_models():
        if Path(name).is_dir():
            logger.warning("%s is the model of the zoo: the folder of that name here holds no network", name)
        return load_record(name)
    if not Path(name).exists():
        raise FileNotFoundError(f"there is no folder {name!r}, and no model of that name: {', '.join(list_models())}")
    return None


def _expand_home(folder: str | os.PathLike[str]) -> Path:
    # No repository's name begins with a tilde. Path.expanduser raises a RuntimeError where there is no home.
    return Path(os.path.expanduser(folder))  # noqa: PTH111


def _local_files(folder: Path, names: list[str], class_name: str) -> list[Path]:
    paths = [folder / name for name in names]
    if absent := [path for path in paths if not path.is_file()]:
        hint = conversion_hint(str(folder), (path.name for path in folder.iterdir()))
        if folder.name == "discriminator" and (folder / CONFIG).is_file():
            hint = f"; a discriminator is loaded by the folder of its generator, {folder.parent}"
        raise FileNotFoundError(f"{folder} has no {class_name}: {absent[0]} is missing{hint}")
    return paths


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the tensors, mapped to the file, and the configuration saved with them."""
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # safe_open calls every file missing that it cannot open
        with safe_open(path, "pt", "cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        saved_config = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, ValueError, RecursionError) as error:
        if _is_lfs_pointer(path):
            raise InputError(
                f"{path} is a Git LFS pointer, not the weights: the repository was cloned without Git LFS. "
                "Install it, then run `git lfs pull` in the clone"
            ) from error
        raise InputError(f"{path} is not a complete safetensors file: {error}{_DOWNLOAD_AGAIN}") from error
    if others := {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}.difference(_DTYPES):
        raise InputError(f"{path} must hold weights of {', '.join(map(str, _DTYPES))}, got {others.pop()}")
    return state, saved_config if isinstance(saved_config, dict) else None


def _checksum(state: dict[str, Tensor]) -> str:
    """Return a checksum of tensors on the CPU: of their names, types, shapes and bytes, whatever their order is."""
    checksum = 0
    for name, tensor in sorted(state.items()):
        checksum = crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), checksum)
        checksum = crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _expect_finite(state: dict[str, Tensor], path: Path) -> None:
    for name, tensor in sorted(state.items()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"{path} holds weights that are not finite, in {name}, as after a training that diverged; "
                "verify=False loads them"
            )


def _is_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def expect_fit(state: dict[str, Tensor], expected: dict[str, Tensor], message: str) -> None:
    """Check that two sets of tensors have the same names and shapes, and are floating-point alike.

    Raises:
        ValueError: If not; after `message`, it lists what is missing, unexpected, misshapen and mistyped.
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
        raise InputError(f"{message}: " + "; ".join(f"{k} {_join(v)}" for k, v in faults.items() if v))


def _join(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
