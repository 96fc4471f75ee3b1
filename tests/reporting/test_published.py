"""Published records in one file a scale: read back as they were, stable bytes, clear errors."""

import json
import math
from pathlib import Path

import pytest

from crate.cli import main
from crate.errors import RunError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.published import (
    published_runs,
    published_training,
    read_history,
    read_record,
    record_file,
    write_runs,
    write_training,
)
from crate.records import canonical_json, write_json
from crate.reporting.collect import read_csv
from crate.runs import parse_path

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published/mini"

FIRST, SECOND = "runs/vit/seed0/imagenet21k", "runs/vit/seed0/imagenet21k/imagenet1k"
RECORDS = {
    FIRST: {"status": "complete", "config": {"seed": 0}, "result": {"metrics": {"top1": 0.1}}},
    SECOND: {
        "status": "complete",
        "remark": 'a line\nanother, "quoted", \u2028, é',
        "identity": "a",
    },
}
LINES = [{"step": 20, "loss": 2.5, "lr": 1e-07}, {"step": 40, "loss": 1 / 3, "top1": 30.0}]


def test_records_are_read_back_as_they_were_written(tmp_path):
    assert write_runs(tmp_path, RECORDS) == tmp_path / "runs.jsonl"
    assert len((tmp_path / "runs.jsonl").read_text().split("\n")) == 1 + len(RECORDS)
    assert published_runs(tmp_path) == RECORDS
    assert read_record(tmp_path / FIRST) == RECORDS[FIRST]
    assert read_record(tmp_path / SECOND) == RECORDS[SECOND]
    assert read_record(tmp_path / "runs/vit/seed1/imagenet21k") == {}
    assert read_record(tmp_path / "elsewhere" / FIRST) == {}


def test_training_is_read_back_with_its_keys_in_order_and_what_is_not_finite(tmp_path):
    write_training(tmp_path, {FIRST: LINES, SECOND: [{"step": 1, "loss": math.nan}]})
    assert read_history(tmp_path / FIRST) == LINES
    assert [[*line] for line in read_history(tmp_path / FIRST)] == [[*line] for line in LINES]
    assert math.isnan(read_history(tmp_path / SECOND)[0]["loss"])
    assert read_history(tmp_path / "runs/vit/seed1/imagenet21k") == []


def test_equal_records_give_equal_bytes(tmp_path):
    write_runs(tmp_path / "a", RECORDS)
    shuffled = {name: dict(reversed(RECORDS[name].items())) for name in reversed(RECORDS)}
    write_runs(tmp_path / "b", shuffled)
    write_runs(tmp_path / "c", published_runs(tmp_path / "a"))
    first = (tmp_path / "a/runs.jsonl").read_bytes()
    assert first == (tmp_path / "b/runs.jsonl").read_bytes()
    assert first == (tmp_path / "c/runs.jsonl").read_bytes()
    names = [json.loads(line)["path"] for line in first.splitlines()]
    assert names == sorted(RECORDS)


def test_a_run_without_a_published_line_has_its_own_files(tmp_path):
    write_json(tmp_path / FIRST / "run.json", {"status": "running"})
    (tmp_path / FIRST / "train.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_record(tmp_path / FIRST) == {"status": "running"}
    assert record_file(tmp_path / FIRST) == tmp_path / FIRST / "run.json"
    assert read_history(tmp_path / FIRST) == [{"step": 1, "loss": 2.0}]  # killed while writing
    write_runs(tmp_path, RECORDS)
    assert read_record(tmp_path / FIRST) == RECORDS[FIRST]
    assert record_file(tmp_path / FIRST) == tmp_path / "runs.jsonl"


def test_a_file_that_changed_is_read_again(tmp_path):
    write_runs(tmp_path, RECORDS)
    assert published_runs(tmp_path) is published_runs(tmp_path)  # parsed once
    write_runs(tmp_path, {FIRST: {}})
    assert published_runs(tmp_path) == {FIRST: {}}


@pytest.mark.parametrize(
    "damage",
    [
        b'{"path":"runs/vit/seed0/x","rec',
        b"<<<<<<< HEAD",
        b"",
        b"[]",
        b'{"path":"runs/vit/seed0/x"}',
        b'{"path":"runs/vit/seed0/x","record":[]}',
        b'{"path":1,"record":{}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_line_is_one_clear_error(tmp_path, damage):
    path = write_runs(tmp_path, RECORDS)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[1]]) + b"\n")
    with pytest.raises(RunError) as error:
        read_record(tmp_path / FIRST)
    assert str(error.value) == (
        f"{path}, line 2: expected a JSON object with 'path' and 'record'; restore the file with "
        "git, or publish again"
    )


def test_a_run_stands_in_the_file_once(tmp_path):
    path = write_runs(tmp_path, RECORDS)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(RunError, match=f"line 3: {FIRST} appears twice"):
        published_runs(tmp_path)


def test_a_command_tells_of_the_damage_in_one_line(plan, tmp_path, capsys):
    path = write_runs(tmp_path / "published/mini", RECORDS)
    path.write_text("nothing\n")
    words = ["--row", "CRATE", "--config", "frozen=true", f"results={tmp_path}"]
    assert main(["explain", "ablation", *words]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"failed: {path}, line 1: expected a JSON object")
    assert len(told.err.splitlines()) == 1


# --- what is published ------------------------------------------------------------------------


def test_every_published_value_has_its_record_and_those_of_its_ancestors():
    records, shown = published_runs(PUBLISHED), set()
    for path in (PUBLISHED / "metrics").glob("*.csv"):
        if path.stem.endswith(".losses"):
            continue
        for line in read_csv(path).itertuples():
            name = line.run.removeprefix("mini/")
            shown |= {
                stage.folder("").relative_to("mini").as_posix()
                for stage in parse_path(line.run)[0].lineage
            }
            if line.status == "ok":
                assert records[name]["status"] == "complete"
                assert records[name]["result"]["metrics"][line.metric] == line.value
    assert records.keys() <= shown
    assert published_training(PUBLISHED).keys() <= records.keys()
    for name, record in records.items():
        assert record["run"] == str(parse_path(f"mini/{name}")[0])


def test_published_files_are_as_publish_writes_them(tmp_path):
    write_runs(tmp_path, published_runs(PUBLISHED))
    write_training(tmp_path, published_training(PUBLISHED))
    for name in ("runs.jsonl", "training.jsonl"):
        assert (tmp_path / name).read_bytes() == (PUBLISHED / name).read_bytes()


def test_frozen_takes_published_records(tmp_path, monkeypatch):
    monkeypatch.setattr("crate.published.PROJECT", tmp_path / "package")
    plan = Plan(Experiments(ROOT / "experiments"))
    settings = plan.experiments.settings({"results": str(tmp_path / "results"), "frozen": True})
    run = plan.runs("table_ablation", settings.model_copy(update={"frozen": False}))[0]
    assert plan.published_folder(run, settings) is None  # nothing is published there
    name = run.folder("").relative_to(settings.scale).as_posix()
    packaged = tmp_path / "package/published" / settings.scale
    write_runs(packaged, {name: {"status": "complete"}})
    assert plan.published_folder(run, settings) == packaged / name
    target = tmp_path / "results/published" / settings.scale
    write_runs(target, {name: {"status": "failed"}})
    assert plan.published_folder(run, settings) is None
    write_runs(target, {name: {"status": "complete"}})
    assert plan.published_folder(run, settings) == target / name
    assert canonical_json(read_record(target / name)) == '{"status":"complete"}'
    assert plan.published_folder(run, settings.model_copy(update={"frozen": False})) is None
