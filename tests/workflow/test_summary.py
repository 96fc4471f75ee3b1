"""What a dry run counts, and what is left at the end of a failed or stopped command."""

import pytest

from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import RunFolder, write_json
from crate.runs import Run
from crate.workflow.summary import describe_end, describe_plan, states_of

PLAIN, ALPHA = "crate_base_patch32_plain", "crate_alpha_base_patch32"


@pytest.fixture
def begun(tmp_path):
    """A results folder in which some runs of the ablation are finished, and others are not."""
    experiments = Experiments()
    settings = experiments.settings({"scale": "smoke", "results": str(tmp_path)})
    plan = Plan(experiments, settings)

    def leave(model, *chain, status="complete", code=None, **facts):
        run = Run("smoke", model, 0, chain)
        folder, resolved = RunFolder(run.folder(tmp_path)), plan.resolve(run)
        record = {"config": resolved.config, "code": code or resolved.code, "status": status}
        write_json(folder.record, record | facts)
        if status == "complete":
            write_json(folder.metrics, {"metrics": {}})

    leave(PLAIN, "imagenet21k")
    leave(PLAIN, "imagenet21k", "imagenet1k")
    leave(ALPHA, "imagenet21k", code="older")
    leave(ALPHA, "imagenet21k", "imagenet1k")
    leave(ALPHA, "imagenet21k_untrained", status="failed", error="RunError: no space left")
    leave(ALPHA, "imagenet1k_untrained", status="stopped", error="stopped by SIGINT")
    return plan, settings


def test_the_state_of_each_run(begun):
    plan, settings = begun
    states = states_of(plan, settings, ["table_ablation"])
    shown = {(run.model, "/".join(run.chain)): state for run, state in states.items()}
    assert shown[PLAIN, "imagenet21k/imagenet1k"] == "finished"
    assert shown[ALPHA, "imagenet21k"] == "changed"
    assert shown[ALPHA, "imagenet21k/imagenet1k"] == "parent"
    assert shown[ALPHA, "imagenet21k_untrained"] == "failed"
    assert shown[ALPHA, "imagenet1k_untrained"] == "stopped"
    assert list(shown.values()).count("new") == 4
    *_, row, total = describe_plan(states, plan).splitlines()
    assert row.split() == ["classification", "8", "4", "1", "1", "1", "1"]
    assert total == "8 runs to do, 2 finished"


def test_the_end_names_causes_logs_and_the_command(begun):
    plan, settings = begun
    words = ["snakemake", "--cores", "2", "table_ablation", "--config", "set={imagenet1k: {lr: 1}}"]
    told = describe_end(plan, settings, ["table_ablation"], words).splitlines()
    assert told[0] == "2 of 10 runs are finished, 2 failed or were stopped, 6 did not begin:"
    assert told[1] == f"  failed: {ALPHA} seed0 imagenet21k_untrained: RunError: no space left"
    assert told[2].endswith(f"{ALPHA}/seed0/imagenet21k_untrained/log.txt")
    assert told[3].startswith("  stopped: ")
    assert "finished runs are kept, and stopped ones go on from their checkpoints" in told[-2]
    assert told[-1] == "  snakemake --cores 2 table_ablation --config 'set={imagenet1k: {lr: 1}}'"
