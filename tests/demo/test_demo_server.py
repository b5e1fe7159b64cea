"""The server of the demonstration: routes, hosts, sizes and ports; the command's errors."""

import asyncio
import builtins
import socket

import pytest

from noprop.cli import main
from noprop.demo.server import LOCAL, MAX_REQUEST, Gate, address_of, is_local, listen
from noprop.errors import ConfigError, RunError

ALLOWED = ["/", "/config", "/theme.css", "/assets/a/b.js", "/gradio_api/queue/join"]
ALLOWED += ["/gradio_api/cancel", "/gradio_api/reset"]  # to end a play
# Routes of gradio that read files, take them, fetch an address, or show how the page is made.
REFUSED = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/upload",
    "/gradio_api/proxy=https://example.org",
    "/gradio_api/component_server",
    "/gradio_api/vibe-edit",
    "/gradio_api/dev/reload",
    "/gradio_api/run/predict",
    "/gradio_api/call/predict",
    "/gradio_api/mcp",
    "/gradio_api/custom_component/1/client/component/a.js",
    "/monitoring",
    "/gradio_api/queue/join/../../upload",
    "/docs",
]


def status_of(
    path: str, hosts: frozenset[str] | None = LOCAL, method: str = "GET", **headers: str
) -> int:
    """The status with which a gate answers; 200 comes from behind it."""
    sent: list[dict] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict:
        return {"type": "http.request"}

    async def send(message: dict) -> None:
        sent.append(message)

    pairs = {"host": "127.0.0.1:7860", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
    }
    asyncio.run(Gate(app, hosts)(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize("path", ALLOWED)
def test_what_the_page_needs_is_served(path):
    assert status_of(path) == 200


@pytest.mark.parametrize("path", REFUSED)
def test_what_else_gradio_can_do_does_not_exist(path):
    assert status_of(path) == 404
    assert status_of(path, method="POST", content_length="2") == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("[::1]:7860", 200),
        ("LOCALHOST", 200),
        ("evil.example:7860", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_leads_here_from_elsewhere_is_refused(host, status):
    assert status_of("/", host=host) == status
    assert status_of("/", hosts=None, host=host) == 200  # after --host 0.0.0.0


def test_large_requests_are_refused():
    def post(length: str) -> int:
        return status_of("/gradio_api/queue/join", method="POST", content_length=length)

    assert post(str(MAX_REQUEST)) == 200
    assert post(str(MAX_REQUEST + 1)) == 413
    assert [post(n) for n in ("", "-1", "1e3")] == [411] * 3
    assert status_of("/gradio_api/queue/join", method="PUT") == 405


def test_it_listens_on_this_machine_alone():
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert is_local(listening)
        assert address_of(listening) == f"http://127.0.0.1:{port}/"
        with pytest.raises(RunError, match=f"--port {port}: cannot be used on 127.0.0.1: address"):
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as listening:
        assert not is_local(listening)
        assert address_of(listening).startswith("http://localhost:")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_address_of_ipv6_is_in_brackets():
    try:
        listening = listen("::1", 0)
    except RunError:
        pytest.skip("no IPv6 loopback")
    with listening:
        assert is_local(listening)
        assert address_of(listening).startswith("http://[::1]:")


def test_a_wrong_port_or_host_is_one_line():
    with pytest.raises(ConfigError, match=r"--port must be in 0\.\.65535, got 65536"):
        listen("127.0.0.1", 65536)
    with pytest.raises(ConfigError, match="--host no such host: is no name or address"):
        listen("no such host", 0)


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_errors_of_the_command_are_one_line(tmp_path, trained_run, capsys, monkeypatch):
    """Before anything is served: no run, a port in use, gradio missing."""
    assert main(["demo", str(tmp_path / "none")]) == 1
    assert "is not a run folder: it does not exist" in one_line(capsys)
    run = str(trained_run("digits-dt"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", run, "--port", str(port)]) == 1
    assert f"--port {port}: cannot be used" in one_line(capsys)
    real = builtins.__import__

    def without_gradio(name: str, *rest, **more):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_gradio)
    assert main(["demo", run, "--port", "0"]) == 1
    assert one_line(capsys) == (
        "noprop: error: the demo needs gradio: pip install 'noprop[demo]'\n"
    )
