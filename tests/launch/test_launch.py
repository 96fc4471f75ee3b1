"""What is asked of a cluster and when a job is given up; on a real one: test_cluster.py."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest

from crate.errors import RunError
from crate.launch import pack, slurm, wait
from crate.launch.job import Job, job_state, read_job
from crate.launch.run import prepare
from crate.launch.sbatch import job_parameters
from crate.launch.work import Item, Work
from crate.planning.settings import Settings
from crate.recipes import Compute
from crate.records import RunFolder, read_json, write_json
from crate.runs import parse_path

EIGHT = Compute(nodes=2, gpus=8, threads=2, workers=3, hours=48, memory_gb=240)
RUN = "results/smoke/runs/crate_base_patch32_plain/seed0/imagenet21k"


def test_a_run_with_gpus_asks_for_one_process_each():
    site = Settings(launcher="slurm", partition="gpu", max_hours=24)
    asked = job_parameters(EIGHT, site, "name", "token")
    assert (asked["nodes"], asked["tasks_per_node"], asked["cpus_per_task"]) == (2, 8, 5)
    assert asked["timeout_min"] == 24 * 60  # longer than the site allows: requeued at the limit
    assert asked["mem_gb"] == 240
    assert asked["slurm_partition"] == "gpu"
    assert "slurm_account" not in asked
    assert asked["slurm_additional_parameters"] == {"requeue": True, "gpus-per-node": "8"}
    assert asked["slurm_signal_delay_s"] == 120


def test_sites_differ():
    site = Settings(
        launcher="slurm", gpu_flag="gres", gpu_type="a100", memory=False, account="4711",
    )  # fmt: skip
    asked = job_parameters(EIGHT, site, "name", "token")
    expected = {"requeue": True, "gres": "gpu:a100:8"}
    assert asked["slurm_additional_parameters"] == expected
    assert "mem_gb" not in asked
    assert asked["slurm_account"] == "4711"


def test_a_pack_has_the_time_of_its_runs_and_a_short_limit_a_signal_in_time():
    site = Settings(launcher="slurm", max_hours=1)
    quick = Compute(hours=0.1)
    assert job_parameters(quick, site, "n", "t", runs=4)["timeout_min"] == 24
    assert job_parameters(quick, site, "n", "t", runs=40)["timeout_min"] == 60
    minute = job_parameters(Compute(hours=1 / 60), site, "n", "t")
    assert (minute["timeout_min"], minute["slurm_signal_delay_s"]) == (1, 30)


@pytest.mark.parametrize("file", ["checkpoint-0.pt", "progress-0-1.jsonl"])
def test_starts_without_an_update_are_given_up(plan, tmp_path, file):
    settings = plan.experiments.settings({"scale": "smoke", "launcher": "slurm"})
    folder = tmp_path / "job"
    run = parse_path(RUN)[0].folder(tmp_path / "results")
    work = Work([Item(RUN, None, {}, False)], settings, folder, plan.experiments.folder)
    work.started = time.time() - 5 * 60  # of a limit of 6 minutes
    write_json(run / file, {})
    for restarts in (1, 2, 3):
        assert work.checkpoint() is not None
        assert work.restarts == restarts
        if restarts == 1:  # a new checkpoint: there was progress
            os.utime(run / file, (1, 1))
    assert work.checkpoint() is not None
    assert work.checkpoint() is None
    told = read_json(folder / "outcome.json")[RUN]
    assert "3 starts reached the time limit of 6 minutes without one more update or image" in told


def test_preemptions_in_a_row_are_not_stalls(plan, tmp_path):
    settings = plan.experiments.settings({"scale": "smoke", "launcher": "slurm"})
    work = Work([Item(RUN, None, {}, False)], settings, tmp_path, plan.experiments.folder)
    work.started = time.time()
    assert all(work.checkpoint() is not None for _ in range(10))


def test_a_queue_that_does_not_answer_is_no_news(tmp_path, monkeypatch):
    queue = slurm.Queue(tmp_path, 0.0)
    answers = iter([{"7": slurm.JobState("RUNNING", node="n1")}, None])
    monkeypatch.setattr(slurm, "queued_jobs", lambda: next(answers, None))
    job = Job("slurm", "t", str(tmp_path), "i", "7")
    assert str(job_state(job, queue)) == "running on n1"
    assert str(job_state(job, queue)) == "running on n1"  # what was known last
    later = Job("slurm", "t", str(tmp_path), "i", "8", submitted=time.time() + 10)
    assert job_state(later, queue) is None  # nobody has looked since it was submitted


def test_one_answer_serves_all_who_wait(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(slurm, "queued_jobs", lambda: asked.append(1) or {})
    for _ in range(20):
        slurm.Queue(tmp_path, 60.0).jobs(0.0)
    assert len(asked) == 1


def test_squeue_is_read_with_reasons_and_ended_jobs_left_out(monkeypatch):
    told = (
        "5|PENDING|Resources||0:00|crate-1\n6|RUNNING|None|n[1-2]|1:02|a|b\n7|CANCELLED|||0:01|\n"
    )
    monkeypatch.setattr(slurm, "ask", lambda *words: told)
    jobs = slurm.queued_jobs()
    assert {i: str(job) for i, job in jobs.items()} == {
        "5": "queued (Resources)",
        "6": "running on n[1-2]",
    }
    assert jobs["6"].comment == "a|b"
    assert slurm.find_job("crate-1") == "5"
    assert slurm.find_job("crate-2") is None
    monkeypatch.setattr(slurm, "ask", lambda *words: None)
    with pytest.raises(RunError, match="does not answer"):
        slurm.find_job("crate-1")


@pytest.mark.parametrize("content", ["", "[1]", '{"id": "1"}', '{"no": "such"}', "{"])
def test_a_foreign_job_file_is_no_job(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    assert read_job(RunFolder(tmp_path)) is None


def waiter(plan, expected: str | None = None, **changes) -> wait.Waiter:
    settings = plan.experiments.settings({"scale": "smoke", "launcher": "submitit-local"} | changes)
    item = Item(RUN, expected, {}, False)
    waiter = wait.Waiter(item, prepare(RUN, plan), plan, settings, Path("jobs").absolute())
    waiter.interrupts = wait.Interrupts()
    waiter.interrupts.received = False
    return waiter


def test_a_run_finished_by_a_job_that_left_no_word_is_finished(plan, monkeypatch):
    monkeypatch.setattr(wait, "GONE_SECONDS", 0.0)
    waits = waiter(plan)
    identity = waits.prepared.identity
    result = {"metrics": {"top1": 50.0}}
    write_json(waits.folder.record, {"status": "complete", "identity": identity, "result": result})
    job = Job("submitit-local", "t", "jobs/t", identity, str(os.getpid()))  # gone: born later
    assert waits._wait(job) == ""
    assert read_json(waits.folder.metrics) == result


def test_a_job_that_ended_while_nobody_waited_is_cleared_away(plan):
    """Its driver was killed; the next start finds the result. A job that goes on is left alone."""
    folder = Path("jobs/t").absolute()
    waits = waiter(plan)
    identity = waits.prepared.identity
    result = {"metrics": {"top1": 50.0}}
    write_json(waits.folder.record, {"status": "complete", "identity": identity, "result": result})
    job = Job("submitit-local", "t", str(folder), identity, str(os.getpid()))
    for outcomes, stays in (({}, True), ({RUN: "it failed"}, True), ({RUN: ""}, False)):
        write_json(waits.folder.job, dataclasses.asdict(job))
        write_json(folder / "outcome.json", outcomes)
        wait.launch(RUN, plan, waits.settings)
        assert waits.folder.job.exists() == stays
        assert folder.exists() == stays
    assert read_json(waits.folder.metrics) == result


def test_a_run_left_out_of_a_pack_has_a_job_of_its_own(plan, monkeypatch):
    monkeypatch.setattr(pack, "PACK_SECONDS", 0.0)
    waits = waiter(plan, "planned by an older recipe", pack=2)
    submitted = []
    monkeypatch.setattr(waits, "_submit_job", lambda items, prepared: submitted.append(items) or 7)
    assert waits._submit() == 7
    assert submitted == [[waits.item]]


def test_interrupts_are_noted_not_raised():
    before = signal.getsignal(signal.SIGTERM)
    with wait.Interrupts() as interrupts:
        assert not interrupts.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received
    assert signal.getsignal(signal.SIGTERM) == before
