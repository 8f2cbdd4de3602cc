"""`explore`: the page on an address of this machine, with nothing from elsewhere."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regtune.errors import ConfigError, MissingExtraError
from regtune.report.rendering import environment

if TYPE_CHECKING:
    from regtune.app.explorer import Explorer

USER = "regtune"
"""The name with which visitors of a shared page log in."""
PASSWORD = "REGTUNE_PASSWORD"
"""The environment variable with their password: others on the machine see a command's flags."""
_LARGEST_IMAGE = "20mb"
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)
"""What a browser may load: what this server gives."""


def explore(
    folder: str | Path,
    *,
    compare: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    password: str = "",
    ready: Callable[[str], None] = print,
) -> None:
    """Serves a page that explores one model, or two of one task, until it is interrupted.

    Give a text, see what the model predicts of it with and without its registers, what that rests on, what attends to
    what, and how large states are; list a run's examples, and those on which two runs differ. Nothing is loaded from
    the network and nothing is sent to it.

    Args:
        folder: a run directory, a model's folder or a hub name.
        compare: another one, for the same task.
        host: address of this machine to serve on; others than its own are refused without `share`.
        port: 0 takes any that is free.
        share: let other machines in, where `host` is an address that they reach (a Space: `host="0.0.0.0"`).
        password: what a visitor has to type, the user name being `regtune`; `share` needs one.
        ready: gets the page's address when it can be opened.

    Raises:
        ConfigError: an address that other machines reach without `share`, `share` without a password, or a port in
            use.
        CheckpointError: no such run or model, or an adapter without its base.
        DataError: two models of different tasks.
        MissingExtraError: the `app` extra isn't installed.
    """
    local = _is_local(host)
    if not local and not share:
        raise ConfigError(
            f"{host} lets other machines reach the page, and whoever opens it can use the model and read the run's "
            "examples. If you want that, add --share; otherwise leave --host out."
        )
    if share and not password:
        raise ConfigError(
            f"--share lets other machines use the model and read the run's examples. Say who may: put a password into "
            f"the environment variable {PASSWORD} (in Python: password=...); visitors log in as {USER} with it."
        )
    listening = _listen(host, port)
    with listening:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            import uvicorn
            from gradio import mount_gradio_app  # noqa: F401 - asked for before a model is opened
        except ImportError as error:
            raise MissingExtraError("gradio", "app", "The explorer") from error
        environment()
        from regtune.app.explorer import open_explorer

        hosts = ["127.0.0.1", "localhost", host] if local else ["*"]
        app = make_app(open_explorer(folder, compare), hosts=hosts, password=password)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        ready(f"http://{host}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])


def make_app(explorer: Explorer, *, hosts: list[str], password: str = "") -> Any:
    """The web application: the page, and headers that keep browsers from loading anything from elsewhere.

    Args:
        explorer: what is shown.
        hosts: names under which the page may be asked for, so that no other site's name can be turned to it.
        password: what `USER` has to log in with; empty lets everybody in.
    """
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from regtune.app.page import head, make_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(_Policy)
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app,
        make_page(explorer),
        path="/",
        theme=theme,
        head=head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=_LARGEST_IMAGE if explorer.reads_images else "1kb",  # texts are no files
        auth=(USER, password) if password else None,
        auth_message=f"The user name is {USER}.",
    )


class _Policy:
    """Adds the policy to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, sent)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == 4 and address.is_loopback


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"Port {port} doesn't exist; name one from 1024 to 65535: --port 7860.")
    listening = socket.socket(socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"Port {port} of {host} can't be had: {error.strerror}. Name another one, for example --port "
            f"{port + 1 if port < 65535 else 7860}."
        ) from error
    return listening
