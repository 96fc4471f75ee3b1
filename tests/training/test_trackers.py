"""Experiment trackers: what they show is train.jsonl, whatever happens to a run or to them."""

import json
import sys
import time
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import crate.training.loop
from crate import cli
from crate.launch.run import perform, prepare
from crate.planning.settings import Settings
from crate.records import RunFolder, read_json
from crate.training.trackers import follow

RUN = "results/smoke/runs/crate_alpha_base_patch32/seed0/imagenet21k"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def train(plan, monkeypatch):
    """`train(log)` trains 32 updates of a small model, each a line; `dies` after so many."""
    monkeypatch.setattr(crate.training.loop, "LOG_EVERY", 1)
    update, save = crate.training.loop.update, crate.training.loop._save_checkpoint

    def train(log: str, dies: int | None = None) -> Path:
        left = iter(range(dies)) if dies else None

        def dying(*words):
            if left is not None and next(left, None) is None:
                raise MemoryError("killed")
            return update(*words)

        # every update is due; kept is the one after ten, so that lines beyond it are lost
        keep = lambda path, *rest: save(path, *rest) if rest[2] == 10 else None  # noqa: E731
        monkeypatch.setattr(crate.training.loop, "update", dying)
        monkeypatch.setattr(crate.training.loop, "_save_checkpoint", keep)
        settings = Settings(scale="smoke", log=log)
        changes = {"compute": {"checkpoint_seconds": 0.0}}
        trial = RUN.replace("/runs/", "/trials/t/runs/")
        perform(prepare(trial, plan, overrides=changes), settings)
        return Path(trial)

    return train


def history(folder: Path) -> dict[str, list[tuple]]:
    """Key → (update, value) of train.jsonl."""
    found: dict[str, list[tuple]] = {}
    for text in (folder / "train.jsonl").read_text().splitlines():
        line = json.loads(text)
        for key in line.keys() - {"step"}:
            found.setdefault(key, []).append((line["step"], pytest.approx(line[key], rel=1e-6)))
    return found


def shown(reader: EventAccumulator) -> dict[str, list[tuple]]:
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


def test_event_files_are_train_jsonl(train):
    folder = train("tensorboard")
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    assert len(history(folder)["loss"]) == 32
    assert shown(reader) == history(folder)
    times = [event.wall_time for event in reader.Scalars("seconds")]
    seconds = [event.value for event in reader.Scalars("seconds")]
    assert times[-1] - times[0] == pytest.approx(seconds[-1] - seconds[0], abs=1e-3)


def test_a_resumed_run_shows_no_update_twice(train):
    folder = Path(RUN.replace("/runs/", "/trials/t/runs/"))
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    with pytest.raises(Exception, match="killed"):
        train("tensorboard", dies=14)  # its lines 11 to 14 are trained again
    assert [step for step, _ in shown(reader)["loss"]] == list(range(1, 15))
    train("tensorboard")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    assert [step for step, _ in history(folder)["loss"]] == list(range(1, 33))
    assert shown(reader) == history(folder)  # open all the time
    assert reader.Scalars("loss")[-1].wall_time < time.time()
    assert shown(EventAccumulator(str(folder), size_guidance={"scalars": 0})) == history(folder)


def test_a_run_that_is_followed_from_the_middle_shows_all(train):
    with pytest.raises(Exception, match="killed"):
        train("none", dies=14)
    folder = train("tensorboard")
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    assert len(shown(reader)["loss"]) == 32
    assert shown(reader) == history(folder)


def test_a_tracker_decides_nothing(train, plan):
    folder = train("tensorboard")
    weights, record = (folder / "weights.safetensors").read_bytes(), read_json(folder / "run.json")
    lines = [(step, value.expected) for step, value in history(folder)["loss"]]
    for file in folder.iterdir():
        file.unlink()
    assert train("none") == folder
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert read_json(folder / "run.json")["identity"] == record["identity"]
    assert [(step, value.expected) for step, value in history(folder)["loss"]] == lines
    assert not list(folder.glob("events*"))


@pytest.fixture
def fails(monkeypatch):
    """A tracker whose file closes at the fifth line."""
    from crate.training.trackers import TensorBoard

    add = TensorBoard.add
    monkeypatch.setattr(
        TensorBoard,
        "add",
        lambda self, step, values: self.file.close() if step == 5 else add(self, step, values),
    )


def test_a_tracker_that_fails_never_fails_a_run(train, fails, capsys):
    folder = train("tensorboard")
    assert read_json(folder / "run.json")["status"] == "complete"
    assert len(history(folder)["loss"]) == 32
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told == ["warning: log=tensorboard failed and is off: write to closed file"]


# --- Weights & Biases, by a module that stands in for it ----------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """A `wandb` that keeps what it is told; `server` has what each id has logged."""
    module = types.ModuleType("wandb")
    module.server, module.calls, module.offline = {}, [], False

    class Run:
        def __init__(self, **words):
            module.calls.append(words)
            self.lines = module.server.setdefault(words["id"], [])
            self.offline = module.offline
            self.step = self.lines[-1][0] + 1 if self.lines and not self.offline else 0
            self.summary, self.code = {}, None
            module.run = self

        def log(self, values, step):
            assert not self.lines or step > self.lines[-1][0], "wandb drops such a line"
            self.lines.append((step, values))

        def finish(self, exit_code):
            self.code = exit_code

    module.init = Run
    module.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_goes_on_with_a_resumed_run(train, wandb):
    with pytest.raises(Exception, match="killed"):
        train("wandb", dies=14)
    assert wandb.run.code == 1
    folder = train("wandb")
    ((_, lines),) = wandb.server.items()
    assert [step for step, _ in lines] == list(range(1, 33))
    losses = [(step, values["loss"]) for step, values in lines]
    assert losses == history(folder)["loss"]
    metrics = read_json(folder / "metrics.json")["metrics"]
    assert (wandb.run.summary, wandb.run.code) == (metrics, 0)
    first, second = wandb.calls
    assert first["id"] == second["id"]
    assert first["name"] == "crate_alpha_base_patch32 seed0 imagenet21k"
    assert first["config"]["config"] == read_json(folder / "run.json")["config"]


def test_wandb_offline_cannot_be_resumed(train, wandb):
    wandb.offline = True
    with pytest.raises(Exception, match="killed"):
        train("wandb", dies=14)
    train("wandb")
    assert [len(lines) for lines in wandb.server.values()] == [14, 32]


def test_training_that_begins_anew_is_a_run_of_its_own(tmp_path, wandb):
    folder = RunFolder(tmp_path)
    for _ in range(2):
        folder.history.unlink(missing_ok=True)
        with follow("wandb", folder, {"run": "a", "scale": "smoke"}):
            for step in (20, 40):
                folder.append({"step": step, "loss": 1.0})
    assert [[step for step, _ in lines] for lines in wandb.server.values()] == [[20, 40]] * 2
    folder.append({"step": 60, "loss": 1.0})  # nobody listens any more
    assert len(wandb.calls) == 2


# --- asked for and missing ----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "launch"])
def test_a_missing_package_is_told_before_anything_runs(folder, monkeypatch, capsys, command):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.syspath_prepend(folder.parent)
    (folder.parent / "wandb").mkdir()  # what wandb writes into a working directory is no package
    words = [command, RUN, "--config", "scale=smoke", "log=wandb"]
    if command == "launch":
        (folder.parent / "site.yaml").write_text("launcher: submitit-local\n")
        words[2:2] = ["--configfile", "site.yaml"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err == (
        "error: log=wandb: the package wandb is not installed; "
        "'python -m pip install wandb' adds it\n"
    )
    assert not Path("results").exists()
    assert cli.main(["run", RUN, "--config", "log=tensorbord"]) == 2
    assert "log: 'tensorbord' should be 'none', 'tensorboard' or 'wandb'" in capsys.readouterr().err
