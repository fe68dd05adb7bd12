"""The server of the page."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import torch

from dcgan._errors import MissingPackageError
from dcgan.explore._view import Models

if TYPE_CHECKING:
    from fastapi import FastAPI

_UPLOAD = "20mb"
_LONGEST_CALL = 2**20  # bytes
_LOCAL = ("127.0.0.1", "localhost", "::1")
_QUEUE, _AT_ONCE = 64, 2  # calls that wait, and that are computed at once

# The browser itself refuses what is not from this host, whatever a later version of Gradio or somebody's card asks for.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

_Message: TypeAlias = MutableMapping[str, Any]


def serve(
    model: str = "faces",
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    follow: bool = False,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve the page on a model until the process is interrupted.

    The page loads nothing from other hosts, and what visitors upload stays on this machine. At an address of this
    machine alone, it answers no page of another site that a browser has open.

    Args:
        model: Name of a model, folder of a run or of a saved generator, or Hub repository.
        host: Address to listen at; `"0.0.0.0"` answers other machines too.
        port: Port to listen at, or 0 for any free one.
        follow: Let the page look every few seconds for what a run that is training has written.
        started: Called with the page's address as soon as it can be opened.

    Raises:
        ImportError: If the package gradio is missing.
        OSError: If the port is in use, or the model is not there.
        ValueError: If the model cannot be loaded.
    """
    expect_gradio()
    import uvicorn

    # Faster than two for one small image, and the same bits on any number of cores.
    torch.set_num_threads(1)
    models = Models(model)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener, _exit_on_sigterm(), _own_folder():
        app = build_app(models, follow=follow, local=host in _LOCAL)
        # A page that is still open would otherwise keep its connection, and the server, for ever.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        if started is not None:
            name = f"[{host}]" if ":" in host else host
            started(f"http://{name}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program in order, unless somebody else has a use for it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _own_folder() -> Iterator[None]:
    """Keep what is shown and uploaded in a folder of this page alone, and remove it in the end."""
    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    with TemporaryDirectory(prefix="dcgan-explore-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = str(Path(folder).resolve())
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def expect_gradio() -> None:
    """Check that the package is there that the page is made with.

    Raises:
        ImportError: If it is missing.
    """
    if find_spec("gradio") is None:
        raise MissingPackageError('the page needs gradio: pip install "dcgan[explore]"')


def build_app(models: Models, *, follow: bool = False, local: bool = False) -> "FastAPI":
    """Return the page as an application that an ASGI server runs; if `local`, for browsers on this machine alone."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    from dcgan.explore import _page

    theme = gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    page = _page.build_page(models, follow=follow)
    page.queue(max_size=_QUEUE, default_concurrency_limit=_AT_ONCE, api_open=False)
    page.has_launched = True  # `launch` sets it, and until then Gradio lets a call name any file of the machine
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(middleware=[Middleware(_Guard, local=local)], docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=_UPLOAD,
        show_error=False,  # of bugs; what visitors can correct is shown
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme,
    )
    return app


class _Guard:
    """Refuses what this page never sends, and forbids the browser to load anything from another host.

    A call may name files that were uploaded: Gradio fetches the address of any other. A page for this machine alone
    answers to no other name, which another site could have given it, and takes nothing that another site's page sends.
    """

    def __init__(self, app: Callable[..., Any], *, local: bool):
        self.app, self.local = app, local

    async def __call__(self, scope: _Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        from starlette.responses import PlainTextResponse

        async def send_with_policy(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        async def receive_again() -> _Message:
            return messages.pop(0) if messages else await receive()

        refusal, messages = None, list[_Message]()
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            host, origin = headers.get("host", ""), headers.get("origin", "")
            if self.local and _host_name(host) not in _LOCAL:
                refusal = 400, f"this page answers as localhost, not as {host[:100]}: --host 0.0.0.0 answers others"
            elif self.local and origin and origin.partition("://")[2] != host:
                refusal = 403, "another site's page may not use this one"
            elif scope["method"] == "POST" and not scope["path"].endswith("/upload"):
                messages, body = await _read_body(receive)
                if body is None or not _names_uploads_only(body):
                    refusal = 400, "a call may name no file but one that was uploaded"
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send_with_policy)
        else:
            await self.app(scope, receive_again, send_with_policy)


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _read_body(receive: Callable[..., Any]) -> tuple[list[_Message], bytes | None]:
    """Return the messages of a call, and its body, or None where that is longer than any of ours."""
    messages, body = [await receive()], b""
    while messages[-1]["type"] == "http.request":
        body += messages[-1].get("body", b"")
        if len(body) > _LONGEST_CALL:
            return messages, None
        if not messages[-1].get("more_body", False):
            break
        messages.append(await receive())
    return messages, body


def _names_uploads_only(body: bytes) -> bool:
    from gradio.utils import get_upload_folder

    try:
        values, folder = [json.loads(body)], Path(get_upload_folder()).resolve()
        while values:
            value = values.pop()
            if isinstance(value, dict):
                if "path" in value and not Path(value["path"]).resolve().is_relative_to(folder):
                    return False
                values += value.values()
            elif isinstance(value, list):
                values += value
    except (json.JSONDecodeError, UnicodeDecodeError):  # which Gradio cannot read either
        return True
    except (OSError, RecursionError, TypeError, ValueError):  # no path, or none that can be
        return False
    return True
