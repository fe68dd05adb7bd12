"""Downloads from the Hugging Face Hub and uploads to it, and its client's errors as built-in exceptions."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcgan import __version__, checkpoint
from dcgan._compat import hub_connection_errors, hub_http_error
from dcgan._errors import InputError

IDENTITY: dict[str, Any] = {"library_name": "dcgan", "library_version": __version__}  # for the Hub's statistics

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # as huggingface_hub's mixin writes them
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def download(
    repo_id: str, names: list[str], revision: str | None, class_name: str, options: dict[str, Any]
) -> tuple[Path, Path]:
    """Download two files of one commit of a repository into the Hub's cache; return their paths.

    Raises:
        FileNotFoundError: If there is no such repository, revision or file, or it is not in the cache and cannot be
            downloaded; the message names the class to load.
        PermissionError: If the repository needs a token, or refuses the given one.
        OSError: If the download fails.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    with translate_hub_errors(repo_id, revision):
        try:
            _expect_network(repo_id, names[0], revision, class_name, options)
            for _ in range(3):
                config, weights = (
                    Path(hf_hub_download(repo_id, name, revision=revision, **IDENTITY, **options)) for name in names
                )
                if config.parent == weights.parent:  # the cache has a folder per commit, and none was pushed meanwhile
                    return config, weights
        except HFValidationError as error:
            raise FileNotFoundError(f"there is no folder {repo_id!r}, and it is not a valid repository name") from error
        except LocalEntryNotFoundError as error:
            raise _not_found(repo_id, class_name, _why_not_downloaded(error)) from error
        except EntryNotFoundError as error:
            existing = HfApi(token=options["token"], **IDENTITY).list_repo_files(repo_id, revision=revision)
            absent = next((name for name in names if name not in existing), names[1])
            raise FileNotFoundError(
                f"{repo_id} has no {class_name}: {absent} is missing{conversion_hint(repo_id, existing)}"
            ) from error
        raise OSError(f"{repo_id} on the Hub changed during three downloads: try again, or pass revision=")


def _expect_network(repo_id: str, name: str, revision: str | None, class_name: str, options: dict[str, Any]) -> None:
    """Ask for a file once, unless the cache has it: the Hub's client itself tries for half a minute to connect.

    Raises:
        FileNotFoundError: If no connection can be made.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache

    if options["local_files_only"] or is_offline_mode():
        return
    if isinstance(try_to_load_from_cache(repo_id, name, cache_dir=options["cache_dir"], revision=revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision), token=options["token"], **IDENTITY)
    except hub_connection_errors() as error:
        raise _not_found(repo_id, class_name, f"the Hub cannot be reached: {error}") from error
    except hub_http_error():
        return  # an answer, which the download gets as well, and of which it knows more


def _not_found(repo_id: str, class_name: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"there is no folder {repo_id!r}; the {class_name} of {repo_id} on the Hub is not in the cache, and {reason}"
    )


def download_weights(repo_id: str, name: str | None, revision: str | None) -> tuple[Path, str]:
    """Download another program's weights and configuration into the Hub's cache; return the file and its commit.

    Args:
        repo_id: Repository `"organisation/name"`.
        name: Path of the file; by default the only one, or the one that huggingface_hub's mixin writes.
        revision: Branch, tag or commit; by default the latest one.

    Raises:
        FileNotFoundError: If there is no such repository, revision or file, or several files to choose from.
        PermissionError: If the repository needs a token.
        OSError: If the download fails.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with translate_hub_errors(repo_id, revision):
        api = HfApi(**IDENTITY)
        commit = str(api.model_info(repo_id, revision=revision).sha)
        existing = sorted(api.list_repo_files(repo_id, revision=commit))
        weights = [path for path in existing if path.endswith((*_PICKLE_SUFFIXES, ".safetensors"))]
        usual = [path for path in WEIGHT_FILES if path in weights]
        chosen = [name] if name else usual[:1] or weights
        if len(chosen) != 1 or chosen[0] not in existing:
            listed = ", ".join(weights[:8]) or "no file of weights"
            raise FileNotFoundError(f"pass one file of {repo_id}, as {repo_id}/FILE: it holds {listed}")
        files = [chosen[0], *({"config.json"} & set(existing))]
        paths = [Path(hf_hub_download(repo_id, path, revision=commit, **IDENTITY)) for path in files]
        return paths[0], commit


def expect_access(repo_id: str) -> None:
    """Check that a repository's name is valid and that the Hub accepts the stored token, for writing.

    Raises:
        PermissionError: If there is no token, the Hub refuses it, or it may only read.
        OSError: If the Hub cannot be reached.
        ValueError: If the name is not valid.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(str(error)) from error
    if "/" not in repo_id:
        raise InputError(f"a repository has a name such as organisation/name, got {repo_id!r}")
    if get_token() is None:
        raise PermissionError("publishing needs a token, but none is stored: log in with `hf auth login`")
    with translate_hub_errors(repo_id, None):
        role = HfApi(**IDENTITY).whoami().get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PermissionError(
            "publishing needs a token that may write, but the stored one may only read: create one "
            "in the settings of your account on the Hub, and log in with `hf auth login`"
        )


def push_files(repo_id: str, files: Mapping[str, bytes], *, private: bool) -> str:
    """Commit files, by their paths, to a repository that is created if needed; return the commit's URL.

    Raises:
        PermissionError: If the token does not allow this.
        OSError: If the upload fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(**IDENTITY)
    with translate_hub_errors(repo_id, None):
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return str(api.create_commit(repo_id, operations, commit_message="Upload with dcgan push").commit_url)


@contextmanager
def translate_hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Translate errors of the Hub's client to built-in exceptions that name a remedy."""
    from huggingface_hub import errors

    http_error = hub_http_error()
    where = f"{repo_id} on the Hub"
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(f"{where} is gated: request access on its page") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {repo_id!r} and no repository {where}; if it is private, pass token= or log in"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{where} has no revision {revision!r}") from error
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"{where} needs a token, but none is stored: pass token= or log in") from error
    except (FileNotFoundError, PermissionError):
        raise  # translated already
    except (OSError, RuntimeError, ValueError, http_error) as error:
        cause = error if isinstance(error, http_error) else error.__cause__
        if not isinstance(cause, http_error):
            raise
        raise _network_error(cause, where) from error


def _why_not_downloaded(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = error.__cause__
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids downloads: unset it to load the network once, or load it from a folder"
    if cause is None:
        return "local_files_only=True forbids downloads"
    return f"the Hub cannot be reached: {cause}"


def _network_error(error: Exception, where: str) -> OSError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return PermissionError(f"{where} refuses access with this token, or without one: {error}")
    if status is None:
        return ConnectionError(f"{where} cannot be reached: {error}")
    return OSError(f"{where} failed: {error}")


def conversion_hint(source: str, names: Iterable[str]) -> str:
    """Return a hint at `dcgan convert` for the pickles among the files of a folder or repository; empty if none."""
    names, folder = set(names), Path(source)
    if folder.name == "state" and (run := checkpoint.run_of(folder)):
        steps = [checkpoint.step_of(path) for path in checkpoint.list_states(folder) if path.name in names]
        one = f", or one of its states as `dcgan generate {run} --step {steps[-1]}` does" if steps else ""
        return f"; {source} holds states of the run {run}: load that folder{one}"
    pickles = sorted(name for name in names if name.endswith(_PICKLE_SUFFIXES))
    files = " ".join(f"{source}/{name}" for name in pickles[:2])
    return f"; `dcgan convert {files} out` converts what other programs wrote" if pickles else ""
