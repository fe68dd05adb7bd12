"""The Hugging Face Hub's client, and what its errors mean for who asked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def download(
    repo_id: str, names: list[str], revision: str | None, kind: str, options: dict[str, Any]
) -> tuple[Path, ...]:
    """Fetch files of one commit of a repository into the Hub's cache; return where they are.

    Raises:
        FileNotFoundError: If there is no such repository, revision or file; `kind` says what they were to make.
        PermissionError: If the repository asks for a token, or for another one.
        OSError: If the download fails.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with translate_hub_errors(repo_id, revision):
        try:
            config = Path(hf_hub_download(repo_id, names[0], revision=revision, **options))
            # Files of one commit, whatever is pushed meanwhile: the cache has a folder for each.
            commit = config.parents[names[0].count("/")].name
            return config, Path(hf_hub_download(repo_id, names[1], revision=commit, **options))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            there = HfApi(token=options["token"]).list_repo_files(repo_id, revision=revision)
            absent = next((name for name in names if name not in there), names[1])
            raise FileNotFoundError(f"{repo_id} holds no {kind}: {absent} is missing{pickles_among(there)}") from error


@contextmanager
def translate_hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Say what the client's errors mean for who asked."""
    from huggingface_hub import errors

    where = f"{repo_id} on the Hub"
    try:
        yield
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"there is no folder {repo_id!r}, nor can it be a repository's name") from error
    except errors.GatedRepoError as error:
        raise PermissionError(f"{where} is open to those only whom its owners let in: ask on its page") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {repo_id!r} and no repository {where}, unless it is private: pass token=, or log in"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{where} has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{where} cannot be reached, or must not be, and the cache has no copy") from error
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"{where} was to be asked with a token, and nobody is logged in: pass token=") from error
    except (OSError, RuntimeError, ValueError, _http_error()) as error:
        if (failure := _network_failure(error, where)) is error:
            raise
        raise failure from error


def _network_failure(error: Exception, where: str) -> Exception:
    """Return what to raise for an error that may be, or hide, one of the network; `error` itself if it is not."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return error  # explained already
    cause = error if isinstance(error, _http_error()) else error.__cause__
    if not isinstance(cause, _http_error()):
        return error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return PermissionError(f"{where} refuses this token, or the lack of one: {cause}")
    if status is None:
        return ConnectionError(f"{where} cannot be reached: {cause}")
    return OSError(f"{where} failed: {cause}")


def _http_error() -> type[Exception]:
    """Return the base of all errors of the HTTP library that the client is built on, whichever that is."""
    from huggingface_hub import errors

    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return http_error


def pickles_among(names: Iterable[str]) -> str:
    """Point from files that are there, but are pickles, to what reads them; nothing where there are none."""
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    return f"; for the weights in {', '.join(pickles[:3])} there is `dcgan convert`" if pickles else ""
