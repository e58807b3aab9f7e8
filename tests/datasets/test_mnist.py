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
from pathlib import Path
from typing import Literal

import numpy as np
import pooch
import pytest

import convexprobe.datasets.mnist as datasets
from convexprobe.datasets.mnist import mnist

Digits = dict[str, tuple[np.ndarray, np.ndarray]]
Split = Literal["train", "test"]

REAL_SHA256 = dict(datasets._SHA256)
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Digits) -> Path:
    """Seven and three random images under the names of MNIST's files, with their checksums."""
    folder = tmp_path / "files"
    folder.mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = digits[split]
        put(folder / f"{prefix}-images-idx3-ubyte.gz", idx(images), monkeypatch)
        put(folder / f"{prefix}-labels-idx1-ubyte.gz", idx(labels), monkeypatch)
    monkeypatch.setenv("CONVEXPROBE_DATA", str(folder))
    # a test that reaches for the network by mistake fails at once, and writes into no real cache
    monkeypatch.setattr(datasets, "_MIRRORS", ())
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return folder


def put(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the file and makes its checksum the expected one."""
    compressed = gzip.compress(content, mtime=0)
    path.write_bytes(compressed)
    monkeypatch.setitem(datasets._SHA256, path.name, hashlib.sha256(compressed).hexdigest())


@pytest.mark.parametrize("split", ["train", "test"])
def test_arrays_come_back_as_written(folder: Path, digits: Digits, split: Split) -> None:
    images, labels = mnist(split)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images, digits[split][0])
    np.testing.assert_array_equal(labels, digits[split][1])
    assert images.flags.writeable
    assert labels.flags.writeable


def test_files_may_lie_in_the_folder_mnist(
    folder: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.with_name("mnist"))
    monkeypatch.setenv("CONVEXPROBE_DATA", str(folder.parent))
    np.testing.assert_array_equal(mnist("test")[0], digits["test"][0])


def test_the_directory_is_never_written_to(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    mnist("train")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError):
        mnist("test")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    del before[folder / "t10k-labels-idx1-ubyte.gz"]
    before[folder] = after[folder]  # by this test's own unlink
    assert after == before


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split: expected 'train' or 'test', found 'valid'"):
        mnist("valid")  # type: ignore[arg-type]  # the wrong type is the test


def test_a_missing_file_is_named_with_directory_and_variable(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        mnist("train")
    for word in ("train-labels-idx1-ubyte.gz", str(folder), "CONVEXPROBE_DATA"):
        assert word in str(caught.value)


def test_a_missing_directory_is_told_from_a_missing_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVEXPROBE_DATA", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a directory"):
        mnist("train")


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty"])
def test_a_damaged_file_is_named_with_both_hashes(folder: Path, damage: str) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    elif damage == "cut short":
        del content[-10:]
    else:
        content.clear()
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        mnist("train")
    found = hashlib.sha256(content).hexdigest()
    for word in (str(path), datasets._SHA256[path.name], found, f"{len(content)} bytes"):
        assert word in str(caught.value)


GOOD = idx(np.zeros((2, 28, 28)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with 00 00 08, found nothing"),
        (b"\0\0\x0d\x03" + GOOD[4:], "found 00 00 0d"),  # floats
        (GOOD[:10], "expected a header of 16 bytes, found 10"),
        (GOOD[:-1], "expected 1568 values for the shape (2, 28, 28) in its header, found 1567"),
        (GOOD + b"\0", "found 1569"),
        (idx(np.zeros((2, 14, 56))), "expected shape (-1, 28, 28) (-1: any), found (2, 14, 56)"),
        (idx(np.zeros(1568)), "found (1568,)"),
    ],
)
def test_a_malformed_idx_file_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    put(path, content, monkeypatch)
    with pytest.raises(ValueError) as caught:
        mnist("train")
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_as_many_labels_as_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    put(path, idx(np.zeros(6)), monkeypatch)
    with pytest.raises(ValueError, match=r"train-labels.*expected shape \(7,\).*found \(6,\)"):
        mnist("train")


class Server(http.server.ThreadingHTTPServer):
    """Remembers the paths that it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Recording, directory=str(folder)))
        self.requested: list[str] = []


class _Recording(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        assert isinstance(self.server, Server)
        self.server.requested.append(self.path)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
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
    folder: Path,
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = f"http://127.0.0.1:{server.server_port}/"
    (folder / "wrong").mkdir()
    for name in datasets._SHA256:
        (folder / "wrong" / name).write_bytes(b"a page that says 'sign in to the network'")
    # nobody listens on port 9; not there; there but not MNIST; there
    mirrors = ("http://127.0.0.1:9/", here + "absent/", here + "wrong/", here)
    monkeypatch.setattr(datasets, "_MIRRORS", mirrors)
    for _ in range(2):
        np.testing.assert_array_equal(mnist("test")[0], digits["test"][0])
    # three requests for each of two files, none at the second call
    assert len(server.requested) == 6
    assert {path.name for path in (tmp_path / "cache/convexprobe/mnist").iterdir()} == {
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    }
    assert capfd.readouterr() == ("", "")


def test_a_damaged_cache_is_downloaded_again(
    server: Server, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
    mnist("test")
    (tmp_path / "cache/convexprobe/mnist/t10k-images-idx3-ubyte.gz").write_bytes(b"damaged")
    np.testing.assert_array_equal(mnist("test")[0], digits["test"][0])


def test_an_empty_variable_is_no_directory(
    server: Server, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVEXPROBE_DATA", "")
    monkeypatch.setattr(datasets, "_MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
    np.testing.assert_array_equal(mnist("test")[1], digits["test"][1])


def test_without_a_network_the_error_names_the_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVEXPROBE_DATA")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(datasets, "_MIRRORS", ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"))
    with pytest.raises(OSError) as caught:
        mnist("train")
    for word in ("train-images-idx3-ubyte.gz", "CONVEXPROBE_DATA", ":9/a/: ", ":9/b/: "):
        assert word in str(caught.value)


def test_the_mirrors_are_encrypted_and_end_in_a_slash() -> None:
    # pooch appends the file name to them as they are
    assert len(datasets._MIRRORS) >= 2
    for mirror in datasets._MIRRORS:
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
    assert REAL_SHA256 == datasets._SHA256
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
        content = datasets._locate(name).read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
        assert hashlib.sha256(content).hexdigest() == datasets._SHA256[name]
