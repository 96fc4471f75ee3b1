"""What a target costs: device-hours, energy, disk and jobs, by table and in total.

Hours rest on the speeds that `crate bench` measured, else on an estimate. No torch.
"""

import dataclasses
import statistics
from pathlib import Path

from tabulate import tabulate

from crate.costs.cost import BOARD_WATTS, DEVICES, UTILISATION, cost, not_counted, workloads
from crate.errors import UsageError, unknown
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import canonical_json, read_json, short_hash
from crate.runs import Run
from crate.tasks import cost_of
from crate.tasks.cost import Cost

WORK = ("train", "evaluate")


@dataclasses.dataclass(frozen=True)
class Device:
    """The speed of one device, measured or estimated."""

    name: str
    watts: float | None
    measured: dict[str, float]  # key of a workload → FLOP/s, as `cost` counts FLOPs
    rates: dict[str, float]  # kind of work → FLOP/s of workloads that were not measured
    source: str  # where the rates come from, in words


def workload_key(workload: dict) -> str:
    return short_hash(canonical_json(workload))


def bench_folder(results: str | Path) -> Path:
    """The folder of `crate bench`'s results: one JSON file a device."""
    return Path(results) / "bench"


def read_bench(path: Path) -> dict:
    """The content of a file of `crate bench`. Raises `UsageError` for any other file."""
    record = read_json(path) or {}
    if not isinstance(record.get("measured"), dict):
        raise UsageError(f"{path}: not a file of 'crate bench'; remove it and run 'crate bench'")
    return record


def board_of(name: str) -> str | None:
    """The entry of `DEVICES` for a full name: "NVIDIA H100 80GB HBM3" → "h100"."""
    words = name.lower().replace("-", " ").split()
    return next((board for board in DEVICES if board in words), None)


def read_device(name: str, results: str | Path, watts: float | None = None) -> Device:
    """A device by its name in `DEVICES` or results/bench/, or by the path of a bench file.

    watts: power of the board, in place of `BOARD_WATTS`.

    Raises:
        UsageError: an unknown device, or a file that `crate bench` did not write.
    """
    folder, name = bench_folder(results), name if name.endswith(".json") else name.lower()
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        if name.endswith(".json"):
            raise UsageError(f"{path}: not found; 'crate bench' writes such files to {folder}")
        if name not in DEVICES:
            measured = [file.stem for file in sorted(folder.glob("*.json"))]
            raise unknown("device", name, [*DEVICES, *measured])
        rate = DEVICES[name] * 1e12 * UTILISATION
        source = f"estimated at {UTILISATION:.0%} of the device's bfloat16 peak"
        board = float(BOARD_WATTS[name])
        return Device(name, watts or board, {}, dict.fromkeys(WORK, rate), source)
    record = read_bench(path)
    try:
        device, entries = str(record["device"]), dict(record["measured"])
        measured = {key: e["examples_per_second"] * e["flops"] for key, e in entries.items()}
        kinds = {key: e["workload"]["kind"] for key, e in entries.items()}
        precisions = sorted({e["precision"] for e in entries.values()})
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"{path}: not a file of 'crate bench'; remove it and run 'crate bench'"
        ) from None
    rates = {k: [rate for key, rate in measured.items() if kinds[key] == k] for k in WORK}
    if not measured:
        raise UsageError(f"{path}: holds no measurement; run 'crate bench' on that device first")
    board = board_of(device)
    return Device(
        name=path.stem,
        watts=watts or (float(BOARD_WATTS[board]) if board else None),
        measured=measured,
        rates={kind: statistics.median(rates[kind] or measured.values()) for kind in WORK},
        source=f"measured on {device}, torch {record.get('torch')}, {' and '.join(precisions)}; "
        "the rest at the median FLOP/s of that",
    )


@dataclasses.dataclass(frozen=True)
class Item:
    """A run with its cost on a device."""

    run: Run
    price: Cost
    hours: float  # of one device
    measured: float  # the part of `hours` that rests on measured speeds
    devices: int  # over which the recipe distributes the run
    left_out: str  # work that `hours` does not include, in words


def price_run(plan: Plan, run: Run, device: Device) -> Item:
    resolved, price = plan.resolve(run), cost(plan, run)
    keys = {kind: workload_key(w) for kind, w in workloads(resolved, price).items()}
    hours = measured = price.seconds / 3600
    for kind, flops in (("train", price.train_flops), ("evaluate", price.eval_flops)):
        known = keys.get(kind) in device.measured
        rate = device.measured[keys[kind]] if known else device.rates[kind]
        hours += flops / rate / 3600
        measured += flops / rate / 3600 if known else 0.0
    compute, left_out = resolved.recipe.compute, not_counted(resolved)
    if cost_of(resolved.recipe.task).TIMES_ALL and keys.get("evaluate") in device.measured:
        left_out = ""
    return Item(run, price, hours, measured, compute.nodes * max(1, compute.gpus), left_out)


@dataclasses.dataclass(frozen=True)
class Total:
    """Sums over runs."""

    jobs: int
    hours: float
    measured: float
    disk_bytes: int

    @classmethod
    def of(cls, items: list[Item]) -> "Total":
        return cls(
            len(items),
            sum(item.hours for item in items),
            sum(item.measured for item in items),
            sum(item.price.disk_bytes for item in items),
        )

    def __add__(self, other: "Total") -> "Total":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Total(*map(sum, pairs))

    def __sub__(self, other: "Total") -> "Total":
        return self + Total(*(-value for value in dataclasses.astuple(other)))

    def cells(self, device: Device) -> list[str]:
        share = f"{self.measured / self.hours:.0%}" if device.measured and self.hours else ""
        energy = "?" if device.watts is None else amount(self.hours * device.watts / 1000)
        return [
            f"{self.jobs:,}",
            amount(self.hours),
            share,
            energy,
            amount(self.disk_bytes / 1e9),
        ]


def describe(
    plan: Plan, target: str, settings: Settings, device: Device, *, each_run: bool = False
) -> str:
    """The cost of a target as text: by table if it has several, else by run.

    each_run: list the runs even if there are several tables.
    """
    runs = plan.runs(target, settings)
    items = {run: price_run(plan, run, device) for run in runs}
    tables = [] if "/" in target else plan.target_tables(target)
    parts = []
    if len(tables) < 2 or each_run:
        parts.append(_by_run(list(items.values()), device))
    total = Total.of(list(items.values()))
    if len(tables) > 1:
        parts.append(_by_table(plan, tables, settings, items, device))
    words = _words(plan, items, total, settings, device)
    words += [f"not evaluated: {why}" for why in plan.unavailable(target, settings).values()]
    parts.append("\n".join(words))
    return "\n\n".join(parts)


def _by_run(items: list[Item], device: Device) -> str:
    headers = [
        "run",
        "params (M)",
        "training examples",
        "training FLOPs",
        f"{device.name} hours",
        "disk (GB)",
    ]
    rows = [
        [
            str(item.run),
            f"{item.price.parameters / 1e6:,.2f}",
            f"{item.price.examples:,}",
            f"{item.price.train_flops:.2e}",
            amount(item.hours),
            amount(item.price.disk_bytes / 1e9),
        ]
        for item in items
    ]
    return _table(rows, headers)


def _by_table(
    plan: Plan, tables: list[str], settings: Settings, items: dict[Run, Item], device: Device
) -> str:
    """One line a table with all of its runs; then the saving by runs that tables share."""
    needed = {name: plan.runs(f"table_{name}", settings) for name in tables}
    several = {run for run in items if sum(run in of_table for of_table in needed.values()) > 1}
    rows, whole = [], Total.of(list(items.values()))
    summed = Total(0, 0.0, 0.0, 0)
    for name, runs in needed.items():
        own = Total.of([items[run] for run in runs])
        shared = Total.of([items[run] for run in runs if run in several])
        summed = summed + own
        rows.append([name, *own.cells(device), f"{shared.jobs:,}", amount(shared.hours)])
    saved = summed - whole
    rows.append(["sum of the tables", *summed.cells(device), "", ""])
    rows.append(["saved by sharing runs", *saved.cells(device), "", ""])
    rows.append(["all", *whole.cells(device), "", ""])
    headers = [
        "table",
        "jobs",
        f"{device.name} hours",
        "measured",
        "kWh",
        "disk (GB)",
        "jobs shared",
        "hours shared",
    ]
    return _table(rows, headers)


def amount(value: float) -> str:
    """Hours, kWh or GB: 1,234.6, 12.35, 0.0012, 0."""
    if value >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _table(rows: list[list[str]], headers: list[str]) -> str:
    sides = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, disable_numparse=True, colalign=sides)


def _words(
    plan: Plan, items: dict[Run, Item], total: Total, settings: Settings, device: Device
) -> list[str]:
    """The totals, and what they rest on, one sentence a line."""
    at_scale = f" at scale {next(iter(items)).scale}" if items else ""
    source = device.source
    if device.measured:
        share = total.measured / total.hours if total.hours else 0.0
        source = f"{share:.0%} {source}"
    hours, disk = amount(total.hours), amount(total.disk_bytes / 1e9)
    lines = [
        f"{total.jobs} run{'s' * (total.jobs != 1)}{at_scale}, a job each, about {hours} "
        f"{device.name} hours ({source}) and at most {disk} GB (checkpoints are deleted when a run "
        "ends)"
    ]
    if device.watts is None:
        lines.append(f"energy: the power of {device.name} is unknown; give it with --watts")
    else:
        energy = amount(total.hours * device.watts / 1000)
        lines.append(
            f"energy: about {energy} kWh, an estimate: those hours at {device.watts:g} W, "
            "the device alone, without hosts and cooling"
        )
    alone = {run: item.hours / item.devices for run, item in items.items()}
    chains = {run: sum(alone[stage] for stage in run.lineage) for run in items}
    if chains:
        longest = max(chains, key=chains.__getitem__)
        took = f"{amount(chains[longest])} hours"
        lines.append(f"the longest chain takes {took} on its recipes' devices: {longest}")
    finished = [run for run in items if plan.finished(run, settings.results)]
    if finished:
        hours = amount(sum(items[run].hours for run in finished))
        lines.append(f"of these, {len(finished)} are finished in {settings.results}, {hours} hours")
    left_out = dict.fromkeys(item.left_out for item in items.values() if item.left_out)
    lines.append(f"not counted: {'; '.join([*left_out, 'reading images and texts'])}")
    return lines
