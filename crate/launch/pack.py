"""Short runs that share a job.

Each process that waits lists its run in a folder; the one that gets the folder's lock submits what
is listed as one job.
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

PACK_SECONDS = 3.0  # how long a pack waits for one more run


class Pack:
    """The listed runs of one kind: those with the same needs.

    Args:
        folder: where they are listed.
        limit: runs of a job at most.
        submit: submits one job for these runs and writes its id to each job.json.
        stop_requested: whether this process was asked to stop.
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
        """Put this run on the list and wait until it has a job.

        None where that came to nothing: the run is no longer on the list and has no job.
        """
        mine = self.folder / f"{short_hash(str(run.folder.absolute()))}.json"
        run.job.unlink(missing_ok=True)
        write_json(mine, dataclasses.asdict(item))
        while True:
            if self.stop_requested():
                mine.unlink(missing_ok=True)
                raise KeyboardInterrupt
            listed = mine.exists()  # before the job is looked for: it is noted first
            job = read_job(run)
            if job and job.id:
                return job
            if not listed:
                return None
            with lock(self.folder / ".lock") as leads:
                if leads and mine.exists():
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
            except UsageError:  # its own process, or its own job, says so
                continue
        try:
            if items:
                self.submit(items, prepared)
        finally:
            for path in taken:
                path.unlink(missing_ok=True)
