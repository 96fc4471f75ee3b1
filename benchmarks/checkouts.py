"""The package `crate` of two checkouts in one process, and speeds of both in turns."""

import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# Where a module of today lay in checkouts before it moved.
BEFORE = {"crate.training.loop": "crate.train", "crate.training.optim": "crate.optim"}


class Checkout:
    """The package `crate` below `root`; entered by `with`, `import crate…` gives this package."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        if not (self.root / "crate").is_dir():
            raise SystemExit(f"{root}: not a checkout of this repository")
        self.modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        others = _take()
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.root))
        try:
            yield
        finally:
            sys.path.remove(str(self.root))
            self.modules = _take()
            sys.modules.update(others)

    def module(self, name: str) -> ModuleType:
        """The module `name`, or the one that held its contents before."""
        place = self.root.joinpath(*name.split("."))
        here = place.is_dir() or place.with_suffix(".py").is_file()
        with self():
            return importlib.import_module(name if here else BEFORE[name])


def _take() -> dict[str, ModuleType]:
    """Remove the modules of `crate` from those imported; returns them."""
    names = [name for name in sys.modules if name.split(".")[0] == "crate"]
    return {name: sys.modules.pop(name) for name in names}


def ratio_of_times(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> tuple[float, float, float]:
    """Time of `first` over time of `second` in interleaved turns, about `seconds` in all.

    Returns the median of the turns' ratios, and their quartiles: a busy machine slows both alike.
    """
    first(), second()
    once = _time(first, 1) + _time(second, 1)
    repeats = max(1, round(0.05 / once))
    turns = min(201, max(9, round(seconds / (once * repeats))))
    ratios = []
    for turn in range(turns):
        order = (first, second) if turn % 2 else (second, first)
        times = {run: _time(run, repeats) for run in order}
        ratios.append(times[first] / times[second])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def _time(run: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats
