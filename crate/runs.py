"""Runs: a model, a seed and a chain of stages; and the folder that spells them.

    <results>/<scale>/runs/<model>/seed<k>/<stage>/<stage>/…/metrics.json

A run starts from the weights of its parent, the run of the parent folder. If its chain begins with
`from-<model>-<stage>`, the first parent is that run of another model. A stage is a step, perhaps
with values in place of its recipe's: `imagenet1k@lr=0.008` (`planning/variants.py`). Tuning trials
are in `<results>/<scale>/trials/<trial>/runs/…`; only their last stage is a trial.
"""

import dataclasses
import os
import re
from pathlib import Path

from crate.errors import UsageError

FROM = re.compile(r"from-(?P<model>[^-/]+)-(?P<step>[^-/@]+(?:@[^/]+)?)")


def recipe_of(stage: str) -> str:
    """The recipe of a stage, with its values: the stage itself, or what follows `from-<model>-`."""
    origin = FROM.fullmatch(stage)
    return origin["step"] if origin else stage


def step_of(stage: str) -> str:
    """The step of a stage: a file of `experiments/steps/`."""
    return recipe_of(stage).partition("@")[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: scale, model, seed and chain of stages; `trial` names a tuning trial."""

    scale: str
    model: str
    seed: int
    chain: tuple[str, ...]
    trial: str | None = None

    @property
    def stage(self) -> str:
        return self.chain[-1]

    @property
    def parent(self) -> "Run | None":
        """The run whose weights this one starts from, never a trial; None at a chain's start."""
        *before, _ = self.chain
        if not before:
            return None
        origin = FROM.fullmatch(before[-1])
        if origin and len(before) == 1:
            return Run(self.scale, origin["model"], self.seed, (origin["step"],))
        return Run(self.scale, self.model, self.seed, tuple(before))

    @property
    def ancestors(self) -> "list[Run]":
        """The runs of the chain, from the first to the parent."""
        parent = self.parent
        return [] if parent is None else parent.lineage

    @property
    def lineage(self) -> "list[Run]":
        """The runs of the chain, from the first to this one."""
        return [*self.ancestors, self]

    def folder(self, results: str | Path) -> Path:
        base = Path(results) / self.scale
        if self.trial is not None:
            base = base / "trials" / self.trial
        return base / "runs" / self.model / f"seed{self.seed}" / Path(*self.chain)

    def __str__(self) -> str:
        return f"{self.model} seed{self.seed} {'/'.join(self.chain)}"


PATH = re.compile(
    r"(?P<results>.*?)/?(?P<scale>[^/]+)/(?:trials/(?P<trial>[^/]+)/)?runs/(?P<model>[^/]+)"
    r"/seed(?P<seed>[^/]+)/(?P<chain>.+?)(?:/metrics\.json)?/?"
)


def parse_path(path: str) -> tuple[Run, str]:
    """The run and the results folder that a path names. Raises `UsageError` if it names none."""
    match = PATH.fullmatch(path)
    if not match:
        raise UsageError(
            f"{path}: not the path of a run; expected results/<scale>/runs/<model>/seed<k>/<step>/…"
        )
    if not re.fullmatch(r"[0-9]{1,10}", match["seed"]):
        raise UsageError(
            f"{path:.200}: the seed '{match['seed']:.20}' is not a whole number; expected seed0"
        )
    if max(len(os.fsencode(part)) for part in path.split("/")) > 255:
        raise UsageError(f"{path:.80}…: a name of more than 255 bytes cannot be a folder")
    chain = tuple(part for part in match["chain"].split("/") if part)  # a//b is a/b
    run = Run(match["scale"], match["model"], int(match["seed"]), chain, match["trial"])
    return run, match["results"] or "."
