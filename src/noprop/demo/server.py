"""A server for the page, and for nothing else of gradio.

Gradio has routes that read files, take uploads, or fetch addresses. The page needs none of them, so
they do not exist here: a request outside :data:`ROUTES` finds nothing.
"""

import re
import socket
import sys
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

from noprop.demo.answers import MAX_IMAGE
from noprop.errors import ConfigError, RunError

__all__ = ["Gate", "address_of", "listen", "serve"]

API = "queue/join|queue/data|cancel|reset|info|startup-events|app_id|heartbeat/[0-9a-z]+"
FILES = "config|theme.css|favicon.ico|robots.txt|manifest.json|(?:assets|static|svelte)/.+"
ROUTES = re.compile(rf"/(?:{FILES}|gradio_api/(?:{API}))?")
MAX_REQUEST = 2 * MAX_IMAGE  # bytes: an image in base64
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
Message = dict[str, Any]


class Gate:
    """Passes requests on to an application that have a known route, host and size.

    Args:
        app: The application, as ASGI defines it.
        hosts: Names by which the page may be asked for, or a page elsewhere could use it by a name
            that leads here; None for any.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: frozenset[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Handle a request."""
        status = 200 if scope["type"] == "lifespan" else self._status(scope)
        if status == 200:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    def _status(self, scope: Message) -> int:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if scope["type"] != "http" or not ROUTES.fullmatch(scope["path"]):
            return 404
        if self.hosts is not None and name not in self.hosts:
            return 403
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405
        if scope["method"] == "POST":
            length = headers.get(b"content-length", b"").decode("latin-1")
            if not re.fullmatch(r"\d{1,12}", length):
                return 411
            if int(length) > MAX_REQUEST:
                return 413
        return 200


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Name or address of this machine.
        port: Number of the port; 0 for any free one.

    Raises:
        ConfigError: If there is no such port or host.
        RunError: If the port is in use.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port must be in 0..65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: is no name or address of this machine: {error}"
        ) from None
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise RunError(
            f"--port {port}: cannot be used on {host}: {why}; give another, or 0 for any free one"
        ) from None


def address_of(listening: socket.socket) -> str:
    """Return the address of the page for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def application(page: Any, options: Message, *, local: bool) -> Gate:
    """Return a page of gradio behind a gate.

    Args:
        page: The page.
        options: Options of ``gradio.mount_gradio_app``, such as a theme.
        local: Whether the page may be asked for by names of this machine alone.
    """
    import gradio  # pyright: ignore[reportMissingImports]
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        allowed_paths=[],
        max_file_size=0,
        root_path="",
        footer_links=[],
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        **options,
    )
    return Gate(app, LOCAL if local else None)


def serve(page: Any, options: Message, listening: socket.socket) -> None:
    """Serve a page of gradio until Ctrl-C.

    Args:
        page: The page.
        options: As for :func:`application`.
        listening: The socket.
    """
    import uvicorn  # pyright: ignore[reportMissingImports]

    app = application(page, options, local=is_local(listening))
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="on", timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listening])
    sys.stdout.flush()


def is_local(listening: socket.socket) -> bool:
    """Whether a socket is reached from this machine alone."""
    return ip_address(listening.getsockname()[0]).is_loopback
