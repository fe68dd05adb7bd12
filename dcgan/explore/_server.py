"""The server of the page."""

import os
import socket
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from dcgan._errors import MissingPackageError
from dcgan.explore._view import Models

if TYPE_CHECKING:
    from fastapi import FastAPI

_UPLOAD = "20mb"
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

    The page loads nothing from other hosts, and what visitors upload stays on this machine.

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
    with socket.create_server((host, port), family=family) as listener, _own_folder():
        # A page that is still open would otherwise keep its connection, and the server, for ever.
        config = uvicorn.Config(build_app(models, follow=follow), log_level="warning", timeout_graceful_shutdown=1)
        if started is not None:
            name = f"[{host}]" if ":" in host else host
            started(f"http://{name}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


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


def build_app(models: Models, *, follow: bool = False) -> "FastAPI":
    """Return the page as an application that an ASGI server runs."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    from dcgan.explore import _page

    theme = gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(middleware=[Middleware(_ThisHostOnly)], docs_url=None, redoc_url=None, openapi_url=None),
        _page.build_page(models, follow=follow).queue(
            max_size=_QUEUE, default_concurrency_limit=_AT_ONCE, api_open=False
        ),
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


class _ThisHostOnly:
    """Forbids the browser to load anything from another host."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: _Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def send_with_policy(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)
