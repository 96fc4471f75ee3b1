"""Runs as jobs of a real Slurm (tests/cluster/slurm_cluster.sh), and what clusters do to them.

Skipped where Slurm is not installed, unless CRATE_NEEDS_CLUSTER is set, as continuous integration
does. The long drills and the sweep are in tests/cluster/drills.py (`make drills`).
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from suite import copy_suite, environment

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/cluster/slurm_cluster.sh"
MODEL = "crate_base_patch32_plain"
RUN = f"results/smoke/runs/{MODEL}/seed0/imagenet21k"
OTHER = "results/smoke/runs/crate_alpha_base_patch32/seed0/imagenet21k"
QUICK = f"results/smoke/runs/{MODEL}/seed0/architecture"

pytestmark = pytest.mark.cluster


class Cluster:
    """A Slurm of this machine's own."""

    def __init__(self, base: Path, port: int, **knobs: str):
        self.env = os.environ | {"SC_BASE": str(base), "SC_PORT": str(port), "SC_LINK": "0"}
        self.env |= {"SC_NODES": "2", "SC_GPUS": "2"} | knobs
        self.conf = str(base / "etc/slurm.conf")

    def script(self, word: str) -> None:
        done = subprocess.run(
            ["bash", str(SCRIPT), word], env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            words, env=os.environ | {"SLURM_CONF": self.conf}, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """Ids of all jobs ever submitted, once each."""
        told = self("scontrol", "--oneliner", "show", "jobs")
        return re.findall(r"\bJobId=(\d+)", told)

    def queue(self) -> dict[str, str]:
        lines = self("squeue", "-h", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)


def start_cluster(base: Path, port: int, **knobs: str):
    installed = shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not installed and not os.environ.get("CRATE_NEEDS_CLUSTER"):
        pytest.skip("Slurm is not installed: tests/cluster/slurm_cluster.sh install")
    if not installed or os.geteuid():
        pytest.fail("this needs Slurm's packages and root")
    cluster = Cluster(base, port, **knobs)
    cluster.script("start")
    return cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = start_cluster(tmp_path_factory.mktemp("slurm"), 26817, SC_ENFORCE="1")
    yield cluster
    cluster.script("stop")


@pytest.fixture
def suite(tmp_path, cluster):
    """A fresh clone, with a pre-training long enough to be met by a signal."""
    return make_suite(tmp_path / "suite")


def make_suite(folder: Path, epochs: float = 60) -> Path:
    suite = copy_suite(folder)
    shutil.copytree(ROOT / "slurm", suite / "slurm")
    change(suite / "experiments/scales/smoke.yaml", ("steps", "imagenet21k", "epochs"), epochs)
    change(suite / "experiments/scales/smoke.yaml", ("defaults", "compute", "hours"), 0.5)
    change(
        suite / "experiments/scales/smoke.yaml", ("defaults", "compute", "checkpoint_seconds"), 0.5
    )
    change(suite / "slurm/site.yaml", ("poll_seconds",), 1)
    return suite


def change(path: Path, keys: tuple, value) -> None:
    content = yaml.safe_load(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def start(suite: Path, cluster: Cluster, *words: str) -> subprocess.Popen:
    """Start `python -m …` or snakemake in a session of its own, as a terminal would.

    The file `said` of the process has what it says.
    """
    said = suite.parent / f"said-{time.monotonic_ns()}.txt"
    with said.open("w") as output:
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=suite,
            env=environment() | {"SLURM_CONF": cluster.conf, "PYTHONPATH": str(suite)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.said = said
    return process


def crate(suite: Path, cluster: Cluster, path: str, **settings) -> subprocess.Popen:
    """`crate launch` of one run."""
    changes = [f"{key}={value}" for key, value in settings.items()]
    config = ["--config", *changes] if changes else []
    return start(suite, cluster, sys.executable, "-m", "crate", "launch", path, *config)


def snakemake(suite: Path, cluster: Cluster, *words: str, **settings: str) -> subprocess.Popen:
    binary = Path(sys.executable).parent / "snakemake"
    config = ("--config", "scale=smoke", *(f"{key}={value}" for key, value in settings.items()))
    return start(suite, cluster, binary, "--profile", "slurm", *words, *config)


def end(process: subprocess.Popen, timeout: float = 180) -> tuple[int, str]:
    try:
        process.wait(timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, process.said.read_text()


def wait_for(what, seconds: float = 60):
    """The first truthy value of `what()`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError, AssertionError, KeyError):
            if value := what():
                return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def wait_until_it_says(process: subprocess.Popen, pattern: str) -> None:
    wait_for(lambda: re.search(pattern, process.said.read_text(), re.I))


def job_of(suite: Path, run: str) -> str:
    return json.loads((suite / run / "job.json").read_text())["id"]


def updates(suite: Path, run: str) -> int:
    return len((suite / run / "train.jsonl").read_text().splitlines())


def training(suite: Path, run: str = RUN) -> str:
    """Wait until a run has saved a checkpoint; its job."""
    wait_for(lambda: list((suite / run).glob("checkpoint-*.pt")))
    return job_of(suite, run)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cluster):
    """The same suite's table, made in place."""
    suite = make_suite(tmp_path_factory.mktemp("local") / "suite")
    binary = Path(sys.executable).parent / "snakemake"
    words = (binary, "--cores", "2", "table_ablation", "--config", "scale=smoke")
    code, told = end(start(suite, cluster, *words), 300)
    assert code == 0, told
    return suite


def test_table_survives_preemptions_and_a_killed_driver_byte_for_byte(suite, cluster, reference):
    before = set(cluster.jobs())
    driver = snakemake(suite, cluster, "table_ablation")
    first = training(suite)
    cluster("scancel", "--signal=USR2", first)
    other = training(suite, OTHER)
    os.kill(driver.pid, signal.SIGKILL)
    # a second driver while the waiting processes of the first still live
    driver = snakemake(suite, cluster, "table_ablation")
    wait_for(lambda: cluster.queue().get(other) == "RUNNING", 60)
    cluster("scancel", "--signal=USR2", other)
    code, told = end(driver, 240)
    assert code == 0, told
    for name in ("md", "tex", "csv"):
        table = f"results/smoke/tables/ablation.{name}"
        assert (suite / table).read_bytes() == (reference / table).read_bytes()
    for path in reference.glob("results/smoke/runs/**/metrics.json"):
        again = suite / path.relative_to(reference)
        assert again.read_bytes() == path.read_bytes()
        assert not (again.parent / "job.json").exists()
    # ten runs, ten jobs: nothing was submitted twice
    assert len(set(cluster.jobs()) - before) == 10, told
    record = json.loads((suite / RUN / "run.json").read_text())
    assert record["job"]["id"] == first
    assert record["job"]["restarts"] >= 1
    lines = [json.loads(line) for line in (suite / RUN / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert not list((suite / "results/smoke/.jobs").glob("crate-*"))  # what succeeded is cleaned


def test_a_job_of_higher_priority_preempts_and_the_run_goes_on(suite, cluster):
    waiter = crate(suite, cluster, RUN, scale="smoke", sbatch="{exclusive: true, nodelist: n1}")
    job = training(suite)
    urgent = cluster(
        "sbatch", "--parsable", "-p", "urgent", "-w", "n1", "--exclusive",
        "-o", "/dev/null", "--wrap", "sleep 1",
    )  # fmt: skip
    wait_for(lambda: cluster.queue().get(job) == "PENDING", 60)
    assert urgent != job
    code, told = end(waiter)
    assert code == 0, told
    assert "queued" in told
    assert json.loads((suite / RUN / "run.json").read_text())["job"]["restarts"] == 1


def test_two_nodes_of_two_tasks_train_as_one_process(suite, cluster):
    change(suite / "experiments/scales/smoke.yaml", ("steps", "imagenet21k", "epochs"), 4)
    recipe = suite / "experiments/scales/smoke.yaml"
    change(recipe, ("defaults", "compute", "autocast"), "float32")
    code, told = end(crate(suite, cluster, RUN, scale="smoke"))
    assert code == 0, told
    alone = [json.loads(x) for x in (suite / RUN / "train.jsonl").read_text().splitlines()]
    shutil.rmtree(suite / "results")
    change(recipe, ("defaults", "compute", "nodes"), 2)
    change(recipe, ("defaults", "compute", "processes"), 2)
    setup = "[export MASTER_ADDR=127.0.0.1, export GLOO_SOCKET_IFNAME=lo]"
    code, told = end(crate(suite, cluster, RUN, scale="smoke", setup=setup))
    assert code == 0, told
    record = json.loads((suite / RUN / "run.json").read_text())
    assert record["environment"]["processes"] == 4
    assert record["job"]["nodes"] == ["n1", "n2"]
    together = [json.loads(x) for x in (suite / RUN / "train.jsonl").read_text().splitlines()]
    assert [x["step"] for x in together] == [x["step"] for x in alone]
    for one, four in zip(alone, together, strict=True):
        assert four["loss"] == pytest.approx(one["loss"], abs=1e-3)


# --- bad input and faults: one clear line each -----------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partition": "nope"}, "the cluster refuses the job: .*invalid partition.*nope"),
        ({"account": "nobody"}, "the cluster refuses the job: .*[Ii]nvalid account"),
        ({"sbatch": "{gres: 'gpu:99'}"}, "the cluster refuses the job: .*not available"),
        ({"python": "/no/python"}, "ended without a result .*No such file"),
        ({"sbatch": "{'no such': 1}"}, "the cluster refuses the job: .*"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(suite, cluster, settings, told):
    code, said = end(crate(suite, cluster, QUICK, scale="smoke", **settings))
    assert code == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert re.search(told, last), said
    assert "Traceback" not in said
    assert not (suite / QUICK / "job.json").exists()
    code, said = end(crate(suite, cluster, QUICK, scale="smoke"))  # put right, it runs
    assert code == 0, said


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (("user", "root"), "MaxSubmitJobs"),
        (("qos", "normal"), "MaxSubmitJobsPerUser"),
        (("qos", "normal"), "MaxSubmitJobsPerAccount"),
        (("qos", "normal"), "GrpSubmitJobs"),
    ],
)
def test_a_limit_of_submitted_jobs_is_waited_out(suite, cluster, which, name):
    """More runs than the site takes at once: all of them finish, one after the other."""
    before = set(cluster.jobs())
    blocker = cluster("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 600")
    cluster("sacctmgr", "-i", "modify", *which, "set", f"{name}=1")
    try:
        models = (MODEL, "vit_base_patch32")
        runs = [f"results/smoke/runs/{model}/seed0/architecture" for model in models]
        waiters = [crate(suite, cluster, run, scale="smoke") for run in runs]
        for waiter in waiters:
            wait_until_it_says(waiter, r"the cluster takes no more jobs now \(.*Submit.*max_jobs")
            assert waiter.poll() is None
        cluster("scancel", blocker)
        for waiter in waiters:
            code, told = end(waiter)
            assert code == 0, told
            assert told.count("takes no more jobs") == 1
        assert len(set(cluster.jobs()) - before) == 3
    finally:
        cluster("sacctmgr", "-i", "modify", *which, "set", f"{name}=-1")
        with contextlib.suppress(AssertionError):
            cluster("scancel", blocker)


def test_ctrl_c_ends_a_wait_for_the_limit(suite, cluster):
    blocker = cluster("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 600")
    cluster("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=1")
    try:
        waiter = crate(suite, cluster, QUICK, scale="smoke")
        wait_until_it_says(waiter, "the cluster takes no more jobs now")
        os.killpg(waiter.pid, signal.SIGINT)
        assert end(waiter)[0] == 130
        assert not (suite / QUICK / "job.json").exists()
    finally:
        cluster("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
        cluster("scancel", blocker)


@pytest.mark.parametrize(
    "sbatch",
    [
        "{requeue: false}",
        "{requeue: null, comment: null}",
        "{signal: false, open_mode: null, exclusive: false, no-requeue: true}",
        "{ntasks-per-node: 1, mem: 1G, nice: 010}",
        "{export: NONE}",
        "{export: HOME}",
    ],
)
def test_options_are_taken_away_and_replaced(suite, cluster, sbatch):
    code, told = end(crate(suite, cluster, QUICK, scale="smoke", sbatch=sbatch))
    assert code == 0, told
    job = json.loads((suite / QUICK / "run.json").read_text())["job"]["id"]
    facts = cluster("scontrol", "--oneliner", "show", "job", job)
    if "no-requeue" in sbatch:
        assert "Requeue=0" in facts
    if "comment" in sbatch:
        assert "Comment=crate" not in facts
    if "nice" in sbatch:
        assert "Nice=10 " in facts
        assert "MinMemoryNode=1G" in facts


def test_what_is_tested_probed_and_submitted_is_the_same(tmp_path, cluster, monkeypatch):
    """In a folder with a space, under a shell whose SBATCH_ variables are all wrong."""
    suite = make_suite(tmp_path / "a suite's folder")
    change(suite / "slurm/site.yaml", ("partition",), "main,urgent")
    change(suite / "slurm/site.yaml", ("account",), "LAB")
    change(suite / "slurm/site.yaml", ("sbatch",), {"export": "NONE"})
    for name in ("PARTITION", "ACCOUNT", "QOS", "RESERVATION", "CONSTRAINT"):
        monkeypatch.setenv(f"SBATCH_{name}", "wrong")
    words = (sys.executable, "-m", "crate", "launch", "--preflight", QUICK, "--probe")
    code, told = end(start(suite, cluster, *words, "--config", "scale=smoke"))
    assert code == 0, told
    assert "SBATCH_ACCOUNT, SBATCH_CONSTRAINT, SBATCH_PARTITION" in told
    assert "ok  partition main: " in told
    assert "ok  partition urgent: " in told
    assert "ok  account LAB" in told
    assert re.search(r"ok  probe job: host .*, scratch there", told)
    printed = [line for line in told.splitlines() if line.startswith("#SBATCH")]
    code, told = end(crate(suite, cluster, QUICK, scale="smoke", sbatch="{export: NONE, x: null}"))
    assert code == 0, told
    assert "#SBATCH --export=NONE" in printed
    assert not any("--x" in line for line in printed)


def test_a_job_cancelled_behind_our_back_is_told(suite, cluster):
    waiter = crate(suite, cluster, RUN, scale="smoke")
    cluster("scancel", training(suite))
    code, told = end(waiter)
    assert code == 1
    assert re.search(r"^failed: .* job \d+ was cancelled", told, re.M), told
    # pending: on a drained node
    cluster("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    try:
        waiter = crate(suite, cluster, QUICK, scale="smoke")
        job = wait_for(lambda: job_of(suite, QUICK))
        wait_until_it_says(waiter, rf"job {job} queued \(.*(DRAIN|unavailable|drained).*\)")
        cluster("scancel", job)
        code, told = end(waiter)
        assert code == 1
        assert re.search(rf"^failed: .* job {job} was cancelled", told, re.M), told
    finally:
        cluster("scontrol", "update", "nodename=n[1-2]", "state=resume")
    code, told = end(crate(suite, cluster, RUN, scale="smoke"))
    assert code == 0, told  # from the checkpoint of the cancelled one


def test_ctrl_c_cancels_or_leaves_and_the_next_start_attaches(suite, cluster):
    waiter = crate(suite, cluster, RUN, scale="smoke", on_interrupt="leave")
    job = training(suite)
    os.killpg(waiter.pid, signal.SIGINT)
    code, told = end(waiter)
    assert code == 130
    assert f"job {job} goes on; the same command attaches to it again" in told
    assert cluster.queue().get(job) == "RUNNING"
    waiter = crate(suite, cluster, RUN, scale="smoke")
    wait_until_it_says(waiter, f"attached to job {job}")
    os.kill(waiter.pid, signal.SIGKILL)  # the laptop closed
    waiter = crate(suite, cluster, RUN, scale="smoke")
    wait_until_it_says(waiter, f"attached to job {job}")
    os.killpg(waiter.pid, signal.SIGTERM)
    code, told = end(waiter)
    assert f"job {job} cancelled" in told
    assert code == 130
    wait_for(lambda: job not in cluster.queue())


def test_a_restarted_controller_changes_nothing(suite, cluster):
    before = set(cluster.jobs())
    waiter = crate(suite, cluster, RUN, scale="smoke")
    training(suite)
    cluster.script("restart-controller")
    code, told = end(waiter)
    assert code == 0, told
    assert len(set(cluster.jobs()) - before) == 1


def test_a_folder_that_cannot_be_written_is_one_line_and_no_job(suite, cluster):
    before = set(cluster.jobs())
    (suite / "results").write_text("a file where a folder should be")
    code, told = end(crate(suite, cluster, QUICK, scale="smoke"))
    assert code == 1
    assert re.fullmatch(r"failed: .*cannot be written.*", told.strip()), told
    assert set(cluster.jobs()) == before


def test_jobs_and_cancel(suite, cluster):
    def ask(*words: str) -> str:
        code, told = end(start(suite, cluster, sys.executable, "-m", "crate", *words))
        assert code == 0, told
        return told

    waiter = crate(suite, cluster, RUN, scale="smoke")
    job = training(suite)
    listed = ask("jobs")
    assert re.search(rf"{MODEL} seed0 imagenet21k +{job} +running on n\d .*epoch", listed), listed
    assert f"job {job} cancelled" in ask("cancel", "table_ablation", "--config", "scale=smoke")
    code, told = end(waiter)
    assert code == 1, told
    assert "no jobs are under way" in ask("jobs")


def test_short_runs_share_a_job(suite, cluster):
    before = set(cluster.jobs())
    models = (MODEL, "crate_alpha_base_patch32", "vit_base_patch32", "crate_base_patch16")
    runs = [f"results/smoke/runs/{model}/seed0/architecture" for model in models]
    waiters = [crate(suite, cluster, run, scale="smoke", pack=4, pack_hours=1) for run in runs]
    for waiter in waiters:
        code, told = end(waiter)
        assert code == 0, told
    assert len(set(cluster.jobs()) - before) == 1
    assert all((suite / run / "metrics.json").exists() for run in runs)
    assert not list((suite / "results/smoke/.jobs").glob("crate-*"))


def test_a_sweep_of_ones_own_operator(suite, cluster):
    page = (ROOT / "docs/own_code.md").read_text()
    files = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, flags=re.M | re.S))
    (suite / "my_operator.py").write_text(files["my_operator.py"])
    with (suite / "experiments/models.yaml").open("a") as file:
        file.write(files["experiments/models.yaml"])
    change(suite / "experiments/scales/smoke.yaml", ("steps", "imagenet21k", "epochs"), 0.1)
    runs = [
        f"results/smoke/runs/crate_soft_base_patch32/seed0/imagenet21k{changed}/metrics.json"
        for changed in ("", "@lr=0.002")
    ]
    driver = snakemake(suite, cluster, *runs, plugins="my_operator.py")
    code, told = end(driver)
    assert code == 0, told
    records = [json.loads((suite / run).with_name("run.json").read_text()) for run in runs]
    assert [record["job"]["launcher"] for record in records] == ["slurm", "slurm"]
    assert records[1]["config"]["step"]["lr"] == 2e-3
    assert records[0]["code"] == records[1]["code"]


def test_preflight_names_what_is_missing(suite, cluster):
    words = (sys.executable, "-m", "crate", "launch", "--preflight", "table_ablation", "--probe")
    code, told = end(start(suite, cluster, *words, "--config", "scale=smoke", "account=lab"))
    assert code == 0, told
    assert "#SBATCH --signal=USR2@120" in told
    # every run is named above the script that it gets
    named = re.findall(r"^#   (\S+ seed0 \S+)$", told.split("ok  ")[0], re.M)
    assert len(set(named)) == len(named) == 10
    assert re.search(r"ok  probe job: host .*, data root not used, scratch there", told)
    config = ("scale=paper", "partition=nope", "account=none", f"data_root={suite}/no")
    code, told = end(start(suite, cluster, *words[:-1], "--config", *config))
    assert code == 1
    assert "NO  partition nope is not there; there are main, urgent" in told
    assert "NO  account none is not yours; yours: lab" in told
    assert "NO  ImageNet-1K is not at" in told


def test_without_accounting_a_lost_job_is_noticed_too(tmp_path):
    cluster = start_cluster(tmp_path / "slurm", 27817, SC_ACCT="none")
    try:
        suite = make_suite(tmp_path / "suite")
        waiter = crate(suite, cluster, RUN, scale="smoke")
        cluster("scancel", training(suite))
        code, told = end(waiter)
        assert code == 1
        assert re.search(r"^failed: .* job \d+ was cancelled", told, re.M), told
    finally:
        cluster.script("stop")


def test_local_jobs_follow_the_same_protocol(tmp_path):
    suite = make_suite(tmp_path / "suite")
    nowhere = Cluster(tmp_path, 0)
    waiter = crate(suite, nowhere, RUN, scale="smoke", launcher="submitit-local")
    job = training(suite)
    os.kill(waiter.pid, signal.SIGKILL)
    waiter = crate(suite, nowhere, RUN, scale="smoke", launcher="submitit-local")
    wait_until_it_says(waiter, f"attached to job {job}")
    os.kill(waiter.pid, signal.SIGTERM)
    code, told = end(waiter)
    assert code == 130, told
    assert f"job {job} cancelled" in told
    code, told = end(crate(suite, nowhere, RUN, scale="smoke", launcher="submitit-local"))
    assert code == 0, told
    assert (suite / RUN / "metrics.json").exists()
