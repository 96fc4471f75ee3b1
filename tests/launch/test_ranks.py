"""Which ranks a run has, and what happens when some of them do not come."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from suite import copy_suite, environment

from crate.errors import RunError
from crate.launch import ranks as module
from crate.launch.ranks import await_ranks, ranks
from crate.launch.run import _verified_weights, perform, prepare
from crate.records import RunFolder, read_json

RUN = "results/smoke/runs/crate_base_patch32_plain/seed0/imagenet21k"
WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize(
    "stray",
    [{"WORLD_SIZE": "2"}, {"RANK": "1"}, {"LOCAL_RANK": "7"}, {"WORLD_SIZE": "x"}, WHOLE],
)
def test_variables_of_other_programs_are_not_believed(monkeypatch, capsys, stray):
    for name in module.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    with ranks(launched=False) as found:
        assert found == (0, 1)
        assert not set(stray) & set(os.environ)
    assert {name: os.environ[name] for name in stray} == stray
    told = capsys.readouterr().err
    assert ("of the environment is ignored: this is one process" in told) == ("WORLD_SIZE" in stray)


@pytest.mark.parametrize("stray", [{"WORLD_SIZE": "2"}, WHOLE, {"RANK": "1", "LOCAL_RANK": "5"}])
def test_a_local_run_ends_in_spite_of_stray_variables(tmp_path, stray):
    suite = copy_suite(tmp_path)
    words = (sys.executable, "-m", "crate", "run", RUN, "--config", "scale=smoke")
    done = subprocess.run(
        words,
        cwd=suite,
        env=environment() | {"PYTHONPATH": str(suite)} | stray,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert read_json(suite / RUN / "run.json")["environment"]["processes"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": None},
        {"MASTER_ADDR": None},
        {"WORLD_SIZE": "1"},
        {"RANK": "-1"},
        {"WORLD_SIZE": "two"},
        {"MASTER_PORT": "0"},
    ],
)
def test_a_launcher_that_sets_half_of_them_is_told(monkeypatch, change):
    for name, value in (WHOLE | change).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    wanted = pytest.raises(RunError, match=r"^ranks need RANK, WORLD_SIZE, LOCAL_RANK")
    with wanted, ranks(launched=True):
        pass


@pytest.mark.parametrize("first", [0, 1, 2])
def test_ranks_go_on_once_all_are_here(monkeypatch, first):
    """Whoever comes first."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    gone_on = []

    def join(rank: int) -> None:
        await_ranks(rank, 3)
        gone_on.append(rank)

    order = [first, *({0, 1, 2} - {first})]
    threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
    for thread in threads[:2]:
        thread.start()
    threads[0].join(1)
    assert gone_on == []  # one is still missing
    threads[2].start()
    for thread in threads:
        thread.join(30)
    assert sorted(gone_on) == [0, 1, 2]


@pytest.mark.parametrize(
    ("rank", "told"),
    [(0, "rank 0 of 2 {} the other ranks at 127.0.0.1:{}: 1 of them are here"),
     (1, "rank 1 of 2 {} the other ranks at 127.0.0.1:{}: the first of them does not answer")],
)  # fmt: skip
def test_a_rank_that_waits_in_vain_says_so_and_ends(monkeypatch, capsys, rank, told):
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.setattr(module, "SAY_SECONDS", 0.3)
    monkeypatch.setattr(module, "END_SECONDS", 1.0)
    with pytest.raises(RunError) as caught:
        await_ranks(rank, 2)
    assert str(caught.value) == told.format("waited 1 s for", port)
    assert capsys.readouterr().err == told.format("waits for", port) + "\n"


def test_a_port_in_use_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(RunError, match=r"cannot be used by the ranks .*in use"):
            await_ranks(0, 2)


@pytest.mark.parametrize("damage", ["gone", "other bytes", "empty"])
def test_the_advice_for_a_damaged_parent_loses_nothing(plan, tmp_path, damage):
    """What follows a run lies in its folder; the advice is carried out as it is printed."""
    settings = plan.experiments.settings({"scale": "smoke"})
    perform(prepare(RUN, plan), settings)
    parent = RunFolder(tmp_path / RUN)
    before = read_json(parent.metrics)
    child = parent.folder / "imagenet1k/metrics.json"
    child.parent.mkdir()
    child.write_text("{}")
    if damage == "gone":
        parent.weights.unlink()
    else:
        parent.weights.write_bytes(b"" if damage == "empty" else b"damaged")
    with pytest.raises(RunError) as caught:
        _verified_weights(RUN, parent)
    advice = str(caught.value)
    assert "delete " not in advice
    assert advice.endswith(f"'crate run {parent.folder}' makes it again, and deletes nothing")
    perform(prepare(RUN, plan), settings)
    assert read_json(parent.metrics) == before
    assert _verified_weights(RUN, parent) == before["weights_sha256"]
    assert child.read_text() == "{}"
