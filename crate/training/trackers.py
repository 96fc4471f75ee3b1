"""Experiment trackers, which show the lines of train.jsonl live. They are optional.

    log: tensorboard   event files beside train.jsonl; `tensorboard --logdir results/mini/runs`
    log: wandb         a run of the project "crate" at Weights & Biases

train.jsonl is the record, and a tracker shows it: earlier lines are sent when a tracker opens. A
tracker that fails is dropped with a warning. Trackers are not part of an identity. No torch.
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
    """Raise `UsageError` if the tracker's package is not installed."""
    if log == "none":
        return
    package = importlib.util.find_spec(log)  # does not import it
    if package is None or package.origin is None:  # a folder of that name, such as wandb's output
        raise UsageError(
            f"log={log}: the package {log} is not installed; 'python -m pip install {log}' adds it"
        )


@contextlib.contextmanager
def follow(log: str, folder: RunFolder, record: dict) -> Iterator[Callable[[dict], None]]:
    """Send the lines that `folder.append` writes to a tracker while the run trains.

    Args:
        log: "none", "tensorboard" or "wandb".
        record: the run's run.json; its name and configuration are shown.

    Yields a function to be called with the metrics of the finished run.
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
    """Opens a tracker at the first line; errors of the tracker never fail the run."""

    def __init__(self, log: str, folder: RunFolder, record: dict):
        self.log, self.folder, self.record = log, folder, record
        self.tracker, self.broken = None, False

    def hear(self, line: dict) -> None:
        """Show a line that was just written to train.jsonl."""
        self._attempt(self._open if self.tracker is None else self._add, line)

    def close(self, metrics: dict) -> None:
        """Close the tracker; without metrics the run was stopped or failed."""
        if self.tracker is not None:
            self._attempt(self.tracker.close, metrics)

    def _open(self, _: dict) -> None:
        # a resumed run dropped the lines of updates that it repeats before it appends one
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
        except Exception as error:  # full disk, network, the tracker's package
            self.broken = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"warning: log={self.log} failed and is off: {reason}", file=sys.stderr, flush=True
            )


class TensorBoard:
    """An event file beside train.jsonl with one scalar for each key of each line.

    Each start writes a new file with all lines. It begins with a session start, by which readers
    discard older files (which stay: an open TensorBoard would wait at the end of a deleted one).
    tensorboard's record writer imports in 0.4 s, torch.utils.tensorboard in 2 s; it has no thread,
    so errors are raised here.
    """

    def __init__(self, folder: RunFolder, record: dict, lines: list[dict]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.Event, self.Summary = Event, Summary
        # TensorBoard finds files by this name, and reads several in the order of their times
        path = folder.folder / f"events.out.tfevents.{time.time():.6f}"
        self.file = path.open("xb")
        self.writer = RecordWriter(self.file)
        # the time axis shows training time, without interruptions
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
    """A run at Weights & Biases; a resumed run continues it by the id in tracking.json.

    Training that starts over gets a new run there. So does each start of an offline run, which
    cannot be resumed: it gets all lines.
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
        self.first = self.run.step  # earlier steps are there already

    def add(self, step: int, values: dict) -> None:
        if step >= self.first:
            self.run.log(values, step=step)

    def close(self, metrics: dict) -> None:
        self.run.summary.update(metrics)
        self.run.finish(exit_code=0 if metrics else 1)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
