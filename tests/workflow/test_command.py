"""Options of Snakemake with which the workflow cannot do its work, and settings on its way."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from suite import ROOT, copy_suite, environment

QUICK = "results/smoke/runs/crate_base_patch32_plain/seed0/architecture/metrics.json"

# An executor as a site may have installed one
PLUGIN = """
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False
)


class Executor(RemoteExecutor):
    def run_job(self, job):
        raise SystemExit("a job was started")

    async def check_active_jobs(self, active_jobs):
        yield None

    def cancel_jobs(self, active_jobs):
        pass
"""


@pytest.fixture
def suite(tmp_path):
    suite = copy_suite(tmp_path / "suite")
    (suite / "slurm").mkdir()
    for name in ("config.yaml", "site.yaml"):
        (suite / "slurm" / name).write_bytes((ROOT / "slurm" / name).read_bytes())
    (tmp_path / "plugins/snakemake_executor_plugin_site").mkdir(parents=True)
    (tmp_path / "plugins/snakemake_executor_plugin_site/__init__.py").write_text(PLUGIN)
    return suite


def snakemake(suite: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    binary = Path(sys.executable).parent / "snakemake"
    extra = [] if "--config" in words else ["--config", "scale=smoke"]
    return subprocess.run(
        [str(binary), *words, *extra],
        cwd=suite,
        env=environment() | {"PYTHONPATH": str(suite.parent / "plugins")} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def told(done: subprocess.CompletedProcess) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using profile")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def profile(suite: Path, **options) -> str:
    folder = suite.parent / "profile"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"cores": 1, **options}))
    return str(folder)


@pytest.mark.parametrize(
    ("way", "dry"),
    [
        ("variable", []),
        pytest.param("profile", ["-n"], marks=pytest.mark.slow),
        pytest.param("option", [], marks=pytest.mark.slow),
        pytest.param("option", ["-n"], marks=pytest.mark.slow),
    ],
)
def test_another_executor_is_refused_when_the_workflow_starts(suite, way, dry):
    folder = profile(suite, executor="site", jobs=2)
    words, variables = {
        "variable": ([], {"SNAKEMAKE_PROFILE": folder}),
        "profile": (["--profile", folder], {}),
        "option": (["--executor", "site", "--jobs", "2"], {}),
    }[way]
    line = told(snakemake(suite, QUICK, *words, *dry, **variables))
    assert line.startswith("error: the executor 'site'")
    assert line.endswith("use --profile slurm")
    assert (f"(SNAKEMAKE_PROFILE={folder})" in line) == (way == "variable")
    assert not (suite / "results").exists()


@pytest.mark.slow
def test_our_own_inner_snakemake_is_recognised(suite):
    """Snakemake runs a rule with `run:` in a Snakemake of its own."""
    rule = suite / "workflow/rules/steps.smk"
    text = rule.read_text()
    assert text.count("        shell:\n            ") == 1
    before, command = text.split("        shell:\n            ")
    rule.write_text(f"{before}        run:\n            shell({command.strip()})\n")
    done = snakemake(suite, "--cores", "1", QUICK, "--config", "scale=smoke", "seeds=0-1")
    assert done.returncode == 0, done.stderr
    assert "another snakemake" not in done.stderr
    assert (suite / QUICK).exists()


@pytest.mark.parametrize(
    "way",
    [
        "option",
        pytest.param("profile", marks=pytest.mark.slow),
        pytest.param("dry run", marks=pytest.mark.slow),
    ],
)
def test_a_backend_that_cannot_be_cleared_is_refused(suite, way):
    words = {
        "option": ["--cores", "1", "--persistence-backend", "db"],
        "profile": ["--profile", profile(suite, **{"persistence-backend": "db"})],
        "dry run": ["-n", "--persistence-backend", "db"],
    }[way]
    line = told(snakemake(suite, QUICK, *words))
    assert line.startswith("error: --persistence-backend db: ")
    assert line.endswith("leave the option out")
    assert not (suite / "results").exists()


@pytest.mark.slow
def test_the_usual_backend_may_be_named(suite):
    done = snakemake(suite, "-n", QUICK, "--persistence-backend", "file")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_profile_that_asks_for_a_dry_run_changes_nothing(suite):
    done = snakemake(suite, QUICK, "--profile", profile(suite, **{"dry-run": True}))
    assert done.returncode == 0, done.stderr
    assert not (suite / "results/smoke/.driver.lock").exists()


@pytest.mark.parametrize(
    ("site", "words", "line"),
    [
        ("max_hours: x\n", [], "error: slurm/site.yaml: line 1: max_hours: 'x' should be a valid"),
        ("qos: a\n\tpack: 1\n", [], "error: slurm/site.yaml: line 2: found a tab character"),
        ("qos: [a\n", [], "error: slurm/site.yaml: line 2: did not find expected ',' or ']'"),
        ("lancher: x\n", [], "error: slurm/site.yaml: line 1: unknown key 'lancher'; did you mean"),
        ("", ["max_hours=x"], "error: --config: max_hours: 'x' should be a valid number"),
        ("", ["seeds=1_0"], "error: --config: seeds: '1_0' is not a seed"),
        ("", ["results=$NO_SUCH/x"], "error: --config: results: '$NO_SUCH/x': the environment var"),
    ],
)
def test_a_mistake_on_the_way_through_snakemake_names_its_place(suite, site, words, line):
    (suite / "slurm/site.yaml").write_text(site)
    variables = {} if words else {"SNAKEMAKE_PROFILE": "slurm"}
    way = ["--profile", "slurm"] if words else []
    done = snakemake(suite, "-n", QUICK, *way, "--config", "scale=smoke", *words, **variables)
    assert told(done).startswith(line)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["home", "variable", "relative"])
def test_results_may_be_anywhere(suite, way):
    home = suite.parent / "a home"
    results = {"home": "~/res", "variable": "$WHERE/res", "relative": "./other//res/"}[way]
    folder = (suite / "other" if way == "relative" else home) / "res"
    variables = {"HOME": str(home), "WHERE": str(home)}
    config = ["--config", "scale=smoke", f"results={results}"]
    done = snakemake(suite, "--cores", "1", "table_models", *config, **variables)
    assert done.returncode == 0, done.stderr
    assert (folder / "smoke/tables/models.md").exists()
    assert not (suite / "~").exists()
    assert not (suite / "$WHERE").exists()
    done = snakemake(suite, "-n", "table_models", *config, **variables)
    assert "Nothing to be done" in done.stderr + done.stdout


@pytest.mark.slow
def test_a_name_reaches_the_jobs_as_written(suite):
    """And a list of seeds; through Snakemake's own reading both would be other values."""
    config = ["--config", "scale=smoke", "account=0471", "seeds=[0,1]", "pack_hours=5e-2"]
    rule = suite / "workflow/rules/steps.smk"
    rule.write_text(
        rule.read_text().replace("python -m crate run", "env > seen; python -m crate run")
    )
    done = snakemake(suite, "--cores", "1", QUICK, *config)
    assert done.returncode == 0, done.stderr
    (handed,) = [x for x in (suite / "seen").read_text().splitlines() if "CRATE_SETTINGS" in x]
    settings = yaml.safe_load(handed.partition("=")[2])
    assert settings["account"] == "0471"
    assert settings["seeds"] == [0, 1]
    assert settings["pack_hours"] == 0.05
