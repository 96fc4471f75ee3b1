"""The training engine: equal results however it is cut up, killed or spread, and clear ends."""

import contextlib
import json
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import crate.training.loop
from crate.cli import main
from crate.errors import RunError
from crate.models.build import create_model
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import RunFolder, read_json, short_hash
from crate.runs import parse_path
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification
from crate.training.loop import Examples, Session, fit
from crate.weights import read_weights

ROOT = Path(__file__).parents[2]
CPU = Runtime(torch.device("cpu"), torch.float32, "test")

# A recipe with everything on that draws random numbers; 1,024 pictures, 16 updates an epoch.
RECIPE = {
    "task": "classification",
    "dataset": "fashion_mnist_tiny",
    "follows": ["start"],
    "image_size": 28,
    "epochs": 3,
    "batch_size": 64,
    "lr": 3e-3,
    "warmup_epochs": 0.5,
    "weight_decay": 0.1,
    "decay": "kernels",
    "clip_grad": 1.0,
    "drop_path": 0.1,
    "crop_area_min": 0.3,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "compute": {"autocast": "float32"},
}
ALPHA = "crate_alpha_base_patch32"
TINY = {"*": {"dim": 16, "depth": 2, "heads": 2, "patch_size": 14}}


pytestmark = pytest.mark.usefixtures("one_thread")


# --- the engine alone -----------------------------------------------------------


def small(**changes) -> Classification:
    keys = {"epochs": 2, "batch_size": 12, "crop_area_min": 1.0, "mixup": 0, "cutmix": 0}
    return Classification(**RECIPE | keys | changes)


class StopsAt(Exception):
    """Stands in for a killed process."""


def train(folder, recipe, *, seed=0, die_at=None, ends_at=None, poison=None, identity="id"):
    """Fit a small CRATE-alpha on fixed pictures, 8 updates an epoch; weights and history."""
    torch.manual_seed(0)
    shape = {"num_classes": 4, "image_size": 14, "dim": 8, "depth": 2, "heads": 2, "patch_size": 7}
    model = create_model(ALPHA, drop_path=recipe.drop_path, **shape)
    images = torch.randn(96, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(96) % 4

    def batches(first):
        for index in range(first, int(recipe.epochs * 8)):
            if index == die_at:
                raise StopsAt
            if index == ends_at:
                return
            part = torch.arange(12 * index, 12 * index + 12) % 96
            batch = images[part]
            yield (batch * float("nan") if index == poison else batch), labels[part]

    fit(
        model,
        recipe,
        lambda network, batch: F.cross_entropy(network(batch[0]).float(), batch[1]),
        Examples(batches, size=0, per_epoch=8),
        Session("test", RunFolder(folder), identity, seed, CPU),
    )
    return model.state_dict(), history(folder)


def history(folder: Path) -> list[dict]:
    """train.jsonl without what depends on the clock."""
    lines = [json.loads(text) for text in (folder / "train.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "epoch", "loss", "lr")} for line in lines]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def folders(tmp_path: Path, count: int) -> list[Path]:
    made = [tmp_path / str(k) for k in range(count)]
    for folder in made:
        folder.mkdir()
    return made


def test_micro_batches_change_nothing(tmp_path):
    one, other = folders(tmp_path, 2)
    recipe = small(drop_path=0.0)
    weights, lines = train(one, recipe)
    cut = recipe.model_copy(
        update={"compute": recipe.compute.model_copy(update={"micro_batch": 5})}
    )
    cut_weights, cut_lines = train(other, cut)  # 5 + 5 + 2: unequal parts are weighed
    for name, tensor in weights.items():
        torch.testing.assert_close(cut_weights[name], tensor, atol=2e-5, rtol=1e-4, msg=name)
    assert cut_lines[-1]["loss"] == pytest.approx(lines[-1]["loss"], abs=1e-5)


def test_seeds_decide_drop_path(tmp_path):
    first, again, other = folders(tmp_path, 3)
    recipe = small(drop_path=0.5)
    weights, lines = train(first, recipe)
    torch.rand(3)  # the state of the global generator must not matter
    assert equal(train(again, recipe)[0], weights)
    assert history(again) == lines
    assert not equal(train(other, recipe, seed=1)[0], weights)  # from the same start


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_resumed_between_two_log_lines_ends_the_same(tmp_path, optimizer):
    whole, cut = folders(tmp_path, 2)
    recipe = small(drop_path=0.3, optimizer=optimizer, epochs=3, compute={"checkpoint_seconds": 0})
    weights, lines = train(whole, recipe)
    assert [line["step"] for line in lines] == [20, 24]  # every LOG_EVERY updates, and the last
    for die_at in (7, 21, 22):  # 21: a line was written that must stay, with one loss after it
        with pytest.raises(StopsAt):
            train(cut, recipe, die_at=die_at)
    assert equal(train(cut, recipe)[0], weights)
    assert history(cut) == lines


def test_history_holds_the_mean_loss_and_the_rate(tmp_path, monkeypatch):
    every, each_two = folders(tmp_path, 2)
    monkeypatch.setattr(crate.training.loop, "LOG_EVERY", 1)
    losses = [line["loss"] for line in train(every, small())[1]]
    monkeypatch.setattr(crate.training.loop, "LOG_EVERY", 4)
    lines = train(each_two, small())[1]
    assert [line["step"] for line in lines] == [4, 8, 12, 16]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0]
    assert lines[0]["lr"] == 3e-3  # half an epoch of warm-up ends here
    for k, line in enumerate(lines):
        assert line["loss"] == pytest.approx(sum(losses[4 * k : 4 * k + 4]) / 4, abs=1e-6)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("checkpoint_seconds", [0, 30])
def test_a_loss_that_is_not_finite_names_its_update(tmp_path, checkpoint_seconds):
    recipe = small(compute={"checkpoint_seconds": checkpoint_seconds})
    told = r"the loss is nan at update 11 \(epoch 1\.25\)"
    with pytest.raises(RunError, match=told):
        train(tmp_path, recipe, poison=10)
    # and a checkpoint from before, if there is one, is not poisoned
    if checkpoint_seconds == 0:
        saved = torch.load(RunFolder(tmp_path).checkpoint("id"), weights_only=True)
        assert saved["done"] == 10
        assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_data_that_ends_early_is_told(tmp_path):
    with pytest.raises(RunError, match="the data ended at update 10 of 16"):
        train(tmp_path, small(), ends_at=10)


class Code:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_damaged_checkpoints_are_refused(tmp_path):
    recipe = small(compute={"checkpoint_seconds": 0})
    path, trap = RunFolder(tmp_path).checkpoint("id"), tmp_path / "executed"
    with pytest.raises(StopsAt):
        train(tmp_path, recipe, die_at=5)
    good = path.read_bytes()
    generator = random.Random(0)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    damaged = [b"", good[:100], good[: len(good) // 2], good[:-1], bytes(flipped), pickle.dumps(3)]
    damaged += [generator.randbytes(generator.randrange(1, 300)) for _ in range(20)]
    damaged.append(pickle.dumps(Code(trap)))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(RunError, match="damaged checkpoint") as caught:
            train(tmp_path, recipe)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    torch.save({"identity": "id", "done": Code(trap)}, path)  # whole, but with code in it
    with pytest.raises(RunError, match="damaged checkpoint") as caught:
        train(tmp_path, recipe)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    path.write_bytes(good)  # nothing else was the matter
    train(tmp_path, recipe)


def test_foreign_checkpoints_are_refused(tmp_path):
    recipe = small(compute={"checkpoint_seconds": 0})
    mine, theirs = (RunFolder(tmp_path).checkpoint(name) for name in ("mine", "theirs"))
    with pytest.raises(StopsAt):
        train(tmp_path, recipe, die_at=5, identity="theirs")
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(RunError, match="checkpoint of another run"):
        train(tmp_path, recipe, identity="mine")
    state = torch.load(theirs, weights_only=True) | {"identity": "mine"}
    for broken in (
        {**state, "model": {"head.weight": torch.ones(1)}},
        {**state, "optimizer": {"state": []}},
        {**state, "optimizer": None},
        {key: value for key, value in state.items() if key != "done"},
    ):
        torch.save(broken, mine)
        with pytest.raises(RunError, match="does not fit the model") as caught:
            train(tmp_path, recipe, identity="mine")
        assert "\n" not in str(caught.value)


# --- whole runs, in processes of their own -----------------------------------------------------


def write_experiments(folder: Path, **changes) -> Path:
    """An experiments folder with one step, `pretrain`, on embedded pictures."""
    path = folder / "experiments"
    contents = {
        "config.yaml": {"scale": "tiny"},
        "models.yaml": {},
        "scales/tiny.yaml": {"title": "tests", "models": TINY},
        "steps/pretrain.yaml": RECIPE | changes,
    }
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(yaml.safe_dump(content))
    return path


def run_folder(results: Path, model: str = ALPHA) -> Path:
    return results / "tiny" / "runs" / model / "seed0" / "pretrain"


def perform(experiments: Path, results: Path, model: str = ALPHA) -> Path:
    """Bring the run to its end in this process; its folder."""
    from crate.launch.run import perform, prepare

    plan = Plan(Experiments(experiments))
    folder = run_folder(results, model)
    with contextlib.redirect_stderr(sys.stdout):
        perform(prepare(str(folder), plan), plan.experiments.settings())
    return folder


def command(experiments: Path, results: Path, **environment: str) -> subprocess.Popen:
    """`python -m crate run …` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "crate", "run", str(run_folder(results))],
        cwd=ROOT,
        env=os.environ | {"CRATE_EXPERIMENTS": str(experiments), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str]:
    try:
        error = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    return process.returncode, error


LONG = {"epochs": 20}  # 320 updates: seconds, so that a signal can meet them


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The long run, done in one go and without a checkpoint on the way."""
    folder = tmp_path_factory.mktemp("whole")
    return perform(write_experiments(folder, **LONG), folder / "results")


def checkpoints(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in folder.glob("checkpoint-*.pt")]


def interrupt(process: subprocess.Popen, folder: Path, number: int, delay: float) -> None:
    """Send a signal some time after the run has saved a new checkpoint."""
    before, give_up = checkpoints(folder), time.monotonic() + 120
    while checkpoints(folder) == before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(number)


def assert_same_result(folder: Path, expected: Path) -> None:
    for name in ("metrics.json", "weights.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert history(folder) == history(expected)
    assert read_json(folder / "run.json")["status"] == "complete"
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in expected.iterdir()}  # nothing is left lying about


def test_killed_at_random_moments_ends_bit_for_bit_the_same(tmp_path, uninterrupted):
    experiments = write_experiments(tmp_path, **LONG, compute=SAVE_EACH_UPDATE)
    results = tmp_path / "results"
    folder = run_folder(results)
    reached = []
    for _ in range(3):
        process = command(experiments, results)
        interrupt(process, folder, signal.SIGKILL, random.uniform(0, 0.3))
        assert end(process)[0] == -signal.SIGKILL
        assert not (folder / "metrics.json").exists()
        (saved,) = folder.glob("checkpoint-*.pt")
        reached.append(torch.load(saved, weights_only=True)["done"])
    assert reached == sorted(set(reached))  # each start went on from the one before
    assert reached[-1] < 320
    process = command(experiments, results)
    code, error = end(process)
    assert code == 0, error
    assert_same_result(folder, uninterrupted)


SAVE_EACH_UPDATE = {"autocast": "float32", "checkpoint_seconds": 0}


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_goes_on(tmp_path, uninterrupted):
    each = write_experiments(tmp_path, **LONG, compute=SAVE_EACH_UPDATE)
    results = tmp_path / "results"
    folder = run_folder(results)
    process = command(each, results)
    interrupt(process, folder, signal.SIGTERM, 0.05)
    code, error = end(process)
    assert code == 1, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("failed: stopped by SIGTERM at update ")
    assert last.endswith("of 320; the next start resumes there")
    assert read_json(folder / "run.json")["status"] == "stopped"
    assert not (folder / "metrics.json").exists()
    perform(each, results)
    assert_same_result(folder, uninterrupted)


def start_ranks(experiments: Path, results: Path) -> list[subprocess.Popen]:
    """Two processes that train one run together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRATE_RANKS": "1"}
    return [
        command(experiments, results, RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in (0, 1)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    # Drop path is drawn by each rank for itself; all else must not see the number of ranks.
    compute = {"autocast": "float32", "micro_batch": 20}  # 32 pictures each: 20 + 12
    experiments = write_experiments(tmp_path, drop_path=0.0, compute=compute)
    alone = perform(experiments, tmp_path / "alone")
    ends = [end(process) for process in start_ranks(experiments, tmp_path / "ranks")]
    assert [code for code, _ in ends] == [0, 0], ends
    together = run_folder(tmp_path / "ranks")
    assert read_json(together / "run.json")["environment"]["processes"] == 2
    one, two = history(alone), history(together)
    assert [line["step"] for line in two] == [20, 40, 48]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
    weights = read_weights(together / "weights.safetensors")
    for name, tensor in read_weights(alone / "weights.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-3, rtol=1e-3, msg=name)
    metrics = [read_json(f / "metrics.json")["metrics"] for f in (alone, together)]
    assert metrics[0]["images"] == metrics[1]["images"] == 512
    assert metrics[1]["cross_entropy"] == pytest.approx(metrics[0]["cross_entropy"], abs=1e-3)
    # The first rank finds the run finished, and the other must hear of it, not wait.
    ends = [end(process) for process in start_ranks(experiments, tmp_path / "ranks")]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "already finished" in ends[0][1]


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_one_update(tmp_path):
    # drop path is drawn by each rank for itself
    experiments = write_experiments(tmp_path, **LONG, drop_path=0.0, compute=SAVE_EACH_UPDATE)
    alone = perform(experiments, tmp_path / "alone")
    ranks = start_ranks(experiments, tmp_path / "ranks")
    folder = run_folder(tmp_path / "ranks")
    interrupt(ranks[1], folder, signal.SIGUSR2, 0.05)
    ends = [end(process) for process in ranks]
    told = [text.strip().splitlines()[-1].removeprefix("failed: ") for _, text in ends]
    assert told[0] == told[1]
    assert told[0].startswith("stopped by SIGUSR2 at update ")
    assert read_json(folder / "run.json")["status"] == "stopped"
    ends = [end(process) for process in start_ranks(experiments, tmp_path / "ranks")]
    assert [code for code, _ in ends] == [0, 0], ends
    for a, b in zip(history(alone), history(folder), strict=True):
        assert b["step"] == a["step"]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-2)  # of 320 updates, float32


def refuse(capsys, monkeypatch, experiments: Path, results: Path) -> str:
    """Run the command in this process; the one line it fails with."""
    monkeypatch.setattr("crate.environment.EXPERIMENTS", experiments)
    code = main(["run", str(run_folder(results))])
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert all("images/s" in text for text in before), before  # the bar
    return line


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path, capsys, monkeypatch):
    experiments = write_experiments(tmp_path, lr=1e4, clip_grad=None, warmup_epochs=0)
    line = refuse(capsys, monkeypatch, experiments, tmp_path / "results")
    assert line.startswith("failed: the loss is nan at update ")
    folder = run_folder(tmp_path / "results")
    record = read_json(folder / "run.json")
    assert record["status"] == "failed"
    assert f"failed: {record['error']}" == line
    assert not (folder / "metrics.json").exists()


def test_a_damaged_checkpoint_fails_the_run_and_stays(tmp_path, capsys, monkeypatch):
    experiments = write_experiments(tmp_path)
    folder = run_folder(tmp_path / "results")
    plan = Plan(Experiments(experiments))
    identity = short_hash(plan.resolve(parse_path(str(folder))[0]).identity)  # no parent
    folder.mkdir(parents=True)
    checkpoint = folder / f"checkpoint-{identity}.pt"
    checkpoint.write_bytes(b"garbage")
    line = refuse(capsys, monkeypatch, experiments, tmp_path / "results")
    assert line.startswith(f"failed: {checkpoint}: damaged checkpoint (")
    assert line.endswith("delete it to start over")
    assert checkpoint.read_bytes() == b"garbage"
    assert read_json(folder / "run.json")["status"] == "failed"


@contextlib.contextmanager
def largest_file(size: int):
    """Writing more than `size` bytes to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("epochs", "name"), [(1, "checkpoint-"), (0, "weights.safetensors")])
def test_a_full_disk_fails_the_run_in_one_line(tmp_path, capsys, monkeypatch, epochs, name):
    experiments = write_experiments(tmp_path, epochs=epochs)
    with largest_file(12_000):
        line = refuse(capsys, monkeypatch, experiments, tmp_path / "results")
    folder = run_folder(tmp_path / "results")
    assert line.startswith(f"failed: {folder}/{name}")
    assert "cannot be written" in line
    assert "File too large" in line
    assert read_json(folder / "run.json")["status"] == "failed"
    assert {p.name for p in folder.iterdir()} <= {
        "run.json", "config.yaml", "train.jsonl", "log.txt", ".lock"
    }  # fmt: skip


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    experiments = write_experiments(tmp_path, epochs=0)
    folder = run_folder(tmp_path / "results")
    folder.mkdir(parents=True)
    (folder / "log.txt").symlink_to("/dev/full")
    perform(experiments, tmp_path / "results")
    assert read_json(folder / "run.json")["status"] == "complete"
