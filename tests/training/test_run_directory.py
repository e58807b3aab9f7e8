"""Nothing is lost: kills, torn files, full disks, other settings."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import convexprobe as cxp
import convexprobe._files as _files
from tests.tiny import bits, checkpoints, rows, sweep

STEPS = checkpoints(5)
WHOLE = bits(sweep(STEPS))


def test_memory_disk_and_a_second_run_give_the_same_bits(tmp_path: Path) -> None:
    assert bits(sweep(STEPS, out=tmp_path)) == WHOLE
    assert bits(sweep(STEPS, out=tmp_path)) == WHOLE
    assert bits(cxp.load_history(tmp_path)) == WHOLE
    assert bits(sweep(iter(STEPS), out=tmp_path / "iterator")) == WHOLE
    probes = cxp.load_probes(tmp_path / "step_6.safetensors")
    assert list(probes) == ["0", "1", "2", "3", "4"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_instant_loses_nothing(tmp_path: Path) -> None:
    # One process imports; its children die: at every file operation in turn, then at random times.
    script = tmp_path / "kills.py"
    script.write_text(textwrap.dedent(
        """
        import os, random, signal, sys, time
        from pathlib import Path
        from tests.kills import end, fork, prepare
        from tests.tiny import bits, checkpoints, sweep
        import convexprobe._files as _files
        prepare()
        steps, settings = checkpoints(3), {"layers": ["0", "4"], "test": None}
        whole = bits(sweep(steps, **settings))

        def child(out, instant=None):
            return fork(lambda: run(out, instant))

        def run(out, instant):
            count = 0
            def dying(call):
                def called(*args):
                    nonlocal count
                    count += 1
                    if count == instant:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args)
                return called
            if instant is not None:
                _files._sync = dying(_files._sync)
                _files.os.replace = dying(_files.os.replace)
            assert bits(sweep(steps, out=out, **settings)) == whole

        killed = 0
        for instant in range(1, 200):
            out = Path(sys.argv[1]) / f"at_{instant}"
            code = end(child(out, instant))
            if code == 0:  # it has fewer file operations than that
                break
            assert code == -signal.SIGKILL, code
            killed += 1
            assert end(child(out)) == 0, instant
            assert not list(out.glob("*.tmp*")) + list(out.glob(".*.tmp*"))
        assert killed > 25, killed
        rng, lost = random.Random(0), 0
        for trial in range(4):
            out, code = Path(sys.argv[1]) / f"random_{trial}", 1
            while code != 0:
                pid = child(out)
                time.sleep(rng.uniform(0.0, 0.06))
                os.kill(pid, signal.SIGKILL)  # perhaps after its end
                code = end(pid)
                assert code in (0, -signal.SIGKILL), code
                lost += code != 0
                if lost > 30:
                    code = end(child(out))
            assert bits(sweep(steps, out=out, **settings)) == whole
        print(killed, lost)
        """
    ))  # fmt: skip
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2],
                          env={**os.environ, "PYTHONPATH": "."}, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 4


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".logits.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_torn_last_entry_is_redone_to_the_same_bits(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    sweep(STEPS, out=tmp_path)
    name = f"step_12{suffix}"
    content = bytearray((tmp_path / name).read_bytes())
    if damage == "flip":
        content[len(content) * 3 // 4] ^= 1
    (tmp_path / name).write_bytes({"truncate": content[: len(content) // 2], "flip": content,
                                   "empty": b""}[damage])  # fmt: skip
    with pytest.warns(UserWarning, match=r"step_12.json: damaged, its step counts as not done"):
        again = sweep(STEPS, out=tmp_path)
    assert bits(again) == WHOLE


def test_a_damaged_entry_in_the_middle_is_redone_and_certified(tmp_path: Path) -> None:
    sweep(STEPS, out=tmp_path)
    (tmp_path / "step_3.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"step_3.json: damaged"):
        again = sweep(STEPS, out=tmp_path)
    assert list(again) == [0, 3, 6, 9, 12]
    assert all(r.status is cxp.Status.CERTIFIED for entry in again.entries for r in entry.layers)
    after = bits(again)
    for key, value in WHOLE.items():
        if (key if isinstance(key, int) else key[0]) != 3:
            assert after[key] == value


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, count = _files._sync, 0

    def full(path: Path) -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "_sync", full)
        with pytest.raises(OSError, match=r"step \d+ could not be written \(No space left") as info:
            sweep(STEPS, out=tmp_path)
    assert info.value.errno == errno.ENOSPC
    part = cxp.load_history(tmp_path)
    assert 1 <= len(part) < 5
    assert bits(part) == {k: v for k, v in WHOLE.items() if k in bits(part)}
    assert not list(tmp_path.glob(".*"))
    assert bits(sweep(STEPS, out=tmp_path)) == WHOLE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
def test_a_file_that_the_system_cuts_short_is_the_same_error(tmp_path: Path) -> None:
    import resource

    sweep(STEPS[:2], out=tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 3000, 6000):  # within the probes, their logits, the entry
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(OSError, match=r"step 6 could not be written \(File too large"):
                sweep(STEPS, out=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(cxp.load_history(tmp_path)) == [0, 3]
        assert not list(tmp_path.glob(".*"))
    assert bits(sweep(STEPS, out=tmp_path)) == WHOLE


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"l2": 1e-1}, "l2: recorded 0.01, now 0.1"),
        ({"tol": 1e-2}, "tol: recorded 0.001, now 0.01"),
        ({"pool": cxp.random_features(3)}, r"pool: recorded 'flatten', now .*random_features\(3"),
        ({"layers": ["0"]}, r"layers: recorded None, now \['0'\]"),
        ({"test": rows(60, seed=9)}, "test: recorded"),
        ({"solver": "lbfgs"}, "solver: recorded 'Auto"),
        ({"warm_start": "zero"}, "warm_start"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    sweep(STEPS[:2], out=tmp_path)
    with pytest.raises(ValueError, match=rf"settings.json records other settings.*{name}"):
        sweep(STEPS, out=tmp_path, **change)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the settings of a history"):
        cxp.load_history(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the settings of a history"):
        sweep(STEPS, out=tmp_path)


def test_a_history_is_saved_whole_and_not_over_another(tmp_path: Path) -> None:
    history = sweep([*STEPS[:2], (20, STEPS[1][1])])
    history.save(tmp_path / "a")
    assert bits(cxp.load_history(tmp_path / "a")) == bits(history)
    with pytest.raises(ValueError, match="a history is there"):
        history.save(tmp_path / "a")
