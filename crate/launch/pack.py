"""Short runs that share a job.

Each waiting process lists its run in a folder. The process that gets the folder's lock submits the
listed runs as one job.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from crate.errors import UsageError
from crate.launch.job import Job, read_job
from crate.launch.run import Prepared, prepare
from crate.launch.work import Item
from crate.planning.plan import Plan
from crate.records import RunFolder, lock, read_json, short_hash, write_json

PACK_SECONDS = 3.0  # how long the submission waits for one more run


class Pack:
    """The list of short runs with the same needs.

    Args:
        folder: holds a file for each listed run.
        limit: the largest number of runs in a job.
        submit: submits one job for these runs and writes it to the job.json of each.
        stop_requested: whether SIGINT or SIGTERM arrived.
    """

    def __init__(
        self,
        folder: Path,
        limit: int,
        plan: Plan,
        submit: Callable[[list[Item], list[Prepared]], Job],
        stop_requested: Callable[[], bool],
    ):
        self.folder, self.limit, self.plan = folder, limit, plan
        self.submit, self.stop_requested = submit, stop_requested

    def join(self, item: Item, run: RunFolder) -> Job | None:
        """List a run and wait for its job; None if the run was left out of the submitted job.

        Raises:
            KeyboardInterrupt: a stop was requested.
        """
        mine = self.folder / f"{short_hash(str(run.folder.absolute()))}.json"
        run.job.unlink(missing_ok=True)
        write_json(mine, dataclasses.asdict(item))
        while True:
            if self.stop_requested():
                mine.unlink(missing_ok=True)
                raise KeyboardInterrupt
            listed = mine.exists()  # before job.json, which is written first
            job = read_job(run)
            if job and job.id:
                return job
            if not listed:
                return None
            with lock(self.folder / ".lock") as leader:
                if leader and mine.exists():
                    self._submit()
            time.sleep(0.2)

    def _submit(self) -> None:
        deadline, listed = time.monotonic() + PACK_SECONDS, 0
        while True:
            waiting = sorted(self.folder.glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
            if len(waiting) > listed:
                deadline, listed = time.monotonic() + PACK_SECONDS, len(waiting)
            if listed >= self.limit or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        items, prepared = [], []
        taken = waiting[: self.limit]
        for path in taken:
            item = Item(**(read_json(path) or {}))
            try:
                prepared.append(
                    prepare(item.path, self.plan, expected=item.expected, overrides=item.overrides)
                )
                items.append(item)
            except UsageError:  # its own process reports the error
                continue
        try:
            if items:
                self.submit(items, prepared)
        finally:
            for path in taken:
                path.unlink(missing_ok=True)
