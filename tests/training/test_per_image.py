"""Pictures shared out to ranks: killed, restarted with other ranks, stopped, merged."""

import concurrent.futures
import dataclasses
import json
import os
import resource
import signal
import threading
import time

import pytest
import torch

from crate.errors import RunError, Stopped, UsageError
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.training.per_image import resumable_map


@dataclasses.dataclass(frozen=True)
class Rank(Runtime):
    """One of several ranks, each a thread here; one that dies breaks the barrier, as gloo does."""

    barrier: threading.Barrier = dataclasses.field(default_factory=lambda: threading.Barrier(1))

    def all_reduce_max(self, *values):
        self.barrier.wait(timeout=20)  # raises a RuntimeError where a rank is gone
        return list(values)


class Killed(BaseException):
    """Ends a process as a kill does: nothing tidies up."""


@pytest.fixture
def work(tmp_path):
    """`work(look, count, world)` → rank 0's result; `work.seen` lists the pictures looked at."""

    def square(index):
        return {"square": index**2}

    def work(look=square, count=7, world=1):
        def watched(index):
            work.seen.append(index)
            return look(index)

        def one(rank):
            runtime = Rank(torch.device("cpu"), torch.float32, "test", rank, world, barrier)
            try:
                return resumable_map(
                    watched,
                    count,
                    picture=lambda index: f"picture {index:03d}",
                    runtime=runtime,
                    folder=RunFolder(tmp_path),
                    identity="abc",
                    name="a run",
                )
            except BaseException:
                barrier.abort()
                raise

        barrier = threading.Barrier(world)
        if world == 1:
            return one(0)  # in the main thread, where signals arrive
        with concurrent.futures.ThreadPoolExecutor(world) as threads:
            results = list(threads.map(one, range(world)))
        assert results[1:] == [[]] * (world - 1)
        return results[0]

    work.seen = []
    return work


SQUARES = [{"square": index**2} for index in range(7)]


def pictures(path):
    return [json.loads(line)["picture"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("world", [1, 3, 9])
def test_ranks_take_turns_and_rank_0_merges(work, tmp_path, world):
    (tmp_path / "progress-other-0.jsonl").write_text("{}\n")  # of an older recipe
    assert work(world=world) == SQUARES
    assert sorted(work.seen) == list(range(7))
    assert not list(tmp_path.glob("progress-other-*"))
    for rank in range(min(world, 7)):
        own = list(range(rank, 7, world))
        assert pictures(tmp_path / f"progress-abc-{rank}.jsonl") == own
    RunFolder(tmp_path).finish({"objects": 0}, {})
    assert not list(tmp_path.glob("progress-*"))


def test_a_killed_run_goes_on_with_another_number_of_ranks(work, tmp_path):
    def dies(index):
        if index == 4:
            while 5 not in work.seen:  # the other has begun, and gets to its end
                time.sleep(0.01)
            raise Killed
        return {"square": index**2}

    with pytest.raises(Killed):
        work(dies, world=2)
    assert pictures(tmp_path / "progress-abc-0.jsonl") == [0, 2]
    assert pictures(tmp_path / "progress-abc-1.jsonl") == [1, 3, 5]  # the other went on to its end
    with (tmp_path / "progress-abc-0.jsonl").open("a") as file:
        file.write('{"picture": 4, "of": 7, "fou')  # what the killed one was writing
    with (tmp_path / "progress-abc-5.jsonl").open("w") as file:
        file.write('{"picture": 6, "of": 7, "fou')  # of a rank that is no more
    work.seen.clear()
    assert work(world=3) == SQUARES
    assert sorted(work.seen) == [4, 6]
    assert pictures(tmp_path / "progress-abc-0.jsonl") == [0, 2, 4]
    assert work() == SQUARES  # killed before the metrics were there: nothing is done again
    assert sorted(work.seen) == [4, 6]


def test_what_is_no_whole_line_is_done_again(work, tmp_path):
    """A last line without its end, lines that are JSON and yet none of ours."""
    path = tmp_path / "progress-abc-0.jsonl"
    odd = ('{"picture":[1],"of":7,"found":{}}', '{"picture":true,"of":7,"found":{}}', "[" * 9999,
           '{"picture":2,"of":7}', '{"picture":8,"of":7,"found":{}}', "3")  # fmt: skip
    whole = '{"picture":0,"of":7,"found":{"square":0}}'
    cut = '{"picture":1,"of":7,"found":{"square":1}}'
    path.write_text("\n".join((*odd, whole, cut)))
    assert work() == SQUARES
    assert work.seen == [1, 2, 3, 4, 5, 6]


def test_a_rank_says_that_another_is_gone(work):
    def dies(index):
        if index == 6:
            while not {0, 1, 3, 4, 5} <= set(work.seen):  # the others have begun
                time.sleep(0.01)
            raise Killed
        return {"square": index**2}

    with pytest.raises(RunError, match="another process of this run ended early"):
        work(dies, world=4)  # rank 0 is done; the first error of the ranks is its


def test_a_picture_that_is_nowhere_is_missed(work, tmp_path):
    lost = tmp_path / "progress-abc-0.jsonl"

    def look(index):
        if index == 6:  # the last one: what was there before is gone, as from a broken disk
            lost.write_text("")
        return {"square": index**2}

    with pytest.raises(RunError, match="6 of 7 pictures are missing, the first is picture 000"):
        work(look)


def test_a_signal_ends_it_after_the_picture(work):
    def signalled(index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"square": index**2}

    with pytest.raises(Stopped, match="stopped by SIGTERM at picture 3 of 7") as stopped:
        work(signalled)
    assert stopped.value.number == signal.SIGTERM
    assert work() == SQUARES
    assert work.seen == list(range(7))


def test_a_picture_that_fails_costs_nothing_but_itself(work, capsys):
    def fails(index):
        if index == 3:
            raise RunError("3.jpg: cannot be read as an image")
        if index == 5:
            raise ZeroDivisionError("division by zero")
        return {"square": index**2}

    done = work(fails)
    reasons = [part.pop("failed") for part in done if "failed" in part]
    assert reasons == [
        "3.jpg: cannot be read as an image",
        "picture 005: ZeroDivisionError: division by zero",
    ]
    assert [part for part in done if "square" in part] == [SQUARES[k] for k in (0, 1, 2, 4, 6)]
    warnings = capsys.readouterr().err
    assert "warning: 3.jpg: cannot be read as an image\n" in warnings
    assert "warning: picture 005: ZeroDivisionError: division by zero\n" in warnings
    work.seen.clear()
    assert work() == SQUARES  # another start tries again
    assert work.seen == [3, 5]


def test_what_would_fail_everywhere_ends_the_run(work):
    def no_such_layer(index):
        raise UsageError("layer 12: this model has layers 0 to 11")

    with pytest.raises(UsageError, match="layer 12"):
        work(no_such_layer)
    with pytest.raises(RunError, match="7 of 7 pictures failed, the first: picture 000: KeyError"):
        work({}.__getitem__)
    for error in (MemoryError, torch.OutOfMemoryError):  # no picture's fault

        def breaks(index, error=error):
            raise error("no room")

        with pytest.raises(error):
            work(breaks)


def test_foreign_and_double_lines_are_refused(work, tmp_path):
    assert work() == SQUARES
    with pytest.raises(RunError, match="made with 7 pictures, now there are 8"):
        work(count=8)
    (tmp_path / "progress-abc-1.jsonl").write_text('{"picture":2,"of":7,"found":{"square":4}}\n')
    with pytest.raises(
        RunError, match="1 of 7 pictures have two results, the first is picture 002"
    ):
        work()


def test_a_disk_that_refuses_is_said(work):
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120, hard))
    try:
        with pytest.raises(RunError, match=r"progress-abc-0.jsonl: cannot be written \(File too"):
            work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert work() == SQUARES
