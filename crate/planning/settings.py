"""The settings of a command: scale, seeds, folders, and the site (cluster) that runs it."""

import re
from typing import Any, Literal

import pydantic

from crate.schema import Strict

# The environment variable in which Snakemake's process passes its settings on.
SETTINGS_VARIABLE = "CRATE_SETTINGS"


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
    sbatch: dict[str, str | int | bool] = {}
    setup: list[str] = []
    python: str = ""
    max_hours: pydantic.PositiveFloat = 24.0
    signal_seconds: pydantic.PositiveInt = 120
    max_jobs: pydantic.PositiveInt = 64
    pack: pydantic.PositiveInt = 1
    pack_hours: pydantic.PositiveFloat = 0.25
    scratch: str = ""
    poll_seconds: pydantic.PositiveFloat = 15.0
    on_interrupt: Literal["cancel", "leave"] = "cancel"

    @pydantic.field_validator("partition", "account", "qos", mode="before")
    @classmethod
    def _accept_numbers(cls, value: Any) -> Any:
        """Accept 4711 as the name of an account."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @pydantic.field_validator("max_hours", "pack_hours", "poll_seconds", mode="before")
    @classmethod
    def _accept_whole(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Settings(Site):
    """Keys of `experiments/config.yaml`, of a site's file, and of `--config key=value`."""

    scale: str = "mini"
    seeds: list[pydantic.NonNegativeInt] = [0]
    data_root: str = "data"  # real data sets, one folder each
    results: str = "results"  # where results/<scale>/ is written
    frozen: bool = False  # use results in results/published instead of running what is there
    log: Literal["none", "tensorboard", "wandb"] = "none"  # the tracker that shows training live

    @pydantic.field_validator("frozen", "memory", mode="before")
    @classmethod
    def _parse_switch(cls, value: Any) -> Any:
        """Accept the text "true": Snakemake passes command-line values on as text."""
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value

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
                match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
                if not match:
                    raise ValueError(f"'{part}' is not a seed; write whole numbers such as 0,1,2")
                first, last = int(match[1]), int(match[2] or match[1])
                seeds.extend(range(first, last + 1))
            value = seeds
        if isinstance(value, list) and not value:
            raise ValueError("at least one seed is needed, such as seeds=0")
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            raise ValueError(f"a seed is named twice in {value}")
        return value
