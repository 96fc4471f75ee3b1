"""The workflow as a user meets it: a copy of the suite, Snakemake in a process of its own.

One whole smoke DAG with real training is run once; most tests then ask a dry run what it would do.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from suite import ROOT, copy_suite, environment

from crate.launch.run import perform, prepare
from crate.planning.loader import Experiments
from crate.planning.plan import Plan

TABLE = "results/smoke/tables/ablation"
PLAIN = "results/smoke/runs/crate_base_patch32_plain/seed0/imagenet21k"


def command(*words: str) -> list[str]:
    """`snakemake … --config scale=smoke` unless the words have a --config of their own."""
    extra = [] if "--config" in words else ["--config", "scale=smoke"]
    binary = Path(sys.executable).parent / "snakemake"
    return [str(binary), "--cores", "2", *words, *extra]


def snakemake(suite: Path, *words: str, timeout: int = 600) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words),
        cwd=suite,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def planned(suite: Path, *words: str) -> list[str]:
    """What a dry run would start, by the messages of its jobs."""
    done = snakemake(suite, "-np", *words)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^Job \d+: (.+)$", done.stderr + done.stdout, flags=re.M)
    assert found or "Nothing to be done" in done.stderr + done.stdout
    return sorted(set(found))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A suite in which the ablation's smoke DAG ran to its end."""
    suite = copy_suite(tmp_path_factory.mktemp("suite"))
    done = snakemake(suite, "table_ablation", "figure_ablation")
    assert done.returncode == 0, done.stderr
    return suite


@pytest.fixture
def suite(finished):
    """The finished suite; edits are taken back afterwards."""
    saved = finished.parent / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    for name in ("crate", "experiments"):
        shutil.copytree(finished / name, saved / name, symlinks=True)
    yield finished
    for path in saved.rglob("*"):
        target = finished / path.relative_to(saved)
        mine = path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
        if mine and target.read_bytes() != path.read_bytes():
            shutil.copy(path, target)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old!r} is no longer in {path.name}"
    path.write_text(text.replace(old, new, 1))


def test_smoke_dag_makes_real_tables_from_real_runs(finished):
    runs = sorted((finished / "results/smoke/runs").rglob("metrics.json"))
    assert len(runs) == 10  # four models × two steps, and the control's two
    for path in runs:
        metrics = json.loads(path.read_text())
        assert set(metrics) == {"metrics", "weights_sha256"}
        assert metrics["metrics"]["images"] == 512
        record = json.loads((path.parent / "run.json").read_text())
        assert record["status"] == "complete"
        assert record["result"] == metrics
    history = [json.loads(x) for x in (finished / PLAIN / "train.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == 2 * (1024 // 64)  # epochs × updates of an epoch
    assert history[-1]["loss"] < 2.2 < history[0]["loss"] + 0.3  # it learns: ln 10 = 2.30

    printed = (finished / f"{TABLE}.md").read_text()
    for row in ("CRATE", "+ overcomplete", "+ decoupled", "+ residual (CRATE-alpha)"):
        assert f"| {row} " in printed
    for number in ("68.5", "73.8", "75.8", "76.5"):
        assert number in printed
    assert "Fashion-MNIST (1,024 training images) stands in for imagenet21k" in printed
    assert "Kendall" in printed
    assert "Δ" not in printed
    shown = json.loads((finished / PLAIN / "metrics.json").read_text())["metrics"]["top1"]
    assert f"{shown:.1f}" in printed
    assert r"\toprule" in (finished / f"{TABLE}.tex").read_text()
    for suffix in ("pdf", "svg", "png"):
        assert (finished / f"results/smoke/figures/ablation.{suffix}").stat().st_size > 5000


def test_nothing_is_left_to_do(suite):
    assert planned(suite, "table_ablation", "figure_ablation") == []


def test_rewording_moving_and_new_defaults_rerun_nothing(suite):
    crate = suite / "crate"
    code = crate / "layers/sparse_coding.py"
    code.write_text("# a comment\n\n" + code.read_text())
    edit(crate / "training/loop.py", '"""The training loop', '"""The loop')
    edit(crate / "training/loop.py", "lower lr or check the data", "try a lower lr")  # an error
    edit(
        crate / "training/optim.py",
        "def parameter_groups(model: nn.Module",
        "def parameter_groups(model: object",
    )
    edit(crate / "recipes.py", "    flip: bool = True", "    flip: bool = True\n    n: int = 3")
    edit(crate / "models/spec.py", "causal: bool = False", "causal: bool = False\n    new: int = 1")
    edit(suite / "experiments/scales/smoke.yaml", "datasets:", "# a comment\ndatasets:")
    # a function goes to another module
    optim = (crate / "training/optim.py").read_text()
    function = optim[optim.index("def learning_rate") :]
    (crate / "training/optim.py").write_text(optim.replace(function, ""))
    head = "import math\n\nfrom crate.recipes import Training\n\n\n"
    (crate / "training/schedule.py").write_text(head + function)
    edit(
        crate / "training/loop.py",
        "import learning_rate, make_optimizer",
        "import make_optimizer\nfrom crate.training.schedule import learning_rate",
    )
    assert planned(suite, "table_ablation", "figure_ablation") == []


def test_editing_an_operator_reruns_what_uses_it(suite):
    edit(
        suite / "crate/layers/sparse_coding.py",
        "beta=eta, alpha=-eta)",
        "beta=eta, alpha=-1.0 * eta)",
    )
    jobs = planned(suite, "table_ablation")
    plain = "crate_base_patch32_plain seed0"
    expected = ["metrics of table ablation", "table ablation"]
    expected += [f"{plain} imagenet21k", f"{plain} imagenet21k/imagenet1k"]
    assert jobs == sorted(expected)


def test_changing_a_recipe_reruns_the_step_and_what_follows(suite):
    edit(suite / "experiments/scales/smoke.yaml", "0.25, lr: 1e-3", "0.25, lr: 2e-3")
    jobs = [job for job in planned(suite, "table_ablation") if "seed" in job]
    assert len(jobs) == 4  # the fine-tunings; the control is not trained, so its rate is nothing
    assert all("imagenet1k" in job for job in jobs)


def test_a_row_of_ones_own_adds_its_runs_only(suite):
    edit(
        suite / "experiments/tables/ablation.yaml",
        "  - label: CRATE-alpha, untrained",
        "  - {label: ratio 2, model: crate_alpha_base_patch32_ratio2}\n"
        "  - label: CRATE-alpha, untrained",
    )
    jobs = [job for job in planned(suite, "table_ablation") if "seed" in job]
    own = "crate_alpha_base_patch32_ratio2 seed0"
    assert jobs == [f"{own} imagenet21k", f"{own} imagenet21k/imagenet1k"]


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_dry_run_of_all(suite, scale):
    jobs = planned(suite, "all", "--config", f"scale={scale}", "seeds=5,6")
    for seed in (5, 6):  # each run of all tables once
        assert len([job for job in jobs if f" seed{seed} " in job]) == 308


def test_a_long_dry_run_is_counted_by_kind(suite):
    done = snakemake(suite, "-n", "all", "--config", "scale=mini")
    assert not re.search(r"^Job \d+", done.stderr + done.stdout, flags=re.M)
    *table, last = done.stderr.splitlines()[-15:]
    assert last == "308 runs to do, 0 finished; snakemake -np lists them"
    counts = [int(line.split()[1]) for line in table if re.match(r"[a-z_]+ +\d+ +\d+$", line)]
    assert sum(counts) == 308


def test_a_table_is_a_target_by_its_name_alone(suite):
    assert planned(suite, "ablation") == planned(suite, "table_ablation") == []
    # a kind of run has the same name as this table
    assert planned(suite, "segmentation") == planned(suite, "table_segmentation") != []


@pytest.mark.slow
def test_a_table_made_by_hand_is_made_again(suite):
    before = (suite / f"{TABLE}.md").read_text()
    scale = suite / "experiments/scales/smoke.yaml"
    written = scale.read_text()
    edit(scale, "title: smoke scale", "title: another scale")
    crate = [sys.executable, "-m", "crate", "tables", "ablation", "--config", "scale=smoke"]
    subprocess.run(crate, cwd=suite, env=environment(), check=True)
    assert "another scale" in (suite / f"{TABLE}.md").read_text()
    scale.write_text(written)  # what Snakemake recorded holds again, but not for this file
    assert snakemake(suite, "table_ablation").returncode == 0
    assert (suite / f"{TABLE}.md").read_text() == before


def test_a_single_run_is_a_target(suite):
    path = "results/smoke/runs/vit_base_patch32/seed3/imagenet21k/imagenet1k/metrics.json"
    assert planned(suite, path) == [
        "vit_base_patch32 seed3 imagenet21k",
        "vit_base_patch32 seed3 imagenet21k/imagenet1k",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table_ablatoin"], "did you mean 'table_ablation'?"),
        (["table_ablation", "--config", "scale=mni"], "did you mean 'mini'?"),
        (["table_ablation", "--config", "sede=1"], "did you mean 'seeds'?"),
        (["table_ablation", "--config", "seeds=one"], "'one' is not a seed"),
        ([f"{PLAIN.replace('plain', 'plane')}/metrics.json"], "crate_base_patch32_plain"),
        ([f"{PLAIN}k/metrics.json"], "did you mean 'imagenet21k'?"),
        ([f"{PLAIN}/imagenet21k/metrics.json"], "cannot follow 'imagenet21k'"),
        ([f"{PLAIN.replace('seed0', 'seedx')}/metrics.json"], "the seed 'x' is not a whole number"),
        ([f"{PLAIN}/metrics.jsn"], "the run's result is"),
        (
            ["results/smoke/tables/ablatoin.md"],
            "did you mean 'results/smoke/tables/ablation.md'?",
        ),
        (
            ["table_ablation", "--config", "scale=paper", "data_root=nowhere"],
            "ImageNet-1K is not at nowhere/imagenet1k/train",
        ),
    ],
)
def test_bad_requests_end_in_one_line_and_status_2(suite, words, says):
    done = snakemake(suite, *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("steps/imagenet21k.yaml", "epochs: 91", "epoch: 91", "did you mean 'epochs'?"),
        ("steps/imagenet21k.yaml", "epochs: 91", "epochs: many", "epochs: 'many' should be"),
        ("steps/imagenet21k.yaml", "dataset: imagenet21k", "dataset: imagenet22k", "imagenet21k"),
        ("scales/smoke.yaml", "fashion_mnist_tiny", "fashion_mnist_tin", "fashion_mnist_tiny"),
        ("tables/ablation.yaml", "_overcomplete_decoupled", "_overcomplete_dc", "decoupled"),
    ],
)
def test_a_mistake_in_experiments_is_named(suite, file, old, new, says):
    edit(suite / "experiments" / file, old, new)
    done = snakemake(suite, "-n", "table_ablation")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_force_trains_again_and_a_lost_result_is_restored(suite):
    path = suite / PLAIN / "imagenet1k/metrics.json"
    before = path.read_bytes()
    history = path.parent / "train.jsonl"

    path.unlink()  # as Snakemake does with outputs it did not see finished
    done = snakemake(suite, str(path.relative_to(suite)))
    assert "already finished" in done.stderr
    assert path.read_bytes() == before

    trained = history.stat().st_mtime_ns
    done = snakemake(suite, "--force", str(path.relative_to(suite)))
    assert done.returncode == 0
    assert history.stat().st_mtime_ns > trained
    assert path.read_bytes() == before  # the same seeds give the same weights, bit for bit


@pytest.mark.slow
def test_an_old_result_that_snakemake_did_not_record_is_made_again(finished, tmp_path):
    suite = copy_suite(tmp_path, finished)
    runs = "results/smoke/runs/crate_base_patch32_plain"
    shutil.copytree(finished / runs, suite / runs)  # without .snakemake: no record of them
    target = f"{PLAIN}/imagenet1k/metrics.json"
    assert planned(suite, target) == []

    edit(suite / "experiments/scales/smoke.yaml", "0.25, lr: 1e-3", "0.25, lr: 2e-3")
    assert "other recipe or code" in snakemake(suite, "-n", target).stderr
    parent = (suite / PLAIN / "run.json").read_bytes()
    assert snakemake(suite, target).returncode == 0
    record = json.loads((suite / target).with_name("run.json").read_text())
    assert record["config"]["step"]["lr"] == 2e-3
    assert (suite / PLAIN / "run.json").read_bytes() == parent


def test_a_second_driver_is_refused(suite):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from crate.records import lock\n"
            "with lock(Path('results/smoke/.driver.lock')) as held:\n"
            "    print(held, flush=True); time.sleep(60)",
        ],
        cwd=suite,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "True\n"
        done = snakemake(suite, "table_ablation")
        assert done.returncode == 2
        assert f"another snakemake (process {holder.pid}) is at work" in done.stderr
    finally:
        holder.kill()
        holder.wait()
    assert snakemake(suite, "table_ablation").returncode == 0  # a dead driver's lock is no lock


@pytest.mark.slow
def test_a_failed_run_leaves_the_others_and_a_marked_table(finished, tmp_path):
    suite = copy_suite(tmp_path, finished)
    to_do = shutil.ignore_patterns("crate_base_patch32_plain", "crate_alpha_base_patch32")
    shutil.copytree(finished / "results/smoke/runs", suite / "results/smoke/runs", ignore=to_do)
    # a run that cannot start: garbage where its checkpoint would be
    identity = json.loads((finished / PLAIN / "run.json").read_text())["identity"]
    broken = suite / PLAIN / f"checkpoint-{identity}.pt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"garbage")

    done = snakemake(suite, "table_ablation")
    assert done.returncode == 1
    assert "damaged checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (suite / PLAIN / "metrics.json").exists()
    assert len(list((suite / "results/smoke/runs").rglob("metrics.json"))) == 8
    *_, counts, failed, log, go_on, words = done.stderr.splitlines()
    assert counts == "8 of 10 runs are finished, 1 failed or were stopped, 1 did not begin:"
    assert "failed: crate_base_patch32_plain seed0 imagenet21k: " in failed
    assert "damaged checkpoint" in failed
    assert log.endswith(f"{PLAIN}/log.txt")
    assert go_on.startswith("to go on")
    assert words.strip() == "snakemake --cores 2 table_ablation --config scale=smoke"
    printed = (suite / f"{TABLE}.md").read_text()
    assert "✗ the run failed." in printed
    assert "… not run yet." in printed

    broken.unlink()
    assert snakemake(suite, "table_ablation").returncode == 0
    assert (suite / f"{TABLE}.md").read_bytes() == (finished / f"{TABLE}.md").read_bytes()


@pytest.mark.slow
def test_killed_driver_and_orphaned_trainers_end_the_same(finished, tmp_path):
    suite = copy_suite(tmp_path, finished)
    with (tmp_path / "killed.log").open("w") as log:
        driver = subprocess.Popen(
            command("table_ablation"), cwd=suite, env=environment(), stdout=log, stderr=log
        )
        for _ in range(2):  # at the first trainer, and again when the second driver is at work
            deadline = time.monotonic() + 120
            seen = len(list(suite.glob("results/smoke/runs/**/run.json")))
            while len(list(suite.glob("results/smoke/runs/**/run.json"))) <= seen:
                assert time.monotonic() < deadline
                assert driver.poll() is None
                time.sleep(0.02)
            second = snakemake(suite, "table_ablation")
            assert second.returncode == 2
            assert f"another snakemake (process {driver.pid}) is at work" in second.stderr
            driver.send_signal(signal.SIGKILL)  # its trainers go on without it
            driver.wait()
            driver = subprocess.Popen(
                command("table_ablation"), cwd=suite, env=environment(), stdout=log, stderr=log
            )
        assert driver.wait(timeout=600) == 0, (tmp_path / "killed.log").read_text()
    for suffix in ("md", "tex", "csv"):
        ours, reference = (folder / f"{TABLE}.{suffix}" for folder in (suite, finished))
        assert ours.read_bytes() == reference.read_bytes()
    starts = [json.loads(p.read_text()) for p in suite.glob("results/smoke/runs/**/run.json")]
    assert all(record["status"] == "complete" for record in starts)
    assert planned(suite, "table_ablation") == []


def test_snakemake_lint_has_only_its_environment_remark(suite):
    done = snakemake(suite, "--lint")
    remarks = set(re.findall(r"^    \* (.+?):?$", done.stderr + done.stdout, flags=re.M))
    assert remarks <= {"Specify a conda environment or container for each rule."}


@pytest.mark.slow
def test_every_target_regenerates_at_smoke(finished, monkeypatch, one_thread):
    """The whole of `all` and the report, in the suite that has the ablation already.

    The other runs are made in this process: torch is slower to import than most are to train.
    """
    monkeypatch.chdir(finished)
    plan = Plan(Experiments(finished / "experiments"))
    settings = plan.experiments.settings({"scale": "smoke"})
    for run in plan.runs("all", settings):
        perform(prepare(str(run.folder("results")), plan), settings)
    done = snakemake(finished, "all", "report", timeout=1200)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^Job \d+: .* seed\d", done.stderr, flags=re.M)
    tables = {path.stem for path in (ROOT / "experiments" / "tables").glob("*.yaml")}
    results = finished / "results/smoke"
    for name in tables:
        printed = (results / f"tables/{name}.md").read_text()
        assert "✗" not in printed
        assert "not run yet" not in printed
    for name in ("objects", "segmentation", "attention_segmentation", "white_box"):
        (truth,) = re.findall(
            r"^\| ground truth .*", (results / f"tables/{name}.md").read_text(), re.M
        )
        assert set(re.findall(r"[\d.]+", truth)) == {"100.0"}
    drawn = ("ablation", "scaling", "efficient_scaling", "objects", "attention", "reconstruction")
    for name in (*drawn, "training_ablation", "training_zeroshot"):
        assert (results / f"figures/{name}.png").stat().st_size > 10_000
    joined = (results / "metrics.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in joined[1:]} == tables
    page = (results / "report.html").read_text()
    assert all(f'<section id="{name}" class="table"' in page for name in tables)
    assert "Not made" not in page
    assert planned(finished, "all", "report") == []
