"""The settings of a command: scale, seeds, folders, and the site (cluster) that runs it."""

import os
import re
from typing import Annotated, Any, Literal

import pydantic

from crate.schema import Strict
from crate.sources import expand_path

# The environment variable in which Snakemake's process passes its settings on.
SETTINGS_VARIABLE = "CRATE_SETTINGS"

MOST_HOURS = 10_000  # over a year
LARGEST_SEED, MOST_SEEDS = 2**32 - 1, 1000


class Site(Strict):
    """Where runs are executed; not part of any identity. `slurm/site.yaml` explains each key."""

    launcher: Literal["local", "slurm", "submitit-local"] = "local"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str = ""
    memory: bool = True
    sbatch: dict[str, str | bool | None] = {}  # true: a bare flag; false, null: not this option
    setup: list[str] = []
    python: str = ""
    max_hours: float = pydantic.Field(24.0, gt=0, le=MOST_HOURS)
    signal_seconds: int = pydantic.Field(120, gt=0, le=86_400)
    max_jobs: int = pydantic.Field(64, gt=0, le=100_000)
    pack: int = pydantic.Field(1, gt=0, le=1000)
    pack_hours: float = pydantic.Field(0.25, gt=0, le=MOST_HOURS)
    scratch: str = ""
    poll_seconds: float = pydantic.Field(15.0, gt=0, le=86_400)
    on_interrupt: Literal["cancel", "leave"] = "cancel"

    @pydantic.field_validator("scratch")
    @classmethod
    def _expand_scratch(cls, path: str) -> str:
        return os.path.abspath(expand_path(path)) if path else path

    @pydantic.field_validator("python")
    @classmethod
    def _expand_python(cls, path: str) -> str:
        """A path is made absolute; a command, such as python3.11, stays one."""
        return os.path.abspath(expand_path(path)) if path.startswith(("/", "~", "$", ".")) else path


class Settings(Site):
    """Keys of `experiments/config.yaml`, of a site's file, and of `--config key=value`."""

    scale: str = "mini"
    seeds: list[Annotated[int, pydantic.Field(ge=0, le=LARGEST_SEED)]] = [0]
    data_root: str = "data"  # real data sets, one folder each
    results: str = "results"  # where results/<scale>/ is written
    rows: Literal["all", "released"] = "all"  # of tables: released: only those of official weights
    set: dict[str, dict[str, Any]] = {}  # step → key → value or list: further rows (variants.py)
    frozen: bool = False  # use results in results/published instead of running what is there
    plugins: list[str] = []  # Python files with operators and data sets of one's own
    log: Literal["none", "tensorboard", "wandb"] = "none"  # the tracker that shows training live

    @pydantic.field_validator("data_root", "results")
    @classmethod
    def _expand(cls, path: str) -> str:
        """A path below the suite's root, where every process works, stays relative.

        Snakemake compares it with targets, and tables that quote it are the same everywhere.
        """
        return expand_path(path)

    @pydantic.field_validator("plugins", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @pydantic.field_validator("plugins")
    @classmethod
    def _expand_each(cls, paths: list[str]) -> list[str]:
        return [expand_path(path) for path in paths]

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _parse_seeds(cls, value: Any) -> Any:
        """Accept `0`, `[0, 1]`, and from the command line `"0,1,2"` and `"0-4"`."""
        if isinstance(value, bool):
            raise ValueError("seeds are whole numbers from 0, such as 0,1,2")
        if isinstance(value, int):
            return [value]
        if isinstance(value, str):
            seeds: list[int] = []
            for part in value.split(","):
                match = re.fullmatch(r"\s*([0-9]{1,10})\s*(?:-\s*([0-9]{1,10})\s*)?", part)
                if not match:
                    raise ValueError(
                        f"'{part[:40]}' is not a seed; write whole numbers such as 0,1,2, "
                        f"at most {LARGEST_SEED}"
                    )
                first, last = int(match[1]), int(match[2] or match[1])
                if last - first >= MOST_SEEDS:
                    raise ValueError(f"'{part}' are more than {MOST_SEEDS:,} seeds")
                seeds.extend(range(first, last + 1))
            value = seeds
        if isinstance(value, list) and not value:
            raise ValueError("at least one seed is needed, such as seeds=0")
        if isinstance(value, list) and len(value) > MOST_SEEDS:
            raise ValueError(f"{len(value):,} seeds are more than {MOST_SEEDS:,}")
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            twice = next(seed for seed in value if value.count(seed) > 1)
            raise ValueError(f"the seed {twice!s:.40} is named twice")
        return value
