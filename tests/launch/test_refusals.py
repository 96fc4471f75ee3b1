"""What sbatch refuses: what passes is waited out, what does not ends the run at once."""

import errno
import os
import re
from pathlib import Path

import pytest

from crate.errors import RunError
from crate.launch import sbatch, slurm
from crate.launch.job import Job
from crate.launch.sbatch import (
    job_parameters,
    make_executor,
    script_text,
    submission_environment,
    with_options,
)
from crate.planning.settings import Settings
from crate.recipes import Compute

POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
    "size and/or time limits)"
)
LIMITS = [
    f"QOSMaxSubmitJobPerUserLimit\nsbatch: error: {POLICY}",
    f"AssocMaxSubmitJobLimit\nsbatch: error: {POLICY}",
    f"AssocGrpSubmitJobsLimit\nsbatch: error: {POLICY}",
    f"QOSGrpSubmitJobsLimit\nsbatch: error: {POLICY}",
    f"MaxSubmitJobsPerAccount\nsbatch: error: {POLICY}",
]
PASSING = [
    "Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "Batch job submission failed: Socket timed out on send/recv operation",
    "Batch job submission failed: Connection refused",
    "Batch job submission failed: Connection reset by peer",
    "Batch job submission failed: Connection timed out",
    "Batch job submission failed: Zero Bytes were transmitted or received",
    "Batch job submission failed: Resource temporarily unavailable",
    "Slurm temporarily unable to accept job, sleeping and retrying",
    "Batch job submission failed: Job can not be altered now, try again later",
    "Batch job submission failed: Slurm backup controller in standby mode",
    "Batch job submission failed: Message receive failure",
    "Batch job submission failed: No route to host",
    "Batch job submission failed: I/O error writing script/environment to file",
]
FINAL = [
    "Batch job submission failed: Invalid account or account/partition combination specified",
    "Batch job submission failed: Requested node configuration is not available",
    "invalid partition specified: nope",
    "Batch job submission failed: Invalid qos specification",
    f"QOSMaxWallDurationPerJobLimit\nsbatch: error: {POLICY}",
    f"QOSMaxCpuPerUserLimit\nsbatch: error: {POLICY}",
    f"AssocMaxNodePerJobLimit\nsbatch: error: {POLICY}",
    f"QOSMaxMemoryPerUser\nsbatch: error: {POLICY}",
    "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
    "unrecognized option '--no-such'",
    "Batch job submission failed: Memory specification can not be satisfied",
]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An sbatch and a squeue that say what `cluster(answers, queue)` tells them."""
    commands = tmp_path / "bin"
    commands.mkdir()
    answers = tmp_path / "answers"
    (commands / "sbatch").write_text(f"""#!/bin/sh
env > {tmp_path}/environment
cp "$1" {tmp_path}/script
first=$(ls {answers} | head -n 1)
[ -n "$first" ] || {{ echo "Submitted batch job 7"; exit 0; }}
sed 's/^/sbatch: error: /; s/error: sbatch: //' {answers}/$first >&2
rm {answers}/$first
exit 1
""")
    (commands / "squeue").write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    for name in ("sbatch", "squeue"):
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(sbatch, "PAUSES", (0.01, 0.02))

    def tell(said: list[str], queue: str = "") -> None:
        answers.mkdir()
        for number, text in enumerate(said):
            (answers / f"{number:03}").write_text(f"{text}\n")
        (tmp_path / "queue").write_text(queue)

    return tell


OURS = "5|RUNNING|None|n1|1:02|crate-other\n"


def submit(tmp_path: Path, stop=lambda: False, **site) -> str:
    settings = Settings(launcher="slurm", **site)
    parameters = job_parameters(Compute(), settings, "a run", "token")
    executor = make_executor(tmp_path / "jobs", parameters, settings)
    job = Job("slurm", "token", str(tmp_path / "jobs"), "i")
    return sbatch._submit_slurm(executor, print, job, settings.max_jobs, stop)


@pytest.mark.parametrize("said", LIMITS)
def test_a_limit_of_jobs_is_waited_out(cluster, tmp_path, monkeypatch, capsys, said):
    monkeypatch.setattr(sbatch, "RETRY_SECONDS", 0.0)  # with jobs in the queue there is no end
    cluster([said] * 9, OURS)
    assert submit(tmp_path, max_jobs=31) == "7"
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.fullmatch(r"the cluster takes no more jobs now \(.*\bmax_jobs\b.*now 31.*\n", told)


@pytest.mark.parametrize("said", PASSING)
def test_a_busy_controller_is_asked_again(cluster, tmp_path, capsys, said):
    cluster([said] * 3)
    assert submit(tmp_path) == "7"
    told = capsys.readouterr().err
    assert told.startswith("Slurm does not answer (")
    assert told.count("\n") == 1


@pytest.mark.parametrize("said", FINAL)
def test_what_does_not_pass_ends_at_once(cluster, tmp_path, said):
    cluster([said], OURS)
    with pytest.raises(RunError, match=r"^the cluster refuses the job: [^\n]*$"):
        submit(tmp_path)


def test_one_kind_after_another_is_told_once_each(cluster, tmp_path, capsys):
    cluster([PASSING[0], PASSING[1], LIMITS[0], LIMITS[0], PASSING[0], FINAL[0]], OURS)
    with pytest.raises(RunError, match="Invalid account"):
        submit(tmp_path)
    assert [line[:9] for line in capsys.readouterr().err.splitlines()] == [
        "Slurm doe", "the clust", "Slurm doe",
    ]  # fmt: skip


@pytest.mark.parametrize(("said", "queue"), [(PASSING[0], OURS), (LIMITS[0], "")])
def test_waiting_has_an_end_where_nothing_can_lift_the_limit(
    cluster, tmp_path, monkeypatch, said, queue
):
    monkeypatch.setattr(sbatch, "RETRY_SECONDS", 0.3)
    cluster([said] * 200, queue)
    with pytest.raises(RunError, match="the cluster refuses the job"):
        submit(tmp_path)


@pytest.mark.parametrize(("queue", "kind"), [(OURS, "limit"), ("", "final")])
def test_a_limit_without_a_name_passes_only_while_jobs_of_ours_are_there(cluster, queue, kind):
    cluster([], queue)
    assert slurm.refusal(POLICY) == kind


def test_a_stop_ends_the_wait(cluster, tmp_path):
    cluster([LIMITS[0]] * 50, OURS)
    with pytest.raises(KeyboardInterrupt):
        submit(tmp_path, stop=lambda: True)


def test_a_machine_that_starts_no_process_for_the_moment_is_tried_again(
    cluster, tmp_path, monkeypatch, capsys
):
    cluster([])
    settings = Settings(launcher="slurm")
    executor = make_executor(
        tmp_path / "jobs", job_parameters(Compute(), settings, "a run", "token"), settings
    )
    answers = iter([BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")] * 2)
    submit_whole = executor.submit

    def limited(work):
        for error in answers:
            raise error
        return submit_whole(work)

    monkeypatch.setattr(executor, "submit", limited)
    job = Job("slurm", "token", str(tmp_path / "jobs"), "i")
    assert sbatch._submit_slurm(executor, print, job, 64, lambda: False) == "7"
    assert "sbatch cannot be started: Resource temporarily unavailable" in capsys.readouterr().err


# --- the script and its environment


def script(tmp_path: Path, folder: str = "jobs", **site) -> str:
    settings = Settings(launcher="slurm", **site)
    parameters = job_parameters(Compute(gpus=1), settings, "a run", "token")
    return script_text(make_executor(tmp_path / folder, parameters, settings))


@pytest.mark.parametrize(
    ("options", "there", "gone"),
    [
        ({"requeue": False}, [], ["--requeue"]),
        ({"requeue": None}, [], ["--requeue"]),
        ({"signal": None, "comment": False}, ["--requeue\n"], ["--signal", "--comment"]),
        ({"gpus-per-node": None}, [], ["--gpus-per-node", "gpus_per_node"]),
        ({"gpus_per_node": "2"}, ["--gpus-per-node=2\n"], ["--gpus-per-node=1"]),
        ({"exclusive": True}, ["--exclusive\n"], ["exclusive=", "True"]),
        ({"exclusive": False, "hold": None}, [], ["exclusive", "hold"]),
        ({"ntasks_per_node": "3"}, ["--ntasks-per-node=3\n"], ["ntasks-per-node=1"]),
        ({"open-mode": "truncate"}, ["--open-mode=truncate\n"], ["append"]),
        ({"mem": "8G", "time": "2:00:00"}, ["--mem=8G\n", "--time=2:00:00\n"], ["--mem=4G"]),
        ({"no-requeue": True}, ["--no-requeue\n"], ["--requeue"]),
        ({"--nodelist": "n[1-2]"}, ["--nodelist='n[1-2]'\n"], ["----"]),
    ],
)
def test_the_sites_options_win(cluster, tmp_path, options, there, gone):
    text = script(tmp_path, sbatch=options)
    header = "".join(x + "\n" for x in text.splitlines() if x.startswith("#SBATCH"))
    assert all(word in header for word in there)
    assert not any(word in header for word in gone)
    names = [line.split()[1].split("=")[0] for line in header.splitlines()]
    assert len(names) == len(set(names))
    assert text.startswith("#!/bin/bash\n")
    assert "srun --unbuffered" in text


def test_what_is_no_option_is_left_alone():
    text = "#!/bin/bash\n\n#SBATCH --a=1\n\n# setup\necho '#SBATCH --b'\nsrun x --a=1\n"
    changed = with_options(text, {"a": None, "b": "2"})
    assert changed == "#!/bin/bash\n\n#SBATCH --b=2\n\n# setup\necho '#SBATCH --b'\nsrun x --a=1\n"


def test_the_script_that_is_tested_is_the_one_that_is_submitted(cluster, tmp_path, monkeypatch):
    for name in ("SBATCH_ACCOUNT", "SBATCH_EXPORT", "SLURM_NTASKS", "WORLD_SIZE", "CRATE_SETTINGS"):
        monkeypatch.setenv(name, "3")
    cluster([])
    folder = "a folder with 'quotes' and % signs"
    site = {"partition": "a,b", "python": str(tmp_path / folder / "python"), "sbatch": {"x": "y"}}
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "python").touch()
    tested = script(tmp_path, folder, **site)
    settings = Settings(launcher="slurm", **site)
    parameters = job_parameters(Compute(gpus=1), settings, "a run", "token")
    executor = make_executor(tmp_path / folder, parameters, settings)
    with submission_environment():
        assert executor.submit(print).job_id == "7"
    submitted = (tmp_path / "script").read_text()

    def stable(text: str) -> str:  # without submitit's id of the submission
        return re.sub(r"SUBMITIT_\w+=\S+|[0-9a-f]{32}", "", text)

    assert stable(submitted) == stable(tested)
    seen = (tmp_path / "environment").read_text()
    assert not re.search("^(SBATCH_|SLURM_N|WORLD_SIZE|CRATE_SETTINGS)", seen, re.M)
    assert os.environ["SBATCH_ACCOUNT"] == os.environ["WORLD_SIZE"] == "3"
    assert "--export=ALL" in tested
