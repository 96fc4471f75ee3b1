"""What several test files share: a copy of `experiments/` to edit, and runs that look finished."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, chromium

from crate import plugins
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import SETTINGS_VARIABLE
from crate.records import write_json
from crate.runs import Run

# Bit-identity and golden losses are the CPU's; CUDA_VISIBLE_DEVICES=0 runs the GPU tests too.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# A job in the background of a script ignores SIGINT, and so would all that it starts
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


# Files that take minutes: begun last, one would keep a worker long after the others are done
LONGEST = ("test_workflow.py", "test_cluster.py", "test_docs.py")


def pytest_collection_modifyitems(items):
    """The longest files first; the order is kept by xdist's `--no-loadscope-reorder`."""
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture(scope="module")
def one_thread():
    """The arithmetic of one thread, whatever the machine has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def page(tmp_path):
    """A page of a browser."""
    if chromium() is None:
        if os.environ.get("CRATE_NEEDS_BROWSER"):
            pytest.fail("there is no Chromium, and CRATE_NEEDS_BROWSER asks for one")
        pytest.skip("there is no Chromium")
    page = Page(tmp_path / "profile")
    yield page
    page.close()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of `experiments/`, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)  # set where a workflow runs the tests
    yield Path(shutil.copytree(ROOT / "experiments", tmp_path / "experiments"))
    plugins.load([])  # what a test named is not known to the next


@pytest.fixture
def plan(folder) -> Plan:
    return Plan(Experiments(folder))


@pytest.fixture
def finish(tmp_path, plan):
    """`finish(run, top1=…)` writes what a finished run leaves behind."""

    def finish(run: Run, **metrics) -> Path:
        resolved = plan.resolve(run)
        where = run.folder(tmp_path / "results")
        result = {"metrics": {"chance": 10.0} | metrics, "weights_sha256": "0" * 64}
        record = {
            "run": str(run),
            "config": resolved.config,
            "code": resolved.code,
            "commit": "c0ffee",
            "status": "complete",
            "environment": {"device": "a test's CPU", "autocast": "float32", "torch": "2.15.0"},
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:01:00+00:00",
            "train_seconds": 60,
            "result": result,
        }
        write_json(where / "run.json", record)
        write_json(where / "metrics.json", result)
        return where

    return finish
