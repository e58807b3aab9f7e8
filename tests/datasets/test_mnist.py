"""MNIST: bytes parsed as the format says, checksums enforced wherever the files come from, and
one clear sentence for a file that is missing, damaged or out of reach. No test needs a network."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from convexprobe.datasets.mnist import Files, mnist

Digits = dict[str, tuple[np.ndarray, np.ndarray]]
Split = Literal["train", "test"]

REAL_FILES = os.environ.get("CONVEXPROBE_DATA")


def idx(array: np.ndarray) -> bytes:
    lengths = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


@pytest.fixture
def digits() -> Digits:
    rng = np.random.default_rng(0)
    return {
        split: (
            rng.integers(0, 256, size=(n, 28, 28), dtype=np.uint8),
            rng.integers(0, 10, size=n),
        )
        for split, n in (("train", 7), ("test", 3))
    }


@dataclass(frozen=True)
class Folder:
    """Seven and three random images under the names of MNIST's files, and who reads them."""

    path: Path
    files: Files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Digits) -> Folder:
    """Their checksums are the expected ones; no mirror is known, and no cache outside is used."""
    folder, sha256 = tmp_path / "files", {}
    folder.mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in zip(("images-idx3", "labels-idx1"), digits[split], strict=True):
            content = gzip.compress(idx(array), mtime=0)
            (folder / (name := f"{prefix}-{kind}-ubyte.gz")).write_bytes(content)
            sha256[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("CONVEXPROBE_DATA", str(folder))
    return Folder(folder, Files(mirrors=(), sha256=sha256, cache=tmp_path / "cache"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_arrays_come_back_as_written(folder: Folder, digits: Digits, split: Split) -> None:
    images, labels = folder.files.read(split)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images, digits[split][0])
    np.testing.assert_array_equal(labels, digits[split][1])
    assert images.flags.writeable
    assert labels.flags.writeable


def test_files_may_lie_in_the_folder_mnist(
    folder: Folder, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.path.rename(folder.path.with_name("mnist"))
    monkeypatch.setenv("CONVEXPROBE_DATA", str(folder.path.parent))
    np.testing.assert_array_equal(folder.files.read("test")[0], digits["test"][0])


def test_the_directory_is_never_written_to(folder: Folder, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    folder.files.read("train")
    (folder.path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError):
        folder.files.read("test")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    del before[folder.path / "t10k-labels-idx1-ubyte.gz"]
    before[folder.path] = after[folder.path]  # by this test's own unlink
    assert after == before


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split: expected one of train, test, found 'valid'"):
        mnist("valid")  # type: ignore[arg-type]  # the wrong type is the test
    for split in (3, None, ["train"]):
        with pytest.raises(TypeError, match=r"split: expected one of train, test, found .*\("):
            mnist(split)  # type: ignore[arg-type]  # the wrong type is the test


def test_a_missing_file_is_named_with_directory_and_variable(folder: Folder) -> None:
    (folder.path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        folder.files.read("train")
    for word in ("train-labels-idx1-ubyte.gz", str(folder.path), "CONVEXPROBE_DATA"):
        assert word in str(caught.value)


def test_a_missing_directory_is_told_from_a_missing_file(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVEXPROBE_DATA", str(folder.path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a directory"):
        folder.files.read("train")


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty"])
def test_a_damaged_file_is_named_with_both_hashes(folder: Folder, damage: str) -> None:
    path = folder.path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    elif damage == "cut short":
        del content[-10:]
    else:
        content.clear()
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        folder.files.read("train")
    found = hashlib.sha256(content).hexdigest()
    for word in (str(path), folder.files.sha256[path.name], found, f"{len(content)} bytes"):
        assert word in str(caught.value)


def test_a_file_that_cannot_be_mnist_is_not_read(folder: Folder) -> None:
    os.truncate(folder.path / "train-images-idx3-ubyte.gz", 1 << 40)  # a hole
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz': expected at most 16777216 bytes"):
        folder.files.read("train")


class Server(http.server.ThreadingHTTPServer):
    """Remembers the paths that it was asked for."""

    def __init__(self, folder: Folder) -> None:
        handler = functools.partial(_Recording, directory=str(folder.path))
        super().__init__(("127.0.0.1", 0), handler)
        self.requested: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.files = replace(folder.files, mirrors=(self.url,))


class _Recording(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        assert isinstance(self.server, Server)
        self.server.requested.append(self.path)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the folder on this machine; the library is told of no directory."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("CONVEXPROBE_DATA")
        yield server
        server.shutdown()
        thread.join()


def test_a_download_happens_once_after_mirrors_that_fail(
    server: Server,
    folder: Folder,
    digits: Digits,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = server.url
    (folder.path / "wrong").mkdir()
    for name in folder.files.sha256:
        (folder.path / "wrong" / name).write_bytes(b"a page that says 'sign in to the network'")
    # nobody listens on port 9; not there; there but not MNIST; there
    mirrors = ("http://127.0.0.1:9/", here + "absent/", here + "wrong/", here)
    files = replace(folder.files, mirrors=mirrors)
    for _ in range(2):
        np.testing.assert_array_equal(files.read("test")[0], digits["test"][0])
    # three requests for each of two files, none at the second call
    assert len(server.requested) == 6
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    }
    assert capfd.readouterr() == ("", "")


def test_a_damaged_cache_is_downloaded_again(
    server: Server, digits: Digits, tmp_path: Path
) -> None:
    server.files.read("test")
    (tmp_path / "cache/t10k-images-idx3-ubyte.gz").write_bytes(b"damaged")
    np.testing.assert_array_equal(server.files.read("test")[0], digits["test"][0])


def test_an_empty_variable_is_no_directory(
    server: Server, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVEXPROBE_DATA", "")
    np.testing.assert_array_equal(server.files.read("test")[1], digits["test"][1])


def test_without_a_network_the_error_names_the_variable(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVEXPROBE_DATA")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    mirrors = ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/")
    with pytest.raises(OSError) as caught:
        replace(folder.files, mirrors=mirrors).read("train")
    for word in ("train-images-idx3-ubyte.gz", "CONVEXPROBE_DATA", ":9/a/: ", ":9/b/: "):
        assert word in str(caught.value)


def test_the_mirrors_are_encrypted_and_end_in_a_slash() -> None:
    # pooch appends the file name to them as they are
    assert len(Files().mirrors) >= 2
    for mirror in Files().mirrors:
        assert mirror.startswith("https://")
        assert mirror.endswith("/")


@pytest.mark.skipif(not REAL_FILES, reason="CONVEXPROBE_DATA names no directory with MNIST")
@pytest.mark.parametrize(
    ("split", "n", "counts"),
    [
        # images per digit, as counted in the published files
        ("train", 60_000, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", 10_000, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_the_real_files(split: Split, n: int, counts: list[int]) -> None:
    images, labels = mnist(split)
    assert images.shape == (n, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), counts)


@pytest.mark.skipif(not REAL_FILES, reason="CONVEXPROBE_DATA names no directory with MNIST")
def test_the_checksums_belong_to_the_original_files() -> None:
    # the md5 sums by which the files have been known since long before sha256 was usual
    known = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }
    for name, md5 in known.items():
        content = Files().locate(name).read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
        assert hashlib.sha256(content).hexdigest() == Files().sha256[name]
