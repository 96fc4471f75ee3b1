"""The warm process: its children do what a rule's own process would, and end as it would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from suite import ROOT, environment

from crate.planning.settings import SETTINGS_VARIABLE
from crate.records import read_json
from crate.workflow import warm
from crate.workflow.client import ADDRESS_VARIABLE

RUN = "results/smoke/runs/crate_base_patch32_plain/seed0/imagenet21k"
LONG = RUN.replace("imagenet21k", "imagenet21k@epochs=2000")
pytestmark = pytest.mark.skipif(bool(warm.why_cold()), reason=warm.why_cold() or "-")

# A driver, which starts the warm process, says where it is, and lives until its input ends.
DRIVER = f"""
import os, sys
from crate.workflow import warm
warm.start()
print(os.environ["{ADDRESS_VARIABLE}"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the suite's experiments, and the environment of a rule in it."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    variables = environment() | {"PYTHONPATH": str(ROOT), SETTINGS_VARIABLE: '{"scale": "smoke"}'}
    return folder, variables


@contextlib.contextmanager
def driver(place):
    folder, variables = place
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=folder, env=variables, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    address = process.stdout.readline().strip()
    (server,) = psutil.Process(process.pid).children()
    try:
        yield process, server, variables | {ADDRESS_VARIABLE: address}
    finally:
        killed = has_ended(server)
        process.kill()
        process.communicate()
        end(server)
    assert killed or not Path(address).parent.exists()


@pytest.fixture(scope="module")
def warmed(place):
    with driver(place) as (_, _, variables):
        yield variables


def crate(place, variables, *words, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "crate", *words], cwd=place[0], env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def child_of(server: psutil.Process) -> psutil.Process:
    for _ in range(600):
        if server.children():
            return server.children()[0]
        time.sleep(0.1)
    pytest.fail("no child was forked")


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone; an orphan stays as a zombie where process 1 does not wait for it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def end(process: psutil.Process) -> None:
    """Wait until a process has ended."""
    for _ in range(300):
        if has_ended(process):
            return
        time.sleep(0.1)
    pytest.fail(f"{process} lives on")


def trained(folder: Path) -> None:
    """Wait until a run has a checkpoint."""
    for _ in range(600):
        if list(folder.glob("checkpoint-*.pt")):
            return
        time.sleep(0.1)
    pytest.fail(f"no checkpoint in {folder}")


def test_a_child_gives_the_results_of_a_process_of_its_own(place, warmed):
    found = []
    for results, variables in (("warm", warmed), ("cold", place[1])):
        run = RUN.replace("results", results)
        done = crate(place, variables, "run", run)
        out, err = done.communicate()
        assert done.returncode == 0, err
        assert "top1" in err.splitlines()[-1]
        assert out == ""
        found.append(read_json(place[0] / run / "metrics.json"))
    assert found[0] == found[1]
    assert found[0]["weights_sha256"]


def test_a_child_has_the_streams_folder_environment_and_status_of_its_rule(place, warmed):
    elsewhere = place[0] / "elsewhere"
    elsewhere.mkdir()
    for words, status, said in (
        (["plan", "nothing"], 2, "unknown target 'nothing'"),
        (["run", f"{RUN}/imagenet1k".replace("results", "none")], 2, "its parent is not finished"),
        (["models", "crate_alpha_base*"], 0, "crate_alpha_base_patch16"),
    ):
        for variables in (warmed, place[1]):
            done = crate(place, variables, *words)
            out, err = done.communicate()
            assert done.returncode == status
            assert said in (err if status else out)
    done = crate((elsewhere,), warmed, "run", RUN)
    assert "no folder experiments/ here" in done.communicate()[1]
    done = crate(place, warmed | {SETTINGS_VARIABLE: '{"scale": "none"}'}, "plan", "all")
    assert "unknown scale 'none'" in done.communicate()[1]


def test_a_rule_that_is_stopped_before_its_child_begins_says_so(place):
    with driver(place) as (_, _, variables):  # still importing
        rule = crate(place, variables, "run", LONG)
        time.sleep(0.5)
        rule.send_signal(signal.SIGINT)
        told = rule.communicate(timeout=30)[1]
    assert (rule.returncode, told) == (130, "stopped\n")
    assert not (place[0] / LONG).exists()


@pytest.mark.slow
def test_signals_reach_the_child_and_it_dies_with_its_rule(place):
    with driver(place) as (_, server, variables):
        rule = crate(place, variables, "run", LONG)
        child = child_of(server)
        trained(place[0] / LONG)
        rule.send_signal(signal.SIGINT)
        told = rule.communicate(timeout=60)[1]
        assert rule.returncode == 1
        assert "stopped by SIGINT at update" in told
        assert read_json(place[0] / LONG / "run.json")["status"] == "stopped"
        assert has_ended(child)

        rule = crate(place, variables, "run", LONG)
        child = child_of(server)
        time.sleep(1)
        rule.kill()
        rule.communicate()
        end(child)

        # a child that is killed is a failed command
        rule = crate(place, variables, "run", LONG)
        child_of(server).kill()
        rule.communicate(timeout=30)
        assert rule.returncode == 128 + signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "warm process"])
def test_a_child_outlives_the_driver_and_the_warm_process(place, victim):
    run = RUN.replace("results", victim.split()[0])
    with driver(place) as (process, server, variables):
        rule = crate(place, variables, "run", run)
        child = child_of(server)
        process.kill() if victim == "driver" else server.kill()
        end(server)
        told = rule.communicate(timeout=60)[1]
        assert rule.returncode == 0, told
        assert has_ended(child)
        # without a warm process, a rule's process does the work
        done = crate(place, variables, "run", run)
        assert "already finished" in done.communicate(timeout=60)[1]
        assert done.returncode == 0
        if victim == "driver":
            assert process.wait(10) == -signal.SIGKILL


def test_the_warm_process_has_no_thread_and_no_gpu(place, warmed):
    script = (
        "import json, os\nfrom crate.workflow import warm\nwarm.prepare()\nimport torch\n"
        "print(json.dumps([len(os.listdir('/proc/self/task')), torch.cuda.is_initialized()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place[0], env=place[1] | warm.ALONE, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [1, False]
    assert os.environ.get(ADDRESS_VARIABLE) is None
