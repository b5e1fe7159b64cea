"""Downloads from a server of our own: checked, unpacked safely, whole or not at all."""

import gc
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from noprop.data import SOURCES, load_dataset
from noprop.data.download import _Progress, fetch, unpack
from noprop.data.sources import Download, Source
from noprop.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    """(folder, URL) of a web server."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


@pytest.fixture
def own_mnist(tmp_path, server, write_idx) -> Source:
    """MNIST's entry of the catalogue, served by us and with digests of what we serve."""
    folder, url = server
    downloads, files = [], []
    for prefix in ("train", "t10k"):
        for kind, array in (
            ("images-idx3", np.zeros((10, 28, 28))),
            ("labels-idx1", np.arange(10)),
        ):
            name = f"{prefix}-{kind}-ubyte"
            data = gzip.compress(write_idx(tmp_path / name, array))
            (folder / f"{name}.gz").write_bytes(data)
            downloads.append(Download(f"{url}{name}.gz", md5(data), unpack=False))
            files.append({f"{name}.gz": md5(data), name: None})
    return replace(SOURCES["mnist"], files=tuple(files), downloads=tuple(downloads))


def left_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_absent_set_is_downloaded_once(tmp_path, monkeypatch, server, own_mnist):
    monkeypatch.setitem(SOURCES, "mnist", own_mnist)
    root = tmp_path / "data"
    assert len(load_dataset("mnist", data_dir=root).train) == 10
    assert left_in(root) == sorted(f"MNIST/raw/{item.file_name}" for item in own_mnist.downloads)
    for path in server[0].iterdir():
        path.unlink()
    assert len(load_dataset("mnist", data_dir=root).train) == 10


def test_only_what_is_missing_is_downloaded(tmp_path, server, own_mnist):
    fetch(own_mnist, tmp_path / "data")
    (tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    for path in server[0].glob("*images*"):
        path.unlink()
    fetch(own_mnist, tmp_path / "data")
    assert own_mnist.missing(tmp_path / "data") == []


def test_a_file_with_another_digest_is_not_kept(tmp_path, server, own_mnist):
    served = server[0] / "train-images-idx3-ubyte.gz"
    served.write_bytes(served.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: download failed: MD5 hash"):
        fetch(own_mnist, tmp_path / "data")
    assert left_in(tmp_path / "data") == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pooch leaves the refused answer open
def test_a_failed_download_says_what_to_do_instead(tmp_path, monkeypatch, server, own_mnist):
    monkeypatch.setitem(SOURCES, "mnist", own_mnist)
    (server[0] / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", data_dir=tmp_path / "data")
    for part in (
        "download failed: 404",
        f"Looked in {tmp_path / 'data/MNIST/raw'}",
        f"{tmp_path / 'cache/noprop/data/MNIST/raw'} (no such folder)",
        f"from {server[1]}, so that the files lie in {tmp_path / 'data/MNIST/raw'}",
    ):
        assert part in str(caught.value)
    del caught
    gc.collect()


def test_no_network_is_an_error_of_one_line(tmp_path, own_mnist):
    nowhere = Download("http://127.0.0.1:1/train-images-idx3-ubyte.gz", "md5:0", unpack=False)
    with pytest.raises(DataError, match=r"\Ahttp://127\.0\.0\.1:1/[^\n]*download failed: [^\n]*\Z"):
        fetch(replace(own_mnist, downloads=(nowhere,)), tmp_path / "data")


def test_a_folder_that_cannot_be_made_is_named(tmp_path, own_mnist):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/data: cannot store mnist there"):
        fetch(own_mnist, tmp_path / "file" / "data")


MEMBERS = {
    "set/a.bin": b"first",
    "set/part/images/b.jpeg": b"second",
    "set/readme.html": b"not wanted",
    "other/a.bin": b"of another folder",
    "../escaped.bin": b"outside",
    "set/../../escaped.bin": b"outside",
    "set/part/../../../escaped.bin": b"outside",
    "/escaped.bin": b"outside",
}


def archive_of(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in MEMBERS.items():
                archive.writestr(name, data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("set/part/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def archived(url: str, data: bytes) -> Source:
    return replace(
        SOURCES["cifar10"],
        folder="set",
        files=({"a.bin": None}, {"part/images": None}),
        downloads=(Download(f"{url}set.archive", md5(data), unpack=True),),
    )


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_unpacked_without_what_is_not_wanted(tmp_path, server, kind):
    folder, url = server
    data = archive_of(kind)
    (folder / "set.archive").write_bytes(data)
    root = tmp_path / "deep" / "data"
    fetch(archived(url, data), root)
    assert left_in(tmp_path / "deep") == ["data/set/a.bin", "data/set/part/images/b.jpeg"]
    assert (root / "set/part/images/b.jpeg").read_bytes() == b"second"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_leaves_nothing(tmp_path, server, kind):
    folder, url = server
    data = archive_of(kind)[:-60]
    (folder / "set.archive").write_bytes(data)
    with pytest.raises(DataError, match="archive"):
        fetch(archived(url, data), tmp_path / "data")
    assert left_in(tmp_path / "data") == []


def test_an_incomplete_folder_is_not_overwritten(tmp_path, server):
    mine = tmp_path / "data" / "set" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(DataError, match=r"set: is incomplete, it lacks a\.bin, part/images"):
        fetch(archived(server[1], b""), tmp_path / "data")
    assert mine.read_text() == "keep"


def test_an_archive_without_the_files_is_refused(tmp_path, server):
    folder, url = server
    data = archive_of("zip")
    (folder / "set.archive").write_bytes(data)
    source = replace(archived(url, data), files=({"a.bin": None}, {"c.bin": None}))
    with pytest.raises(DataError, match=r"the download does not hold c\.bin"):
        fetch(source, tmp_path / "data")


def test_unpacking_writes_regular_files_only(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(archive_of("tar"))
    unpack(tmp_path / "a.tar.gz", archived("", b""), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_the_progress_bar_shows_the_share_and_ends_its_line(capsys):
    bar = _Progress("a.gz")
    bar.total = 2_000_000
    bar.update(500_000)
    bar.update(1_500_000)
    bar.reset()
    bar.update(2_000_000)
    bar.close()
    shown = capsys.readouterr().err
    assert " 25 % of 2.0 MB" in shown
    assert shown.endswith("100 % of 2.0 MB\n")


def test_a_terminal_sees_the_progress_bar(tmp_path, monkeypatch, capsys, own_mnist):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fetch(own_mnist, tmp_path / "data")
    assert "100 %" in capsys.readouterr().err
