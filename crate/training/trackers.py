"""Experiment trackers, which show the lines of train.jsonl as they come. None is ever needed.

    log: tensorboard   event files beside train.jsonl; `tensorboard --logdir results/mini/runs`
    log: wandb         a run of the project "crate" at Weights & Biases

train.jsonl is the record and a tracker a view of it: what it lacks when it starts to follow, it
gets from that file, and one that fails is left alone, with a warning. No identity depends on it.
This module imports no torch.
"""

import contextlib
import importlib.util
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator

from crate.errors import UsageError
from crate.records import RunFolder, read_json, write_json

PROJECT = "crate"


def check_installed(log: str) -> None:
    """Raise `UsageError` where the package of the tracker that is asked for is not installed."""
    if log == "none":
        return
    found = importlib.util.find_spec(log)  # runs nothing of it
    if found is None or found.origin is None:  # a mere folder of that name, such as wandb's own
        raise UsageError(
            f"log={log}: the package {log} is not installed; 'python -m pip install {log}' adds it"
        )


@contextlib.contextmanager
def follow(log: str, folder: RunFolder, record: dict) -> Iterator[Callable[[dict], None]]:
    """Let a tracker hear what `folder.append` writes, for as long as a run trains.

    Args:
        log: "none", "tensorboard" or "wandb".
        record: what run.json states of the run; its name and configuration are shown.

    Yields a function that takes the metrics of the finished run.
    """
    follower = Follower(log, folder, record)
    folder.follower = None if log == "none" else follower.hear
    metrics: dict = {}
    try:
        yield metrics.update
    finally:
        folder.follower = None
        follower.close(metrics)


class Follower:
    """A tracker that opens with the first line it hears, and never fails a run."""

    def __init__(self, log: str, folder: RunFolder, record: dict):
        self.log, self.folder, self.record = log, folder, record
        self.tracker, self.broken = None, False

    def hear(self, line: dict) -> None:
        """Show a line that stands in train.jsonl already."""
        self._attempt(self._open if self.tracker is None else self._add, line)

    def close(self, metrics: dict) -> None:
        """End the view; without metrics the run was stopped, or failed."""
        if self.tracker is not None:
            self._attempt(self.tracker.close, metrics)

    def _open(self, _: dict) -> None:
        # a resumed run has dropped the lines of updates that it trains again, before it added one
        text = self.folder.history.read_text(encoding="utf-8")
        lines = [json.loads(each) for each in text.splitlines()]
        self.tracker = TRACKERS[self.log](self.folder, self.record, lines)
        for line in lines:
            self._add(line)

    def _add(self, line: dict) -> None:
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self.tracker.add(line["step"], numbers)

    def _attempt(self, work: Callable[[dict], None], argument: dict) -> None:
        if self.broken:
            return
        try:
            work(argument)
        except Exception as error:  # whatever a full disk, a network or a package may bring
            self.broken = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"warning: log={self.log} is given up: {reason}", file=sys.stderr, flush=True)


class TensorBoard:
    """An event file beside train.jsonl with one scalar a key and line.

    Each start writes a file of its own, all lines from the first one on. It begins with the mark
    by which readers forget what they read in older ones (those stay: a TensorBoard that is open
    would wait for ever at the end of one that is gone). Written by tensorboard's record writer: an
    import of 0.4 s, where torch.utils.tensorboard takes 2, and no thread, so that errors show here.
    """

    def __init__(self, folder: RunFolder, record: dict, lines: list[dict]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.Event, self.Summary = Event, Summary
        # a name that TensorBoard looks for; it reads several by their order
        path = folder.folder / f"events.out.tfevents.{time.time():.6f}"
        self.file = path.open("xb")
        self.writer = RecordWriter(self.file)
        # the time axis is that of training, without interruptions
        self.began = time.time() - lines[-1]["seconds"]
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: dict) -> None:
        scalars = [self.Summary.Value(tag=key, simple_value=v) for key, v in values.items()]
        when = self.began + values["seconds"]
        self._write(step=step, summary=self.Summary(value=scalars), wall_time=when)

    def close(self, metrics: dict) -> None:
        self.file.close()

    def _write(self, **fields) -> None:
        self.writer.write(self.Event(**{"wall_time": time.time()} | fields).SerializeToString())
        self.file.flush()


class WeightsAndBiases:
    """A run at Weights & Biases, which a resumed run goes on with.

    tracking.json keeps its id. Training that begins anew is a run of its own there, and so is each
    part of one that is recorded offline, which cannot be resumed: it has all lines.
    """

    def __init__(self, folder: RunFolder, record: dict, lines: list[dict]):
        import wandb

        path = folder.folder / "tracking.json"
        known = {} if len(lines) == 1 else read_json(path) or {}
        number = uuid.uuid4().hex if known.get("offline", True) else known["id"]
        self.run = wandb.init(
            project=PROJECT,
            name=record["run"],
            group=record["scale"],
            id=number,
            resume="allow",
            dir=folder.folder,
            config={key: record.get(key) for key in ("identity", "commit", "dataset", "config")},
            settings=wandb.Settings(console="off", quiet=True, login_timeout=30),
        )
        write_json(path, {"id": number, "offline": bool(self.run.offline)})
        self.first = self.run.step  # what stands there already is not shown twice

    def add(self, step: int, values: dict) -> None:
        if step >= self.first:
            self.run.log(values, step=step)

    def close(self, metrics: dict) -> None:
        self.run.summary.update(metrics)
        self.run.finish(exit_code=0 if metrics else 1)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
