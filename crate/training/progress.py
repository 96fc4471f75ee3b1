"""Progress of a run: a moving bar on a terminal, a line every 10 s in a log."""

import os
import sys
import time

from tqdm import tqdm

from crate.records import DRIVER_VARIABLE

# Under Snakemake, several runs print at once: their bars must not overwrite each other.
IN_PLACE = sys.stderr.isatty() and DRIVER_VARIABLE not in os.environ
LINE_SECONDS = 10.0


class Progress:
    """The progress bar of one run: share done, epoch, loss, images/s, time left."""

    def __init__(self, name: str, *, total: int, unit: str, enabled: bool = True):
        self.name, self.total, self.unit, self.enabled = name, total, unit, enabled
        self.start = self.shown = time.monotonic()
        self.first = 0

    def resume(self, done: int) -> None:
        """Start with `done` items of an earlier process, which do not count for the speed."""
        self.first, self.start = done, time.monotonic()

    def update(self, done: int, note: str) -> None:
        """Show `done` of `total` items, unless the bar was shown a moment ago."""
        finished = done >= self.total
        interval = 0.5 if IN_PLACE else LINE_SECONDS
        if not self.enabled or (time.monotonic() - self.shown < interval and not finished):
            return
        self.shown = time.monotonic()
        bar = tqdm.format_meter(
            n=done,
            total=self.total,
            elapsed=time.monotonic() - self.start,
            initial=self.first,
            prefix=self.name,
            unit=f" {self.unit}",
            unit_scale=True,
            postfix=note,
            ncols=None,
            bar_format="{desc}: {percentage:3.0f}% |{bar:20}| {rate_fmt}, "
            "{remaining} left{postfix}",
        )
        end = "\r" if IN_PLACE and not finished else "\n"
        print(bar, file=sys.stderr, end=end, flush=True)
