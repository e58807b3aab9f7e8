"""Damaged and crafted histories: one clear error or a warning each, never a wrong number."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import convexprobe as cxp
from tests.tiny import bits, checkpoints, sweep

STEPS = checkpoints(3)
SHORT: dict[str, Any] = {"layers": ["4"], "test": None}

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any]]:
    """A history of three steps and a duplicate, and what is in it."""
    folder = tmp_path_factory.mktemp("history") / "whole"
    history = sweep([*STEPS, (20, STEPS[2][1])], out=folder, **SHORT)
    return folder, bits(history)


def copied(recorded: tuple[Path, dict[Any, Any]]) -> Path:
    folder = recorded[0].with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(recorded[0], folder)


def everything(folder: Path) -> dict[Any, Any]:
    """What a damaged history still says, after warnings, if it says anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = cxp.load_history(folder)
    found: dict[Any, Any] = {}
    for entry in history.entries:
        try:
            original = entry.step if entry.duplicate_of is None else entry.duplicate_of
            found |= bits(cxp.ProbeHistory([entry], {original: history[entry.step]}))
        except ValueError as error:
            assert str(folder) in str(error)
    assert isinstance(str(history), str) and isinstance(history.table(), list)
    return found


def flip(data: st.DataObject, path: Path, content: bytes) -> None:
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    changed = bytearray(content)
    changed[at // 8] ^= 1 << at % 8
    path.write_bytes(changed)


def cut(data: st.DataObject, path: Path, content: bytes) -> None:
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])


def insert(data: st.DataObject, path: Path, content: bytes) -> None:
    at = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:])


def swap(data: st.DataObject, path: Path, content: bytes) -> None:
    path.write_bytes(data.draw(st.sampled_from(sorted(path.parent.iterdir()))).read_bytes())


def replaced(make: Callable[[Path], Any]) -> Callable[..., None]:
    def damage(data: st.DataObject, path: Path, content: bytes) -> None:
        path.unlink()
        make(path)

    return damage


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


DAMAGES: dict[str, Callable[..., None]] = {
    "flip": flip,
    "cut": cut,
    "insert": insert,
    "swap": swap,
    "missing": replaced(lambda path: None),
    "directory": replaced(Path.mkdir),
    "pipe": replaced(os.mkfifo),
    "endless": replaced(lambda path: path.symlink_to("/dev/zero")),
    "sparse": replaced(sparse),
    "deep": replaced(lambda path: path.write_text("[" * 100_000)),
}


@given(data=st.data())
def test_what_a_damaged_history_still_says_is_true(
    recorded: tuple[Path, dict[Any, Any]], data: st.DataObject
) -> None:
    folder, (_, whole) = copied(recorded), recorded
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    damage = data.draw(st.sampled_from(sorted(DAMAGES)))
    DAMAGES[damage](data, path, path.read_bytes())
    try:
        found = everything(folder)
    except ValueError as error:
        assert path.name == "settings.json" and "expected the settings of a history" in str(error)
    else:
        assert all(whole[key] == value for key, value in found.items())


@pytest.mark.parametrize("damage", ["missing", "sparse", "deep"])
@pytest.mark.parametrize(
    "name", ["step_0.json", "step_0.safetensors", "step_6.logits.safetensors", "step_20.json"]
)
@pytest.mark.filterwarnings("ignore:.*damaged, its step counts as not done")
def test_a_damaged_step_is_done_again(
    recorded: tuple[Path, dict[Any, Any]], damage: str, name: str
) -> None:
    folder = copied(recorded)
    DAMAGES[damage](None, folder / name, b"")
    again = sweep([*STEPS, (20, STEPS[2][1])], out=folder, **SHORT)
    assert [(e.step, e.duplicate_of) for e in again.entries] == [
        (0, None), (3, None), (6, None), (20, 6)
    ]  # fmt: skip
    assert all(r.status is cxp.Status.CERTIFIED for entry in again.entries for r in entry.layers)
    assert bits(cxp.load_history(folder)) == bits(again)


@pytest.mark.parametrize("damage", ["pipe", "endless", "directory"])
@pytest.mark.filterwarnings("ignore:.*damaged, its step counts as not done")
def test_what_is_no_file_is_not_written_over(
    recorded: tuple[Path, dict[Any, Any]], damage: str
) -> None:
    folder = copied(recorded)
    DAMAGES[damage](None, folder / "step_3.safetensors", b"")
    with pytest.raises(OSError, match=r"step 3 could not be written .expected a regular file"):
        sweep([*STEPS, (20, STEPS[2][1])], out=folder, **SHORT)


HOSTILE = [
    None, [], {}, "", "x", "../step_0", "/dev/zero", -1, 0, 3, 2**70, 1.5, True, float("nan"),
    float("inf"), [[]] * 3, {"a": None},
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items if isinstance(value, dict | list) else ():
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places(item, (*at, key))


@given(data=st.data())
def test_a_crafted_history_raises_one_kind_of_error(
    recorded: tuple[Path, dict[Any, Any]], data: st.DataObject
) -> None:
    """Its checksums are right, so that only the values can be refused."""
    folder = copied(recorded)
    path = data.draw(st.sampled_from(sorted(folder.glob("*.json"))))
    content = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *before, last = data.draw(st.sampled_from(list(places(content))))
        inside = content
        for key in before:
            inside = inside[key]
        if isinstance(inside, dict) and data.draw(st.booleans()):
            inside[data.draw(st.sampled_from([last, "more", "../x"]))] = inside.pop(last)
        elif data.draw(st.booleans()):
            inside.pop(last)
        else:
            inside[last] = deepcopy(data.draw(st.sampled_from(HOSTILE)))
    body = {k: v for k, v in content.items() if k not in ("format", "sha256")}
    if isinstance(content.get("sha256"), str):
        content["sha256"] = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    path.write_text(json.dumps(content))
    try:
        everything(folder)
    except ValueError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("number", ["NaN", "[NaN]", "1e999", "-1e999", "1" * 5000])
def test_numbers_that_are_none_are_refused(
    recorded: tuple[Path, dict[Any, Any]], number: str
) -> None:
    folder = copied(recorded)
    text = (folder / "step_3.json").read_text()
    key = '"loss": '
    start = text.index(key) + len(key)
    (folder / "step_3.json").write_text(text[:start] + number + text[text.index(",", start) :])
    with pytest.warns(UserWarning, match=r"step_3.json: damaged, its step counts as not done: "):
        assert list(cxp.load_history(folder)) == [0, 6, 20]


def test_a_history_that_was_changed_while_it_is_read_says_so(
    recorded: tuple[Path, dict[Any, Any]],
) -> None:
    folder = copied(recorded)
    history = cxp.load_history(folder)
    content = bytearray((folder / "step_3.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "step_3.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"step_3.safetensors: its checksum is not the one"):
        history[3]
    assert history[0]["4"].classes == (0, 1, 2) and 3 in history and "3" not in history


def test_a_history_of_ranks_tells_where_theirs_are(
    recorded: tuple[Path, dict[Any, Any]], tmp_path: Path
) -> None:
    shutil.copytree(recorded[0], tmp_path / "rank_0_of_2")
    with pytest.raises(ValueError, match=r"the ranks' own are there, such as .*rank_0_of_2"):
        cxp.load_history(tmp_path)
    with pytest.raises(TypeError, match="directory: expected a path, found 3"):
        cxp.load_history(3)
