"""What a run leaves on disk is whole, or not there; and it is trusted only where it should be."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crate.errors import RunError
from crate.records import (
    RunFolder,
    atomic_path,
    canonical_json,
    file_sha256,
    git_commit,
    lock,
    read_json,
    short_hash,
    write_json,
    write_text,
)

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing -----------------------------------------------------------


def test_equal_values_have_one_text():
    assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": True}}) == (
        '{"a":{"c":true,"d":null},"b":[1,2.5]}'
    )
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    assert canonical_json(1) != canonical_json(1.0)
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_short_hash_is_the_first_64_bits_of_sha256():
    assert short_hash("abc") == "ba7816bf8f01cfea"


def test_files_are_written_whole_with_usual_permissions(tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_bytes().endswith(b"}\n")
    assert read_json(path) == {"a": "é", "b": 1}
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert names(path.parent) == ["file.json"]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    path = tmp_path / "metrics.json"
    write_json(path, {"top1": 1.0})
    before = path.read_bytes()

    def full(self, *_, **__):
        if where == "write":
            with open(self, "w") as file:
                file.write('{"top1"')  # half of it got through
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, {"write": "write_text"}.get(where, where), full)
        with pytest.raises(RunError, match=r"metrics\.json: cannot be written \(No space left"):
            write_json(path, {"top1": 2.0})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["metrics.json"]


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(RunError, match=r"a\.txt: cannot be written \(Read-only file system\)"):
        write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == []


def test_any_other_error_passes_and_leaves_nothing(tmp_path):
    def half():
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", '{"a": ', "[1]", b"\xff"])
def test_what_is_no_json_object_reads_as_nothing(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_json(path) is None


# --- a run's folder -----------------------------------------------------------


@pytest.fixture
def done(tmp_path) -> RunFolder:
    """A run that finished under the identity `me`."""
    folder = RunFolder(tmp_path / "run")
    folder.folder.mkdir()
    folder.start({"identity": "me"})
    folder.weights.write_bytes(b"weights")
    folder.checkpoint("me").write_bytes(b"half-way")
    folder.finish({"top1": 12.5}, {"train_seconds": 3})
    return folder


def test_a_finished_run(done):
    digest = file_sha256(done.weights)
    # metrics.json is what children depend on: no times, no hosts
    assert read_json(done.metrics) == {"metrics": {"top1": 12.5}, "weights_sha256": digest}
    record = read_json(done.record)
    assert record["status"] == "complete"
    assert (record["identity"], record["train_seconds"]) == ("me", 3)
    assert names(done.folder) == ["metrics.json", "run.json", "weights.safetensors"]


def test_a_history_goes_on_with_its_checkpoint_or_is_gone(done):
    done.append({"step": 1})
    done.checkpoint("me").write_bytes(b"half-way")
    done.start({"identity": "me"})
    assert done.history.read_text() == '{"step": 1}\n'
    done.start({"identity": "other"})
    assert not done.history.exists()


def test_finished_work_is_found_again(done):
    before = done.metrics.read_bytes()
    done.metrics.unlink()  # as Snakemake does with the output of a job it did not see end
    assert done.accept("me")
    assert done.metrics.read_bytes() == before


def test_other_or_damaged_work_is_not_accepted(done):
    done.metrics.unlink()
    assert not done.accept("you")
    whole = done.weights.read_bytes()
    done.weights.write_bytes(b"weightz")
    assert not done.accept("me")
    done.weights.unlink()
    assert not done.accept("me")
    assert not done.metrics.exists()
    done.weights.write_bytes(whole)
    assert done.accept("me")


@pytest.mark.parametrize("end", ["start", "fail"])
def test_unfinished_or_failed_work_is_not_accepted(done, end):
    if end == "start":
        done.start({"identity": "me"})
        assert not done.metrics.exists()  # an older result is gone as soon as work begins
    else:
        done.fail("the loss is nan")
        assert read_json(done.record)["error"] == "the loss is nan"
    assert not done.accept("me")


def test_a_half_written_record_is_not_accepted(done):
    done.record.write_text(done.record.read_text()[:-20])
    assert not done.accept("me")


def test_a_metric_that_is_no_number_completes_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start({"identity": "me"})
    with pytest.raises(RunError, match="the metric top1 is nan, not a finite number"):
        folder.finish({"top1": float("nan")}, {})
    assert not folder.metrics.exists()
    assert read_json(folder.record)["status"] == "running"
    assert not folder.accept("me")


def test_a_full_disk_while_finishing_completes_nothing(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.start({"identity": "me"})
    real = Path.replace

    def full(self, target):
        if Path(target).name == "metrics.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(RunError, match="No space left"):
            folder.finish({"top1": 1.0}, {})
    assert names(tmp_path) == ["run.json"]
    assert folder.accept("me")  # the work itself is whole: it is not done twice


# --- locks -----------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from crate.records import lock
with lock(Path(sys.argv[1])) as held:
    print("held" if held else "refused", flush=True)
    if held:
        time.sleep(120)
"""
WAITER = """
import sys
from pathlib import Path
from crate.records import lock
with lock(Path(sys.argv[1]), "another works here") as held:
    print("held" if held else "refused", flush=True)
"""


@pytest.fixture
def start():
    """Start a Python program with one argument; killed at the end if need be."""
    started = []
    root = Path(__file__).parent.parent

    def start(program: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            cwd=root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_lock_is_held_by_one_and_dies_with_it(tmp_path, start):
    path = tmp_path / "run" / ".lock"
    holder = start(HOLDER, path)
    assert holder.stdout.readline() == "held\n"
    with lock(path) as held:
        assert not held
    waiter = start(WAITER, path)
    assert waiter.stderr.readline() == f"another works here (process {holder.pid})\n"
    assert waiter.poll() is None
    holder.send_signal(signal.SIGKILL)
    assert waiter.communicate(timeout=60) == ("held\n", "")
    assert waiter.returncode == 0
    with lock(path) as held:
        assert held
        assert path.read_text() == str(os.getpid())


def test_waiting_for_a_lock_can_be_stopped(tmp_path, start):
    path = tmp_path / ".lock"
    with lock(path):
        waiter = start(WAITER, path)
        assert waiter.stderr.readline()
        waiter.send_signal(signal.SIGINT)
        waiter.wait(timeout=60)
        assert waiter.returncode != 0
        assert waiter.stdout.read() == ""


def test_a_lock_is_given_back(tmp_path):
    for _ in range(2):
        with lock(tmp_path / ".lock") as held:
            assert held


def test_a_lock_in_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(RunError, match=r"\.lock: cannot be written \("),
        lock(tmp_path / "file" / ".lock"),
    ):
        pass


# --- the commit -----------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """`crate/` of a checkout with one commit, and `git(…)` in it."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "suite/crate"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("")

    def git(*words: str, at: Path = folder.parent) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(
            ["git", *identity, *words], cwd=at, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    return folder, git


def test_the_commit_of_a_checkout(checkout):
    folder, git = checkout
    commit = git("rev-parse", "HEAD")
    assert git_commit(folder) == commit
    (folder / "new.py").write_text("")
    assert git_commit(folder) == commit  # untracked files are not the commit's
    (folder / "a.py").write_text("changed = 1")
    assert git_commit(folder) == f"{commit}+changes"


COPY = "unknown: the code is a copy, no checkout of its own"


@pytest.mark.parametrize("tracked", [False, True])
def test_a_copy_inside_another_repository_has_no_commit(checkout, tracked):
    folder, git = checkout
    inside = folder.parent / "copies/suite/crate"
    shutil.copytree(folder, inside)
    if tracked:
        git("add", "-A")
        git("commit", "-q", "-m", "two")
    assert git_commit(inside) == COPY


def test_a_copy_without_git_and_a_checkout_without_commits(tmp_path, checkout):
    folder, _ = checkout
    alone = tmp_path / "alone/crate"
    shutil.copytree(folder, alone)
    assert git_commit(alone) == COPY
    subprocess.run(["git", "init", "-q"], cwd=alone.parent, check=True)
    assert git_commit(alone) == "unknown: the checkout has no commit"


def test_another_repository_that_the_environment_names_is_not_believed(checkout, monkeypatch):
    folder, git = checkout
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(ROOT))
    got = git_commit(folder)
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    assert got == git("rev-parse", "HEAD")


def test_what_git_refuses_or_cannot_say_is_told(checkout, monkeypatch, tmp_path):
    folder, _ = checkout
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert git_commit(folder) == "unknown: git is not installed"
    for script, told in (
        (
            "echo \"fatal: detected dubious ownership in repository at '/x'\" >&2; exit 128",
            "unknown: git does not read another user's checkout (safe.directory)",
        ),
        ("exit 1", COPY),
    ):
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
        assert git_commit(folder) == told
