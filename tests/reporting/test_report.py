"""The HTML report: all of the tables and of what stands behind them, gaps and odd texts included.

What a reader does with it is tried in a headless Chromium (skipped without; `CRATE_NEEDS_BROWSER`
makes its absence a failure).
"""

import csv
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Page

from crate.cli import main
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import write_json
from crate.reporting.collect import collect
from crate.reporting.figures import write_figure
from crate.reporting.publish import publish
from crate.reporting.report import _ticks, write_report
from crate.reporting.tables import write_table
from crate.workflow import driver, lock

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published/mini"
ODD = "</script><b>\"CRATE\"</b> & 'co' <img src=x onerror=fail()>"


class Tables(HTMLParser):
    """`found`: id of a section → the rows of its table's body, as text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.loads: list[str] = []
        self._section, self._body, self._cell = "", False, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [attrs[key] for key in ("src", "href", "data") if key in attrs]
        if tag == "section":
            self._section = attrs["id"]
        elif tag == "tbody":
            self._body = True
        elif self._body and tag == "tr":
            self.found.setdefault(self._section, []).append([])
        elif self._body and tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag == "tbody":
            self._body = False
        elif tag in ("td", "th") and self._cell is not None:
            self.found[self._section][-1].append(self._cell)
            self._cell = None


def csv_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def provenance(page: str) -> dict:
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.S)[1])
    assert len(set(data["texts"])) == len(data["texts"])  # each stands once
    data["runs"] = [[[key, data["texts"][i]] for key, i in run] for run in data["runs"]]
    return data


@pytest.fixture
def gaps(folder, finish, tmp_path):
    """The ablation of two seeds: one row whole, one failed, one of one seed, one not run."""
    path = folder / "tables/ablation.yaml"
    text = path.read_text()
    assert "label: + decoupled" in text
    text = text.replace("label: + decoupled", f"label: {json.dumps(ODD)}")
    path.write_text(re.sub("^note: .*\n( .*\n)+", f"note: {json.dumps(ODD)}\n", text, flags=re.M))
    plan = Plan(Experiments(folder))
    results = (tmp_path / "results").as_posix()
    settings = plan.experiments.settings({"scale": "mini", "seeds": "0,1", "results": results})
    for row, _, run, _ in plan.cells(plan.table("ablation"), "mini", [0, 1]):
        where = run.folder(results)
        if row.label == "CRATE" or (row.label == ODD and run.seed == 0):
            finish(run, top1=50.0 + run.seed)
            lines = [{"step": 1, "seen": 0, "loss": 2.0}, {"step": 9, "seen": 100, "loss": 1.0}]
            lines[0]["top1"] = 40.0
            written = "".join(f"{json.dumps(line)}\n" for line in lines)
            (where / "train.jsonl").write_text(written + '{"step": 10, "lo')  # killed while writing
        elif row.label == "+ overcomplete":
            record = {"status": "failed", "error": f"the loss is nan {ODD}", "commit": "badc0de"}
            resolved = plan.resolve(run)
            write_json(
                where / "run.json", record | {"config": resolved.config, "code": resolved.code}
            )
            lines = [{"step": 1, "seen": 0, "loss": 1.5}, {"step": 2, "seen": 50, "loss": math.nan}]
            (where / "train.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    collect("ablation", plan, settings, partial=True)
    write_table("ablation", plan, settings)
    write_figure("ablation", plan, settings)
    return plan, settings


def test_the_page_has_the_rows_of_the_csv_and_what_is_behind_them(gaps):
    plan, settings = gaps
    path = write_report(plan, settings)
    page = path.read_text()
    tables = Tables(page)
    rows = csv_rows(path.parent / "tables/ablation.csv")
    assert tables.found["ablation"] == rows
    assert [row[1] for row in rows[:4]] == ["50.5 ± 0.8", "✗", "50.0 †", "…"]
    for note in ("✗ the run failed.", "† some seeds are missing or failed.", "… not run yet."):
        assert f"<li>{note}</li>" in page
    assert "Fashion-MNIST (10,000 training images) stands in for imagenet1k" in page
    assert "snakemake --cores all table_transfer --config scale=mini" in page  # not collected
    assert ["ablation", "4 of 12", ""] in tables.found["overview"]
    assert "1 table, 1 figure, " in page

    told = provenance(page)
    cell = told["cells"]["ablation/0/imagenet1k"]
    assert cell["title"] == "CRATE, ImageNet-1K top-1"
    assert ["paper", "68.5 % (CRATE-alpha README and its figure, mark A)"] in cell["facts"]
    assert [title for title, _ in cell["runs"]] == ["seed 0: 50.0 %", "seed 1: 51.0 %"]
    partial = told["cells"]["ablation/2/imagenet1k"]["facts"]
    assert partial[:2] == [["ours", "50.0 %"], ["", "† some seeds are missing or failed"]]
    behind = told["runs"][cell["runs"][1][1]]
    folder = "runs/crate_base_patch32_plain/seed1/imagenet21k/imagenet1k"
    assert ["run", f"{path.parent}/{folder}"] in behind
    assert ["code", "commit c0ffee"] in behind
    assert dict(behind)["time"].endswith(", 60 s, training 60 s")
    assert "snakemake --cores all" in dict(behind)["rerun"]
    assert dict(behind)["rerun"].split()[3].endswith(f"{folder}/metrics.json")
    assert [what for what, _ in behind].count("step") == 2
    failed = told["cells"]["ablation/1/imagenet21k"]
    assert dict(told["runs"][failed["runs"][0][1]])["status"] == f"failed: the loss is nan {ODD}"
    # an empty cell has nothing behind it
    places = re.findall(r'data-cell="([^"]+)"', page)
    assert sorted(places) == sorted(told["cells"])

    # of the three runs that trained, in each step; the axes are 290 × 164, from (42, 8)
    assert page.count('d="M42.0 8.0 332.0 172.0"') == 6
    # and what the failed runs of two seeds and steps had measured before they diverged
    assert page.count('<circle cx="42.0" cy="90.0"') == 4
    # a metric while training ends in the result: here from 40 to 51, seed 1 of one row
    assert page.count('d="M42.0 172.0 332.0 8.0"') == 2


def test_the_page_loads_nothing_and_equal_inputs_give_equal_bytes(gaps):
    plan, settings = gaps
    first = write_report(plan, settings).read_bytes()
    assert write_report(Plan(plan.experiments), settings).read_bytes() == first
    page = first.decode()
    assert all(re.match(r"(data:|#)", address) for address in Tables(page).loads)
    assert "default-src 'none'" in page
    assert ODD not in page
    assert page.count("<script") == page.count("</script>") == 2


def test_a_published_page_tells_of_the_published_records(folder, plan, finish, tmp_path):
    results = (tmp_path / "results").as_posix()
    settings = plan.experiments.settings(
        {"scale": "mini", "results": results, "data_root": "/of/this/machine"}
    )
    for _, _, run, _ in plan.cells(plan.table("ablation"), "mini", [0]):
        for stage in run.lineage:
            finish(stage, top1=50.0)
    collect("ablation", plan, settings)
    write_table("ablation", plan, settings)
    write_figure("ablation", plan, settings)
    written = publish(plan, settings)
    path = tmp_path / "results/published/mini/report.html"
    assert path in written
    told = provenance(path.read_text())
    facts = dict(told["runs"][0])
    assert facts["run"].startswith(f"{results}/published/mini/runs/")
    assert facts["record"] == f"a line of {results}/published/mini/runs.jsonl"
    assert f" {results}/mini/runs/" in facts["rerun"]  # which makes it anew, not there
    assert "/of/this/machine" not in path.read_text()

    # the same records where nothing was run here
    (tmp_path / "results/mini").rename(tmp_path / "elsewhere")
    frozen = settings.model_copy(update={"frozen": True})
    collect("ablation", plan, frozen)
    again = provenance(write_report(plan, frozen).read_text())
    assert again["cells"].keys() == told["cells"].keys()
    status = dict(again["runs"][0])["status"]
    assert status == "complete; not run here; from the records in results/published"


def test_a_report_of_nothing_says_what_to_do(plan, capsys):
    assert main(["report"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: no table is collected under results/mini; run 'snakemake ")
    assert len(told.splitlines()) == 1


def test_after_a_failure_the_report_is_written_with_its_gaps(gaps, monkeypatch, capsys):
    plan, settings = gaps
    monkeypatch.setattr(driver, "command_targets", lambda: ["report"])
    monkeypatch.setattr(driver.atexit, "register", lambda *_: None)  # the last lines
    monkeypatch.setattr(type(plan), "target_tables", lambda self, target: ["ablation"])
    driver.partial_tables(plan, settings)
    path = Path(settings.results) / "mini/report.html"
    assert f"report with its gaps: {path}" in capsys.readouterr().err
    # for the next driver it is older than all else, as the tables that it shows
    lock.forget_outdated(Path(".snakemake"), Path(settings.results) / settings.scale)
    assert (
        path.stat().st_mtime
        == path.parent.joinpath("tables/ablation.md").stat().st_mtime
        == lock.OLD
    )


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.97, 2.31, [1.0, 1.5, 2.0]),
        (43.2, 60.1, [45, 50, 55, 60]),
        (7.0, 7.0, [7.0]),
    ],
)
def test_ticks_are_round_and_few(low, high, ticks):
    assert _ticks(low, high) == ticks


# --- in a browser -----------------------------------------------------------


SHOWN = """[...document.querySelectorAll('#%s .scroll tbody tr')].map(
    row => [...row.children].map(cell => cell.textContent))"""
DIALOG = "document.getElementById('provenance')"


def check_page(page: Page, path: Path, names: list[str]) -> None:
    """What holds of any report: complete, silent, without a network, as wide as a phone."""
    page.open(path)
    for name in names:
        assert page.run(SHOWN % name) == csv_rows(path.parent / f"tables/{name}.csv"), name
    assert page.run("[...document.images].every(image => image.naturalWidth > 0)")
    page.resize(390, 844)
    assert page.run("document.documentElement.scrollWidth") == 390
    page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.run("document.documentElement.scrollWidth") == 390
    assert [address for address in page.requests if not address.startswith("data:")] == [
        path.resolve().as_uri()
    ]
    assert page.errors == []


def test_a_click_shows_what_is_behind_a_number(page, gaps):
    plan, settings = gaps
    path = write_report(plan, settings)
    check_page(page, path, ["ablation"])
    assert page.run(f"{DIALOG}.open") is False

    # as with a finger, on the failed run, whose error is no markup
    page.run("document.querySelector('[data-cell=\"ablation/1/imagenet1k\"]').click()")
    assert page.run(f"{DIALOG}.open") is True
    shown = page.run(f"{DIALOG}.innerText")
    assert f"failed: the loss is nan {ODD}" in shown
    assert "badc0de" in shown
    assert "--force --config scale=mini" in shown
    assert page.run(f"{DIALOG}.querySelectorAll('img, b').length") == 0
    assert page.run("document.documentElement.scrollWidth") == 390
    page.run(f"{DIALOG}.querySelector('header button').click()")
    assert page.run(f"{DIALOG}.open") is False

    # and by keyboard, there and back
    focus = "document.activeElement.dataset.cell"
    page.run("document.querySelector('[data-cell=\"ablation/0/imagenet21k\"]').focus()")
    page.press("Tab")
    assert page.run(focus) == "ablation/0/imagenet1k"
    page.press("Enter")
    shown = page.run(f"{DIALOG}.innerText")
    assert page.run(f"{DIALOG}.querySelectorAll('details').length") == 2
    for told in ("CRATE, ImageNet-1K top-1", "68.5 %", "seed 1: 51.0 %", "c0ffee", "a test's CPU"):
        assert told in shown
    page.press("Escape")
    assert page.run(f"{DIALOG}.open") is False
    assert page.run(focus) == "ablation/0/imagenet1k"
    assert page.run("document.querySelector('#ablation p + p').textContent") == ODD
    # on paper there is no scrolling
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert page.errors == []


@pytest.mark.parametrize("name", ["data", "provenance"])
def test_a_table_may_have_any_name(page, gaps, tmp_path, name):
    text = write_report(*gaps).read_text()
    path = tmp_path / "page.html"
    path.write_text(text.replace('<section id="ablation"', f'<section id="{name}"'))
    page.open(path)
    page.run(f"document.querySelector('section#{name} td button').click()")
    assert page.run("document.querySelector('dialog').innerText").startswith("CRATE, ImageNet-21K")
    assert page.errors == []


def test_the_published_report_has_the_published_tables(page, tmp_path):
    names = [path.stem for path in sorted((PUBLISHED / "tables").glob("*.csv"))]
    results = tmp_path / "results"
    shutil.copytree(PUBLISHED, results / "published/mini")
    plan = Plan(Experiments(ROOT / "experiments"))
    settings = plan.experiments.settings({"scale": "mini", "results": results.as_posix()})
    path = write_report(plan, settings, published=True)
    assert path.stat().st_size < 10e6
    check_page(page, path, names)
    sections = page.run("[...document.querySelectorAll('section.table')].map(each => each.id)")
    assert sorted(sections) == names
    page.run("document.querySelector('#ablation td button').click()")
    assert "results/published/mini/runs/" in page.run(f"{DIALOG}.innerText")
