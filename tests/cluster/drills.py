"""Long drills of the launcher on the test cluster, with what they measure: `make drills`.

    limit    a run that is longer than its job's limit of two minutes ends as in one go
    short    a limit too short for a single update ends in one line, not in an endless requeue
    sweep    200 short runs, at most 16 at once, the driver killed three times on the way

Each prints a line for docs/measurements.md and fails if a run was lost or done twice.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))
from test_cluster import RUN, Cluster, change, crate, end, make_suite, start

SCALE = "experiments/scales/smoke.yaml"


def history(folder: Path) -> list[dict]:
    lines = (folder / "train.jsonl").read_text().splitlines()
    return [{k: json.loads(x)[k] for k in ("step", "loss", "lr")} for x in lines]


def limit(folder: Path, cluster: Cluster) -> str:
    """The published way to survive a time limit: USR2, checkpoint, requeue, resume."""
    suite = make_suite(folder / "limit", epochs=1500)
    change(suite / SCALE, ("defaults", "compute", "hours"), 2 / 60)
    began = time.monotonic()
    code, told = end(crate(suite, cluster, RUN, scale="smoke", signal_seconds=45), 1500)
    assert code == 0, told
    record = json.loads((suite / RUN / "run.json").read_text())
    seconds, restarts = time.monotonic() - began, record["job"]["restarts"]
    assert restarts >= 1, "the run was shorter than its limit"
    whole = make_suite(folder / "whole", epochs=1500)
    code, told = end(crate(whole, cluster, RUN, scale="smoke", launcher="submitit-local"), 1500)
    assert code == 0, told
    for name in ("metrics.json", "weights.safetensors"):
        assert (suite / RUN / name).read_bytes() == (whole / RUN / name).read_bytes(), name
    assert history(suite / RUN) == history(whole / RUN)
    return f"{seconds:.0f} s with a limit of 120 s: {restarts} restarts, bit-identical to one go"


def short(folder: Path, cluster: Cluster) -> str:
    suite = make_suite(folder / "short", epochs=1500)
    change(suite / SCALE, ("defaults", "compute", "hours"), 1 / 60)
    # a start-up that outlasts the limit
    edit = suite / "crate/tasks/classification/task.py"
    edit.write_text(edit.read_text() + "\n\nimport time\n\ntime.sleep(600)\n")
    began = time.monotonic()
    code, told = end(crate(suite, cluster, RUN, scale="smoke", signal_seconds=20), 900)
    assert code == 1, told
    last = told.strip().splitlines()[-1]
    assert "starts reached the time limit of 1 minutes without one more update" in last, told
    return f"given up after {time.monotonic() - began:.0f} s: {last}"


def sweep(folder: Path, cluster: Cluster) -> str:
    suite = make_suite(folder / "sweep")
    change(suite / "slurm/site.yaml", ("max_jobs",), 16)
    listed = subprocess.run(
        [sys.executable, "-m", "crate", "models"], cwd=suite, capture_output=True, text=True
    )
    models = listed.stdout.split()[:100]
    table = {
        "title": "Sweep",
        "source": "a drill",
        "columns": {"parameters": {"label": "P", "metric": "parameters", "chain": "architecture"}},
        "rows": [{"label": model, "model": model} for model in models],
    }
    (suite / "experiments/tables/sweep.yaml").write_text(yaml.safe_dump(table))
    config = ("--config", "scale=smoke", "seeds=0,1")
    words = (Path(sys.executable).parent / "snakemake", "--profile", "slurm", "table_sweep")
    done = suite / "results/smoke/runs"
    most, waiters, began, kills = 0, [], time.monotonic(), 0
    driver = start(suite, cluster, *words, "--quiet", "all", *config)
    while driver.poll() is None or kills < 3:
        finished = len(list(done.glob("*/*/architecture/metrics.json")))
        most = max(most, len(cluster.queue()))
        waiters += waiting_memory(suite)
        if kills < 3 and finished > 50 * (kills + 1):
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            kills += 1
            driver = start(suite, cluster, *words, "--quiet", "all", *config)
        time.sleep(random.uniform(0.1, 0.5))
    code, told = end(driver)
    seconds = time.monotonic() - began
    assert code == 0, told
    assert len(list(done.glob("*/*/architecture/metrics.json"))) == 200
    jobs = len(cluster.jobs())
    assert jobs == 200, f"{jobs} jobs for 200 runs"
    assert most <= 16, most
    peak = max(waiters) / 2**20
    return (
        f"200 runs, 3 driver kills: {seconds:.0f} s, {60 * 200 / seconds:.0f} jobs/minute, "
        f"at most {most} at once, {jobs} jobs; a waiting process {peak:.0f} MB at most"
    )


def waiting_memory(suite: Path) -> list[int]:
    """Resident bytes of the processes that wait for a job now."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            if words[1:4] == [b"-m", b"crate", b"run"] and Path(os.readlink(path / "cwd")).samefile(
                suite
            ):
                pages = int((path / "statm").read_text().split()[1])
                found.append(pages * resource.getpagesize())
        except (OSError, ValueError):
            continue  # it has just ended
    return found


def main() -> None:
    drills = ["limit", "short", "sweep"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:] or drills:
            port = 28817 + 10 * drills.index(name)
            cluster = Cluster(Path(scratch) / f"slurm-{name}", port, SC_CPUS="16")
            cluster.script("start")
            try:
                print(f"{name}: {globals()[name](Path(scratch), cluster)}", flush=True)
            finally:
                cluster.script("stop")
                shutil.rmtree(Path(scratch) / f"slurm-{name}", ignore_errors=True)


if __name__ == "__main__":
    main()
