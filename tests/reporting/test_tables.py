"""From finished runs to printed tables: hand-worked numbers, honest marks, stable bytes."""

import csv
import dataclasses
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from suite import compiled

from crate.data.examples import read_examples, write_examples
from crate.errors import RunError, UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.tables import Column
from crate.published import (
    published_results,
    published_runs,
    published_training,
    write_runs,
    write_training,
)
from crate.records import lock, read_json, write_json
from crate.reporting.agreement import verdict
from crate.reporting.cells import Cell, cells_of, number
from crate.reporting.collect import (
    collect,
    examples_npz,
    look_up,
    losses_csv,
    metrics_csv,
    read_losses,
    read_metrics,
    read_training,
    thinned,
    write_joined_metrics,
)
from crate.reporting.figures import write_figure
from crate.reporting.pictures import draw_reconstruction
from crate.reporting.publish import publish
from crate.reporting.tables import render, write_table
from crate.reporting.tuning import FIELDS, add_outcomes, read_outcomes
from crate.runs import Run

ONE = Column(label="accuracy", metric="top1", chain="a")
ROWS = ["CRATE", "+ overcomplete", "+ decoupled", "+ residual (CRATE-alpha)"]


@pytest.fixture
def setup(plan, tmp_path):
    """`setup(scale, seeds)`: the settings of a command whose results are in the test's folder."""

    def setup(scale="mini", seeds="0"):
        results = str(tmp_path / "results")
        return plan.experiments.settings({"scale": scale, "seeds": seeds, "results": results})

    return setup


@pytest.fixture
def train(plan, finish):
    """`train(settings, finetuned)`: finish all runs of the ablation.

    `finetuned` has the fine-tuned accuracies of its four rows by seed; a None is no finished run.
    """

    def train(settings, finetuned):
        content = plan.table("ablation")
        for row, key, run, _ in plan.cells(content, settings.scale, settings.seeds):
            value = 50.0 + run.seed
            if row.metric:
                continue  # another number of a run that has a row of its own
            if row.control:
                value = 10.0
            elif key == "imagenet1k":
                value = finetuned[ROWS.index(row.label)][settings.seeds.index(run.seed)]
            if value is not None:
                finish(run, top1=value)
            for ancestor in run.ancestors:
                if not (ancestor.folder(settings.results) / "metrics.json").exists():
                    finish(ancestor, top1=50.0 + run.seed)

    return train


def freeze(settings) -> None:
    """Move the records of what was run to results/published."""
    scale = Path(settings.results) / settings.scale
    records = {
        path.parent.relative_to(scale).as_posix(): read_json(path)
        for path in scale.rglob("run.json")
    }
    write_runs(published_results(settings.results) / settings.scale, records)
    shutil.rmtree(scale)


def printed(plan, settings, *, partial=False) -> dict[str, dict[str, str]]:
    """The table as its CSV has it: row → header → text."""
    collect("ablation", plan, settings, partial=partial)
    path = write_table("ablation", plan, settings)[2]
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(set(rows[0])) == len(rows[0])
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


# --- one cell -----------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "decimals", "text"),
    [
        ([71.24], 1, "71.2"),
        # mean 7/3; squares 16/9 + 1/9 + 25/9 = 42/9, over n − 1 = 2: √(7/3) = 1.53, rounded up
        ([1.0, 2.0, 4.0], 1, "2.3 ± 1.6"),
        ([1.0, 2.0, 4.0], 3, "2.333 ± 1.528"),
        ([1.0, 2.0, 4.0], 0, "2 ± 2"),
        # √2 · 0.2 / 2 = 0.1414
        ([50.0, 50.2], 1, "50.1 ± 0.2"),
        # never ± 0.0
        ([50.0, 50.001], 1, "50.0 ± 0.1"),
        ([50.0, 50.0], 1, "50.0"),
        # a spread of exactly 0.1 stays it, whatever floats say
        ([50.0, 50.1, 50.2], 1, "50.1 ± 0.1"),
        # the standard deviation of three equal floats is 1.7e-14
        ([87.1, 87.1, 87.1], 1, "87.1"),
        ([33.1] * 7, 1, "33.1"),
        ([0.0], 1, "0.0"),
        # 81.65 is a little more than it looks
        ([81.65], 1, "81.7"),
    ],
)
def test_a_cell_as_text(plan, setup, finish, values, decimals, text):
    settings = setup("mini", ",".join(map(str, range(len(values)))))
    for seed, value in enumerate(values):
        for row, _, run, _ in plan.cells(plan.table("ablation"), "mini", [seed]):
            finish(run, top1=value if row.label == "CRATE" else 1.0)
    collect("ablation", plan, settings)
    cells = cells_of(plan.table("ablation"), read_metrics("ablation", settings))
    cell = cells["CRATE", "imagenet1k"]
    assert (cell.n, cell.status) == (len(values), "ok")
    assert cell.mean == pytest.approx(sum(values) / len(values))
    assert cell.text(ONE.model_copy(update={"decimals": decimals})) == text


def test_a_cells_mark_follows_its_status():
    assert Cell(50.0, math.nan, 1, "partial").text(ONE) == "50.0 †"
    assert Cell(50.0, 0.31, 2, "partial").text(ONE) == "50.0 ± 0.4 †"
    assert Cell(math.nan, math.nan, 0, "failed").text(ONE) == "✗"
    assert Cell(math.nan, math.nan, 0, "missing").text(ONE) == "…"


# --- a whole table -----------------------------------------------------------


def test_a_stand_in_has_no_difference_but_an_order(plan, setup, train):
    settings = setup("mini", "0,1")
    # paper's order: 50.1, 60.1, 40.1, 46.1 → pairs + − − − − +: τ = (2 − 4) / 6
    # neighbours: +10 and −20 with errors of 0.14: beyond noise (t of 2 degrees: 4.3);
    # +6 with an error of 1, all of it from one side: within (Welch has 1 degree, t about 12.7)
    train(settings, [(50.0, 50.2), (60.0, 60.2), (40.05, 40.15), (45.1, 47.1)])
    table = printed(plan, settings)
    ours, paper = (
        "ImageNet-1K top-1 (%) ↑, ours (mini: Fashion-MNIST)",
        "ImageNet-1K top-1 (%) ↑, paper",
    )
    assert list(table["CRATE"]) == [
        "Model",
        "ImageNet-21K top-1 (%) ↑, ours (mini: Fashion-MNIST)",
        ours,
        paper,
    ]
    assert [table[row][ours] for row in ROWS] == [
        "50.1 ± 0.2",
        "60.1 ± 0.2",
        "40.1 ± 0.1",  # 0.1 / √2, rounded up
        "46.1 ± 1.5",  # √2
    ]
    assert [table[row][paper] for row in ROWS] == ["68.5", "73.8", "75.8", "76.5"]
    rendered = render("ablation", plan, settings)
    assert (
        "ImageNet-1K top-1: Kendall τ between our order and the paper's is -0.33; of 3 pairs of "
        "neighbours in the paper's order, 1 have the same order here, 1 the reverse, and 1 differ "
        "by less than the seed noise (95 % Welch interval)." in rendered.notes
    )
    assert "ImageNet-21K top-1: paper value not available." in rendered.notes
    caption = " ".join(rendered.caption)
    assert "Fashion-MNIST (10,000 training images) stands in for imagenet1k" in caption
    assert "not comparable" in caption
    assert "mini scale" in caption
    assert "seeds 0, 1" in caption


@pytest.fixture
def own_row(folder):
    """A recipe beside the table's, and rows whose chains name it or end before it."""
    (folder / "steps/imagenet1k_lr8.yaml").write_text("extends: imagenet1k\nlr: 8e-3\n")
    path, model = folder / "tables/ablation.yaml", "crate_alpha_base_patch32"
    lines = f"  - label: lr 8e-3\n    model: {model}\n    chain: imagenet21k/imagenet1k_lr8\n"
    lines += f"  - label: only once\n    model: {model}\n    chain: imagenet21k\n"
    path.write_text(path.read_text().replace("rows:\n", f"rows:\n{lines}"))


def test_a_row_with_a_chain_fills_the_columns_of_its_steps(own_row, plan, setup, finish):
    settings = setup("mini", "0")
    for _, _, run, _ in plan.cells(plan.table("ablation"), "mini", [0]):
        finish(run, top1={"imagenet21k": 82.6, "imagenet1k_lr8": 78.4}.get(run.stage, 10.0))
    table = printed(plan, settings)
    columns = [
        f"{name} top-1 (%) ↑, ours (mini: Fashion-MNIST)"
        for name in ("ImageNet-21K", "ImageNet-1K")
    ]
    assert [table["lr 8e-3"][column] for column in columns] == ["82.6", "78.4"]
    assert [table["only once"][column] for column in columns] == ["82.6", ""]
    assert (
        "only once, ImageNet-1K top-1: its chain has no step that measures this."
        in render("ablation", plan, settings).notes
    )


def test_headers_say_what_was_measured(plan, setup, finish):
    settings = setup("mini", "0")
    for _, _, run, _ in plan.cells(plan.table("crate"), "mini", [0]):
        finish(run, top1=1.0, parameters=1e6)
    collect("crate", plan, settings)
    headers = render("crate", plan, settings).headers
    assert "parameters (M), ours" in headers  # of the published size
    assert "CIFAR-10 (%) ↑, ours (mini: Open Clip Art in 10 topics)" in headers
    assert "Flowers-102 (%) ↑, ours (mini: handwritten digits)" in headers


def test_one_seed_says_nothing_about_noise(plan, setup, train):
    settings = setup("mini", "3")
    train(settings, [(1.0,), (2.0,), (3.0,), (4.0,)])
    collect("ablation", plan, settings)
    # the caption tells what the values are, not what this command's seeds would be
    rendered = render("ablation", plan, setup("mini", "0,1"))
    note = next(note for note in rendered.notes if "Kendall" in note)
    assert note.endswith("is +1.00; one seed, so the seed noise is unknown.")
    assert "; seed 3." in " ".join(rendered.caption)
    assert not any("±" in text for row in rendered.rows for text in row)


def test_the_papers_order_is_its_values_not_its_rows(folder, setup, train):
    settings = setup("mini", "0,1")
    train(settings, [(4.0, 4.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)])
    told = rewritten(folder, "value: 68.5", "value: 90.0")
    collect("ablation", told, settings)
    note = next(n for n in render("ablation", told, settings).notes if "Kendall" in n)
    assert "is +1.00; of 3 pairs" in note
    assert "3 have the same order here, 0 the reverse, and 0 differ by less" in note


def test_ties_only_have_no_order(plan, setup, train):
    settings = setup("mini", "0,1")
    train(settings, [(5.0, 5.0)] * 4)
    collect("ablation", plan, settings)
    note = next(n for n in render("ablation", plan, settings).notes if "Kendall" in n)
    assert "undefined" in note
    assert "nan" not in note
    assert "0 have the same order here, 0 the reverse, and 3 differ by less" in note


def test_real_data_is_compared_with_the_paper(plan, setup, train):
    settings = setup("paper", "0")
    # tolerance 0.5; 75.8 + 0.5 is exactly on it
    train(settings, [(68.9,), (74.4,), (76.3,), (76.0,)])
    table = printed(plan, settings)
    paper = "ImageNet-1K top-1 (%) ↑, paper"
    assert [(table[row][f"{paper} Δ"], table[row][f"{paper} verdict"]) for row in ROWS] == [
        ("+0.4", "reproduced"),
        ("+0.6", "differs"),
        ("+0.5", "reproduced"),
        ("-0.5", "reproduced"),
    ]
    control = table["CRATE-alpha, untrained"]
    assert (control[paper], control[f"{paper} Δ"], control[f"{paper} verdict"]) == ("", "", "")
    rendered = render("ablation", plan, settings)
    assert not any("Kendall" in note for note in rendered.notes)
    assert "Stand-ins" not in " ".join(rendered.caption)
    assert rendered.headers.count("Δ") == rendered.headers.count("verdict") == 1


@pytest.mark.parametrize(
    ("mean", "tolerance", "told"),
    [
        (64.4, 0.5, ("+0.5", "reproduced")),  # 64.4 − 63.9 > 0.5 in floating point
        (63.4, 0.5, ("-0.5", "reproduced")),
        (64.41, 0.5, ("+0.5", "differs")),
        (63.9, 0.0, ("+0.0", "reproduced")),
        (70.0, None, ("+6.1", "")),
    ],
)
def test_the_verdict_at_the_edge_of_the_tolerance(mean, tolerance, told):
    column = ONE.model_copy(update={"tolerance": tolerance})
    assert verdict(Cell(mean, math.nan, 1, "ok"), 63.9, column) == told


def rewritten(folder, old, new) -> Plan:
    path = folder / "tables" / "ablation.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return Plan(Experiments(folder))


def test_an_unexplained_number_is_marked_and_not_judged(folder, setup, train):
    settings = setup("paper", "0")
    train(settings, [(68.5,), (73.8,), (75.8,), (76.5,)])
    told = rewritten(folder, "mark: A}}", "mark: A, unexplained: 'not the\n      same'}}")
    table = printed(told, settings)
    paper = "ImageNet-1K top-1 (%) ↑, paper"
    assert table["CRATE"][paper] == "68.5*"
    assert (table["CRATE"][f"{paper} Δ"], table["CRATE"][f"{paper} verdict"]) == ("", "see note")
    assert table["+ decoupled"][f"{paper} verdict"] == "reproduced"
    assert "CRATE, ImageNet-1K top-1: not the same" in render("ablation", told, settings).notes


def bold_rows(plan, settings) -> dict[int, list[str]]:
    collect("ablation", plan, settings)
    rendered = render("ablation", plan, settings)
    bold: dict[int, list[str]] = {}
    for i, j in sorted(rendered.bold):
        bold.setdefault(j, []).append(rendered.rows[i][0])
    return bold


def test_the_best_as_printed_is_bold_ties_included(plan, setup, train):
    settings = setup("mini", "0")
    train(settings, [(60.0,), (72.04,), (71.96,), (71.94,)])
    # column 1: pre-training, all equal; 2: ours; 3: the paper's numbers never compete
    assert bold_rows(plan, settings) == {1: ROWS, 2: ["+ overcomplete", "+ decoupled"]}
    markdown = write_table("ablation", plan, settings)[0].read_text()
    assert markdown.count("**72.0**") == 2
    assert "**71.9**" not in markdown
    assert "**76.5**" not in markdown


def test_less_is_better_where_the_column_says_so(folder, setup, train):
    settings = setup("mini", "0")
    train(settings, [(60.0,), (55.0,), (71.0,), (72.0,)])
    down = rewritten(folder, "    tolerance: 0.5", "    tolerance: 0.5\n    direction: down")
    # the control's 10.0 would be least, but does not compete
    assert bold_rows(down, settings)[2] == ["+ overcomplete"]
    assert (
        "ImageNet-1K top-1 (%) ↓, ours (mini: Fashion-MNIST)"
        in render("ablation", down, settings).headers
    )


@pytest.mark.parametrize("name", ["None", "NA", "nan"])
def test_a_row_may_have_the_name_of_nothing(folder, setup, train, name):
    path = folder / "tables/ablation.yaml"
    path.write_text(path.read_text().replace("label: + decoupled", f'label: "{name}"'))
    settings, plan = setup(), Plan(Experiments(folder))
    train(settings, [[70.0], [71.0], [72.0], [73.0]])
    run = Run("mini", "crate_base_patch32_overcomplete_decoupled", 0, ("imagenet21k",))
    history = run.folder(settings.results) / "train.jsonl"
    history.write_text('{"seen": 640, "loss": 2.0}')
    assert "72.0" in "".join(printed(plan, settings)[name].values())
    path.write_text(path.read_text().replace(f'label: "{name}"', "label: renamed"))
    write_figure("training_ablation", Plan(Experiments(folder)), settings)  # of before


def test_a_table_needs_all_its_runs(plan, setup, train):
    settings = setup("mini", "0")
    train(settings, [(60.0,), (None,), (71.0,), (72.0,)])
    with pytest.raises(RunError, match=r"overcomplete seed0 imagenet21k/imagenet1k: .* not there"):
        collect("ablation", plan, settings)
    assert not metrics_csv(settings.results, "mini", "ablation").exists()
    with pytest.raises(RunError, match="crate collect ablation"):
        write_table("ablation", plan, settings)


def test_a_partial_table_marks_its_gaps(plan, setup, train):
    settings = setup("mini", "0,1")
    train(settings, [(60.0, 61.0), (None, 62.0), (None, None), (None, None)])
    failed = Run("mini", "crate_alpha_base_patch32", 1, ("imagenet21k", "imagenet1k"))
    where = failed.folder(settings.results)
    write_json(where / "run.json", {"status": "failed", "error": "the loss is nan at step 3"})
    table = printed(plan, settings, partial=True)
    ours = "ImageNet-1K top-1 (%) ↑, ours (mini: Fashion-MNIST)"
    assert [table[row][ours] for row in ROWS] == ["60.5 ± 0.8", "62.0 †", "…", "✗"]
    # killed: its record says running, and nothing holds its lock; stopped: it says so
    write_json(where / "run.json", {"status": "running"})
    assert printed(plan, settings, partial=True)[ROWS[3]][ours] == "‖"
    with lock(where / ".lock"):
        assert printed(plan, settings, partial=True)[ROWS[3]][ours] == "…"
    write_json(where / "run.json", {"status": "stopped", "error": "by SIGTERM at update 3"})
    assert printed(plan, settings, partial=True)[ROWS[3]][ours] == "‖"
    stopped = "‖ stopped or killed before its end; the same command goes on there."
    assert stopped in render("ablation", plan, settings).notes
    write_json(where / "run.json", {"status": "failed", "error": "the loss is nan at step 3"})
    printed(plan, settings, partial=True)
    notes = render("ablation", plan, settings).notes
    assert {"† some seeds are missing or failed.", "✗ the run failed.", "… not run yet."} <= set(
        notes
    )
    assert not any("Kendall" in note for note in notes)  # two rows are no order
    with metrics_csv(settings.results, "mini", "ablation").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["status"] == "failed"]
    assert [line["row"] for line in lines] == [ROWS[3], "chance level"]  # both show that run
    for line in lines:
        assert (line["seed"], line["note"]) == ("1", "the loss is nan at step 3")
        assert line["run"] == where.relative_to(settings.results).as_posix()


def test_a_complete_table_has_no_marks(plan, setup, train):
    settings = setup("mini", "0")
    train(settings, [(60.0,), (61.0,), (71.0,), (72.0,)])
    collect("ablation", plan, settings)
    rendered = render("ablation", plan, settings)
    text = " ".join([*itertools.chain(*rendered.rows), *rendered.notes])
    assert not set("†✗…") & set(text)
    assert ": ." not in text  # a remark of nothing


# --- formats -----------------------------------------------------------


def test_the_same_runs_give_the_same_bytes(plan, setup, train):
    settings = setup("mini", "0,1")
    train(settings, [(50.0, 50.2), (60.0, 60.2), (40.0, 40.2), (36.0, 45.0)])
    seen = []
    for _ in range(2):
        collect("ablation", plan, settings)
        paths = [
            metrics_csv(settings.results, "mini", "ablation"),
            *write_table("ablation", plan, settings),
            *write_figure("ablation", plan, settings),
        ]
        assert [path.suffix for path in paths[1:]] == [
            ".md", ".tex", ".csv", ".pdf", ".svg", ".png",
        ]  # fmt: skip
        seen.append([path.read_bytes() for path in paths])
        for path in paths:
            path.unlink()
    assert seen[0] == seen[1]
    pdf, svg, png = seen[0][4:]
    assert pdf.startswith(b"%PDF")
    assert png.startswith(b"\x89PNG")
    drawn = svg.decode()
    for text in ("68.5", "76.5", "50.1", "40.5", "other data, another axis"):
        assert f"<!-- {text}" in drawn or text in drawn


def test_a_figure_with_gaps_is_drawn(plan, setup, train):
    settings = setup("mini", "0")
    train(settings, [(None,), (None,), (None,), (None,)])
    collect("ablation", plan, settings, partial=True)
    svg = write_figure("ablation", plan, settings)[1].read_text()
    assert "not available" in svg


ODD = r"50% & a_b #1 {x} ~ ^ $ \ | α <η>"


@pytest.fixture
def odd(folder, setup, train):
    """A table whose labels have every character that Markdown or LaTeX takes for its own."""
    settings = setup("paper", "0,1")
    train(settings, [(50.0, 50.2), (60.0, 60.2), (40.0, 40.2), (36.0, 45.0)])
    rewritten(folder, "label: CRATE\n", f"label: '{ODD}'\n")
    rewritten(folder, "label: ImageNet-1K top-1", "label: 'Top|1 & _'")
    told = rewritten(folder, "note: >-", "note: |")
    collect("ablation", told, settings, partial=True)
    return write_table("ablation", told, settings)


def test_markdown_survives_odd_labels(odd):
    lines = [line for line in odd[0].read_text().splitlines() if line.startswith("|")]
    columns = {len(re.split(r"(?<!\\)\|", line)) for line in lines}
    assert columns == {1 + 6 + 1}  # model, ours, ours, paper, Δ, verdict; nothing at both ends
    assert ODD.replace("|", r"\|") in lines[2]


def test_latex_survives_odd_labels(odd, tmp_path):
    body = odd[1].read_text()
    assert body.startswith(r"\begin{table")
    assert r"\label{tab:ablation}" in body
    # the long label leaves room for two columns a part
    assert [body.count(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")] == [3, 3, 3]
    assert (
        r"50\% \& a\_b \#1 \{x\} \textasciitilde{} \textasciicircum{} \$ \textbackslash{} $|$ "
        r"$\alpha$ $<$$\eta$$>$ & " in body
    )
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 3 * (2 + 6)
    assert r"\textbf{60.1 $\pm$ 0.2}" in body
    bare = re.sub(r"\\.", "", body)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert bare.isascii()
    compiled(tmp_path, body)


@pytest.mark.slow
def test_every_table_fits_the_text_width_and_the_page(plan, tmp_path):
    """All tables of mini, from the published records."""
    settings = plan.experiments.settings({"frozen": True, "seeds": "0,1,2"})
    shutil.copytree(Path(__file__).parents[2] / "results/published", tmp_path / "results/published")
    bodies = []
    for name in plan.tables:
        collect(name, plan, settings)
        bodies.append(write_table(name, plan, settings)[1].read_text())
    for options in ("", "twocolumn"):
        said = compiled(tmp_path, *bodies, options=options)
        assert "Overfull" not in said
        assert "too large" not in said
    assert "not comparable with the paper" in bodies[0]


# --- all metrics, publishing -----------------------------------------------------------


def test_metrics_are_joined_with_the_tables_name(plan, setup, train):
    settings = setup("mini", "0")
    with pytest.raises(RunError, match="no table is collected yet"):
        write_joined_metrics(plan, settings.results, settings.scale)
    train(settings, [(60.0,), (61.0,), (71.0,), (72.0,)])
    collect("ablation", plan, settings)
    with write_joined_metrics(plan, settings.results, settings.scale).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["table"] for line in lines} == {"ablation"}
    assert len(lines) == 6 * 2
    assert float(lines[1]["value"]) == 60.0


def test_publishing_copies_what_is_behind_every_value(plan, setup, train):
    settings = setup("mini", "0")
    with pytest.raises(RunError, match="there are no tables"):
        publish(plan, settings)
    train(settings, [(60.0,), (61.0,), (71.0,), (72.0,)])
    collect("ablation", plan, settings)
    write_table("ablation", plan, settings)
    stale = metrics_csv(settings.results, "mini", "ablation").parents[2] / "published/mini/tables"
    stale.mkdir(parents=True)
    (stale / "gone.md").write_text("of a table that is no more")
    (stale / "models.md").write_text("of a table that is published already")
    used, unused = (f"runs/crate_tiny_patch16/seed{seed}/architecture" for seed in (0, 1))
    write_runs(stale.parent, {used: {"commit": "earlier"}, unused: {}})
    write_training(stale.parent, {used: [{"step": 1, "loss": 2.0}], unused: []})
    shown = "row,column,model,chain,seed,metric,value,status,note,run\n"
    shown += "a,b,crate_tiny_patch16,architecture,0,depth,12,ok,,"
    shown += "mini/runs/crate_tiny_patch16/seed0/architecture\n"
    (stale.parent / "metrics").mkdir()
    (stale.parent / "metrics/models.csv").write_text(shown)
    trial = dict.fromkeys(FIELDS, "") | {"step": "imagenet21k_cpal", "value": "77.02"}
    newer = trial | {"step": "imagenet1k", "value": "70.1"}
    add_outcomes(stale.parent / "tuning.csv", [trial, newer | {"value": "60"}])
    add_outcomes(Path(settings.results) / "mini" / "tuning.csv", [newer])
    target = stale.parent
    trained = next(
        run for run in plan.table_runs("ablation", settings) if run.stage == "imagenet21k"
    )
    history = [{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "loss": 1.5, "lr": 0.1}]
    text = "".join(f"{json.dumps(line)}\n" for line in history)
    (trained.folder(settings.results) / "train.jsonl").write_text(text)
    written = publish(plan, settings)
    assert {target / "runs.jsonl", target / "training.jsonl"} <= set(written)
    assert read_outcomes(target / "tuning.csv") == [trial, newer]
    records, histories = published_runs(target), published_training(target)
    assert records[used] == {"commit": "earlier"}
    assert unused not in records
    shown = trained.folder("").relative_to("mini").as_posix()
    assert histories == {used: [{"step": 1, "loss": 2.0}], shown: history}
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert {"metrics.csv", "metrics/ablation.csv"} <= found
    assert {name for name in found if name.startswith("tables/")} == {
        *(f"tables/ablation.{suffix}" for suffix in ("md", "tex", "csv")),
        "tables/models.md",
    }
    assert len(records) == 4 * 2 + 2 + 1
    assert records["runs/crate_alpha_base_patch32/seed0/imagenet21k"]["commit"] == "c0ffee"

    # again, with nothing new: the same bytes
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert publish(plan, settings) == written
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_the_runs_that_a_shown_run_started_from_are_published_too(folder, setup, train):
    settings = setup("mini", "0")
    train(settings, [(60.0,), (61.0,), (71.0,), (72.0,)])
    text = (folder / "tables" / "ablation.yaml").read_text()
    column = text[text.index("  imagenet21k:\n") : text.index("  imagenet1k:\n")]
    rewritten(folder, column, "")
    told = rewritten(folder, "imagenet21k: imagenet21k_untrained, ", "")
    collect("ablation", told, settings)
    publish(told, settings)
    assert len(published_runs(Path(settings.results) / "published/mini")) == 4 * 2 + 1


def test_an_incomplete_table_is_not_published(plan, setup, train):
    settings = setup("mini", "0")
    train(settings, [(60.0,), (None,), (71.0,), (72.0,)])
    collect("ablation", plan, settings, partial=True)
    write_table("ablation", plan, settings)
    with pytest.raises(RunError, match="table ablation is not complete"):
        publish(plan, settings)
    assert not (metrics_csv(settings.results, "mini", "ablation").parents[2] / "published").exists()


# --- units, facts, and cells that are not ours to run -------------------------------------------


@pytest.mark.parametrize(
    ("value", "changes", "text"),
    [
        (6_090_000.0, {"factor": 1e-6, "decimals": 2}, "6.09"),
        (13_065_105_408.0, {"factor": 0.5, "decimals": None}, "6.53 G"),
        (999_400.0, {"decimals": None}, "999 k"),
        (999_600.0, {"decimals": None}, "1 M"),  # never 1e+03 k
        (1.5e27, {"decimals": None}, "1.5e+03 Y"),
        (12.0, {"decimals": None}, "12"),
        (0.0, {"decimals": None}, "0"),
    ],
)
def test_a_number_in_the_columns_unit(value, changes, text):
    column = Column(label="a", metric="b", chain="c", **changes)
    assert number(value, column) == text
    assert Cell(value, math.nan, 1, "ok").text(column) == text


def test_a_spread_is_in_the_columns_unit_too():
    column = Column(label="a", metric="b", chain="c", factor=1e-6, decimals=2)
    assert Cell(6_090_000.0, 14_200.0, 3, "ok").text(column) == "6.09 ± 0.02"


@pytest.fixture
def models(plan, finish, setup):
    """The table of sizes, with what its runs measure."""
    settings = setup("mini")
    table = plan.table("models")
    for row, _, run, _ in plan.cells(table, "mini", [0]):
        value = 86_567_656 if row.label == "ViT-B/16" else 6_090_000
        finish(run, depth=12, width=768, heads=12, parameters=value)
    collect("models", plan, settings)
    return render("models", plan, settings)


def test_facts_have_no_winner_and_are_compared_at_every_scale(models):
    assert models.headers[:4] == ["Model", "depth, ours", "depth, paper", "Δ"]
    assert not models.bold
    rows = {row[0]: dict(zip(models.headers, row, strict=True)) for row in models.rows}
    assert rows["CRATE-T/16"]["parameters (M), ours"] == "6.09"
    assert rows["CRATE-T/16"]["parameters (M), paper"] == "6.09"
    assert rows["CRATE-T/16"]["verdict"] == "reproduced"
    assert rows["ViT-B/16"]["parameters (M), ours"] == "86.57"
    assert rows["ViT-B/16"]["parameters (M), paper"] == "86.54*"
    assert rows["ViT-B/16"]["verdict"] == "see note"
    assert not any("stands in" in line for line in models.caption)  # published sizes: no data


def test_released_weights_are_a_column_where_they_can_be_had(folder, setup, finish, tmp_path):
    plan = Plan(Experiments(folder))
    settings = setup("paper").model_copy(update={"data_root": str(tmp_path / "data")})
    table = plan.table("imagenet")
    released = [run for _, key, run, _ in plan.cells(table, "paper", [0]) if key == "released"]
    assert released[1].chain == ("released", "imagenet1k_evaluated")
    wanted = set(plan.table_runs("imagenet", settings))
    assert not wanted & set(released)
    for run in wanted:
        finish(run, top1=70.0)
        for ancestor in run.ancestors:
            finish(ancestor, top1=70.0)
    collect("imagenet", plan, settings)
    rendered = render("imagenet", plan, settings)
    assert not any("released" in header for header in rendered.headers)
    assert any(
        note.startswith("ImageNet-1K top-1, released weights: not available here")
        for note in rendered.notes
    )

    # one of the files is put where it belongs
    (folder / "released.yaml").write_text(
        "crate_alpha_B16.pth: {model: crate_alpha_base_patch16, classes: 1000, "
        "format: alpha-torch, source: a test, bytes: 3}\n"
    )
    (tmp_path / "data/released").mkdir(parents=True)
    (tmp_path / "data/released/crate_alpha_B16.pth").write_bytes(b"abc")
    plan = Plan(Experiments(folder))
    new = set(plan.table_runs("imagenet", settings)) - wanted
    assert [run.model for run in new] == ["crate_alpha_base_patch16"]
    for run in new:
        finish(run.parent, parameters=1)
        finish(run, top1=81.2)
    collect("imagenet", plan, settings)
    rendered = render("imagenet", plan, settings)
    column = next(i for i, header in enumerate(rendered.headers) if "released weights" in header)
    assert {row[0]: row[column] for row in rendered.rows if row[column]} == {
        "CRATE-alpha-B/16": "81.2 °",
        **{
            row[0]: "–"
            for row in rendered.rows
            if row[0] not in ("CRATE-alpha-B/16", "chance level")
        },
    }
    assert any(note.startswith("° ") for note in rendered.notes)
    # at a scale that changes the model there is nothing to evaluate
    assert "changes the model" in plan.why_unavailable(
        dataclasses.replace(released[1], scale="mini"), settings
    )


def test_frozen_cells_come_from_the_published_records(plan, setup, train, finish):
    settings = setup("mini")
    train(settings, [[60.0], [70.0], [75.0], [76.0]])
    runs = plan.table_runs("ablation", settings)
    freeze(settings)
    assert plan.table_runs("ablation", settings) == runs  # they are not taken unasked
    asked = settings.model_copy(update={"frozen": True})
    assert plan.table_runs("ablation", asked) == []
    # one row is run here all the same: its own number counts
    own = next(run for run in runs if run.model == "crate_alpha_base_patch32" and run.parent)
    for run in (*own.ancestors, own):
        finish(run, top1=88.8)
    rows = printed(plan, asked)
    key = "ImageNet-1K top-1 (%) ↑, ours (mini: Fashion-MNIST)"
    assert rows["CRATE"][key] == "60.0 ‡"
    assert rows["+ residual (CRATE-alpha)"][key] == "88.8"
    assert any(note.startswith("‡ ") for note in render("ablation", plan, asked).notes)


def test_a_record_of_an_earlier_recipe_is_shown_and_not_compared(plan, setup, train):
    settings = setup("mini", "0,1")
    train(settings, [(60.0, 61.0), (99.0, 99.4), (75.0, 75.5), (76.0, 76.5)])
    chain = "imagenet21k/imagenet1k/run.json"
    for model, seeds in (("overcomplete", (0, 1)), ("overcomplete_decoupled", (1,))):
        for seed in seeds:
            runs = Path(settings.results) / "mini/runs"
            path = runs / f"crate_base_patch32_{model}/seed{seed}/{chain}"
            record = read_json(path)
            record["config"]["step"]["epochs"] = 91
            write_json(path, record)
    freeze(settings)
    asked = settings.model_copy(update={"frozen": True})
    rows = printed(plan, asked)
    key = "ImageNet-1K top-1 (%) ↑, ours (mini: Fashion-MNIST)"
    assert rows["+ overcomplete"][key] == "99.2 ± 0.3 §"
    assert rows["+ decoupled"][key] == "75.0 †"  # never a mean of two recipes
    rendered = render("ablation", plan, asked)
    column = rendered.headers.index(key)
    assert [rendered.rows[i][0] for i, j in rendered.bold if j == column] == [
        "+ residual (CRATE-alpha)"
    ]
    with pytest.raises(RunError, match="frozen cells"):
        publish(plan, asked)


def test_a_time_says_whose_it_is(plan, setup, finish):
    settings = setup("mini")
    table = plan.table("compute")
    for _, _, run, _ in plan.cells(table, "mini", [0]):
        finish(run, flops=2e9, parameters=1e6, images_per_second=3.14)
    collect("compute", plan, settings)
    notes = render("compute", plan, settings).notes
    assert "throughput: measured on a test's CPU, float32." in notes


def test_losses_are_thinned_by_means(plan, setup, finish):
    run = Run("mini", "crate_alpha_base_patch32", 0, ("imagenet21k",))
    folder = finish(run, top1=50.0)
    found = look_up(run, "top1", plan, setup("mini"))
    assert thinned(found) == []
    lines = (f'{{"seen": {640 * k}, "loss": {k}}}\n' for k in range(1, 401))
    (folder / "train.jsonl").write_text("".join(lines))
    points = thinned(found)
    assert len(points) == 200
    assert points[0] == (2 * 640, 1.5)  # two lines
    assert points[-1] == (400 * 640, 399.5)


def test_the_scaling_figure_is_drawn_from_what_was_collected(plan, setup, finish):
    settings = setup("mini", "0,1")
    table = plan.table("scaling")
    for place, (_, _, run, _) in enumerate(plan.cells(table, "mini", [0, 1])):
        for stage in run.lineage:
            where = finish(stage, top1=60.0 + place, flops=1e6 * (1 + place))
            lines = (f'{{"seen": {640 * k}, "loss": {2 / k}}}\n' for k in range(1, 9))
            (where / "train.jsonl").write_text("".join(lines))
    collect("scaling", plan, settings)
    first = {path.name: path.read_bytes() for path in write_figure("scaling", plan, settings)}
    assert set(first) == {"scaling.pdf", "scaling.svg", "scaling.png"}
    again = {path.name: path.read_bytes() for path in write_figure("scaling", plan, settings)}
    assert first == again
    text = first["scaling.svg"].decode()
    for words in ("paper", "ours, mini scale", "training loss by size", "training loss by patch"):
        assert f"<!-- {words} -->" in text
    losses = losses_csv(settings.results, "mini", "scaling")
    assert len(losses.read_text().splitlines()) == 1 + 6 * 2 * 8  # rows × seeds × lines


def test_curves_are_what_was_measured_while_training(plan, setup, finish):
    """Looks at the evaluated text and the end of training; what trains nothing stands at 0."""
    settings = setup("mini", "0,1")
    table = plan.table("language")
    for _, _, run, _ in plan.cells(table, "mini", [0, 1]):
        loss = 5.5 if run.stage == "openwebtext_untrained" else 2.0
        where = finish(
            run, cross_entropy=loss, bits_per_byte=2.9, parameters=1e6, tokens_per_second=9.0,
            peak_memory=1e6,
        )  # fmt: skip
        if run.chain[0] in ("openwebtext", "openwebtext_gpt2"):
            lines = (
                '{"seen": 10240, "loss": 3.0}',
                '{"seen": 20480, "loss": 2.5, "cross_entropy": 2.25}',
                '{"seen": 30720, "loss": 2.1}',
            )
            (where / "train.jsonl").write_text("\n".join(lines))
    collect("language", plan, settings)
    losses = read_losses("language", settings)
    curve = losses[(losses["row"] == "CRATE-base") & (losses["seed"] == 1)]
    assert list(zip(curve["seen"], curve["loss"], strict=True)) == [(20480, 2.25), (30720, 2.0)]
    flat = losses[(losses["row"] == "bigram") & (losses["seed"] == 0)]
    assert list(zip(flat["seen"], flat["loss"], strict=True)) == [(0, 2.0)]
    first = {path.name: path.read_bytes() for path in write_figure("language", plan, settings)}
    again = {path.name: path.read_bytes() for path in write_figure("language", plan, settings)}
    assert first == again
    text = first["language.svg"].decode()
    for words in ("training tokens", "CRATE-alpha-small", "bigram"):
        assert f"<!-- {words} -->" in text
    assert "untrained" not in text  # too far above the others


def test_training_is_drawn_of_all_runs_behind_a_table(plan, setup, finish):
    """The first seed was looked at while it trained; the second diverged; a metric at the end."""
    settings = setup("mini", "0,1")
    first, other = (Run("mini", "crate_base_patch32_plain", s, ("imagenet21k",)) for s in (0, 1))
    lines = ['{"seen": 640, "loss": 2.0, "top1": 30.0, "images_per_second": 9.0, "lr": 0.1}']
    for run, last in (
        (first, '{"seen": 1280, "loss": 1.5}'),
        (other, '{"seen": 1280, "loss": NaN}'),
    ):
        folder = finish(run, top1=50.0)
        (folder / "train.jsonl").write_text("\n".join([lines[0], last]))
    finish(Run("mini", "crate_base_patch32_plain", 0, ("imagenet21k", "imagenet1k")), top1=60.0)
    collect("ablation", plan, settings, partial=True)
    told = {
        (run["step"], run["seed"]): run["curves"] for run in read_training("ablation", settings)
    }
    assert told == {  # what trained nothing, or left no history, is not there
        ("imagenet21k", 0): {
            "training loss": [[640, 2.0], [1280, 1.5]], "top1": [[640, 30.0], [1280, 50.0]],
        },
        ("imagenet21k", 1): {
            "training loss": [[640, 2.0]], "top1": [[640, 30.0], [1280, 50.0]],
        },
    }  # fmt: skip
    # what has not ended is there while its recipe is today's
    going = Run("mini", "crate_base_patch32_overcomplete", 0, ("imagenet21k",))
    resolved, folder = plan.resolve(going), going.folder(settings.results)
    record = {"status": "running", "config": resolved.config}
    for code, curves in ((resolved.code, 3), ("another", 2)):
        write_json(folder / "run.json", record | {"code": code})
        (folder / "train.jsonl").write_text(lines[0])
        collect("ablation", plan, settings, partial=True)
        assert len(read_training("ablation", settings)) == curves

    drawn = write_figure("training_ablation", plan, settings)
    text = next(path for path in drawn if path.suffix == ".svg").read_text()
    assert text.count("<!-- imagenet21k -->") == 2  # its loss, its metric
    assert "<!-- training loss (nats) -->" in text
    assert "<!-- top-1 (%) -->" in text
    assert text.count("<!-- CRATE -->") == 1

    assert "figure_training_ablation" in plan.targets()
    assert "figure_training_compute" not in plan.targets()  # nothing is trained there
    every = plan.target_figures("figure_training")
    assert "training_transfer" in every
    assert "transfer" not in every
    assert plan.target_tables("figure_training_ablation") == ["ablation"]


def test_pictures_travel_from_runs_to_the_figure(plan, setup, finish):
    """Of the first seed, with the figure under its own name; a row without pictures is left out."""
    settings = setup("mini", "0,1")
    table = plan.table("attention_segmentation")
    for _, _, run, _ in plan.cells(table, "mini", [0, 1]):
        for stage in run.lineage:
            where = finish(stage, miou=20.0, images=1000)
        if run.model == "crate_base_patch8":
            weights = np.full((4, 14, 14), run.seed, np.float16)
            picture = np.full((56, 56, 3), 200, np.uint8)
            write_examples(where / "examples.npz", [{"image": picture, "attention": weights}])
    collect("attention_segmentation", plan, settings)
    path = examples_npz(settings.results, "mini", "attention_segmentation")
    (found,) = read_examples(path)
    assert found["row"] == "CRATE-B/8"
    assert (found["attention"] == 0).all()  # seed 0's
    first = {path.name: path.read_bytes() for path in write_figure("attention", plan, settings)}
    assert set(first) == {"attention.pdf", "attention.svg", "attention.png"}
    again = {path.name: path.read_bytes() for path in write_figure("attention", plan, settings)}
    assert first == again
    text = first["attention.svg"].decode()
    assert "<!-- head 4 -->" in text
    assert "<!-- head 5 -->" not in text
    assert "ViT" not in text


def test_reconstructions_stand_beside_their_picture(plan, setup, finish):
    """Whole, masked, each named row's own; then its attention, four heads at most."""
    settings = setup("mini", "0,1")
    table = plan.table("reconstruction")
    shades = {"CRATE-MAE-B": 60, "ViT-MAE-B": 70, "ViT-MAE-S": 80}  # the last is not drawn
    for row, _, run, _ in plan.cells(table, "mini", [0, 1]):
        where = finish(run, reconstruction=0.3, train_reconstruction=0.2)
        if row.label in shades:
            pictures = {"image": 10, "masked": 20, "reconstruction": shades[row.label]}
            example = {k: np.full((28, 28, 3), v, np.uint8) for k, v in pictures.items()}
            weights = np.arange(6 * 4, dtype=np.float16).reshape(6, 2, 2) + shades[row.label]
            write_examples(where / "examples.npz", [example | {"attention": weights}] * 2)
    collect("reconstruction", plan, settings)

    figure = draw_reconstruction("reconstruction", plan, settings)
    lines: dict[float, list] = {}  # by their place on the page
    for axes in figure.axes:
        lines.setdefault(round(axes.get_position().y0, 3), []).append(axes)
    top, bottom = (
        [float(axes.images[0].get_array().flat[0]) for axes in line] for line in lines.values()
    )
    assert (
        top
        == bottom
        == [10, 20, 60, 70, *(60 + 4 * h for h in range(4)), *(70 + 4 * h for h in range(4))]
    )
    named = [text.get_text().replace("\n", "") for text in figure.texts]
    heads = [f"head {head}" for head in (1, 2, 3, 4)]
    names = ["CRATE-MAE-B", "ViT-MAE-B"]
    assert [name for name in named if name in ("original", "masked", *names)] == [
        "original", "masked", *names,
    ]  # fmt: skip
    assert [name for name in named if name.startswith("head")] == heads * 2
    assert [name for name in named if name.endswith(", attention")] == [
        f"{name}, attention" for name in names
    ]
    first, again = (
        {path.name: path.read_bytes() for path in write_figure("reconstruction", plan, settings)}
        for _ in range(2)
    )
    assert set(first) == {f"reconstruction.{suffix}" for suffix in ("pdf", "svg", "png")}
    assert first == again


def test_a_figures_rows_are_rows_of_its_table(folder):
    path = folder / "tables" / "reconstruction.yaml"
    text = path.read_text()
    path.write_text(text.replace("rows: [CRATE-MAE-B,", "rows: [CRATE-MAE,"))
    with pytest.raises(UsageError, match=r"figure: rows: unknown row 'CRATE-MAE'"):
        Experiments(folder).table("reconstruction")
    path.write_text(text.replace("kind: reconstruction", "kind: attention"))
    with pytest.raises(UsageError, match="give 'rows' only for the kind 'reconstruction'"):
        Experiments(folder).table("reconstruction")


def test_what_a_run_remarks_stands_below_the_table(plan, setup, finish):
    settings = setup("mini")
    table = plan.table("objects")
    values = {column.metric: 1.0 for column in table.columns.values()}
    for _, _, run, _ in plan.cells(table, "mini", [0]):
        for stage in run.lineage:
            where = finish(stage, images=1000, **values)
        if run.stage == "coco_maskcut_alpha":
            record = json.loads((where / "run.json").read_text())
            write_json(where / "run.json", record | {"remark": "without CRF: it is missing"})
    collect("objects", plan, settings)
    notes = render("objects", plan, settings).notes
    assert "CRATE-alpha-B/8, CRATE-B/8, alpha's protocol: without CRF: it is missing." in notes


def test_a_caption_names_the_stand_ins_of_every_row(plan):
    named = plan.caption_facts("objects", "mini")["stand_ins"]
    assert set(named) == {"coco", "imagenet21k", "imagenet21k_fall11"}  # CRATE-alpha's, CRATE's


def test_two_figures_have_two_names(folder):
    path = folder / "tables" / "objects.yaml"
    path.write_text(path.read_text().replace("kind: masks", "kind: masks\n  name: attention"))
    with pytest.raises(UsageError, match="'attention' belongs to table attention_segmentation"):
        Plan(Experiments(folder)).figures()


def test_a_set_that_was_not_whole_in_training_is_not_judged(plan, setup, finish):
    run = Run("paper", "crate_alpha_base_patch32", 0, ("ade20k",))
    where = finish(run, miou=40.0, images=2_000)
    record = json.loads((where / "run.json").read_text())
    settings = setup("paper")
    for count, status in ((20_210, "ok"), (50, "incomplete")):
        write_json(where / "run.json", record | {"training_images": count})
        assert look_up(run, "miou", plan, settings).status == status


def test_nor_is_what_follows_it(plan, setup, finish):
    """A count of half a text, evaluated on all of another; a text told in words may be odd."""
    settings = setup("paper")
    parent = Run("paper", "gpt2_base", 0, ("openwebtext_bigram",))
    where = finish(parent, cross_entropy=5.0, documents=4_007)
    record = json.loads((where / "run.json").read_text())
    children = {"lambada": 5_153, "wikitext": 62}  # WikiText's articles are counted by headings
    runs = [dataclasses.replace(parent, chain=(parent.stage, name)) for name in children]
    for run, documents in zip(runs, children.values(), strict=True):
        finish(run, cross_entropy=6.0, documents=documents)
    for count, status in ((8_009_762, "ok"), (50, "incomplete")):
        write_json(where / "run.json", record | {"training_documents": count})
        for run in (parent, *runs):
            assert look_up(run, "cross_entropy", plan, settings).status == status
    finish(runs[0], cross_entropy=6.0, documents=5_000)
    write_json(where / "run.json", record)
    assert look_up(runs[0], "cross_entropy", plan, settings).status == "incomplete"


def test_a_cell_that_is_not_judged_says_why(plan, setup, finish):
    settings = setup("paper")
    for _, _, run, _ in plan.cells(plan.table("white_box"), "paper", [0]):
        for stage in run.lineage:
            where = finish(stage, box_ap50=1.0, box_ap75=1.0, box_ap=1.0, miou=1.0, images=4_985)
        record = json.loads((where / "run.json").read_text())
        write_json(where / "run.json", record | {"remark": "15 of 5,000 pictures failed"})
    collect("white_box", plan, settings)
    told = "\n".join(render("white_box", plan, settings).notes)
    assert "15 of 5,000 pictures failed." in told
    assert "¶ the number of images or documents is not that of the data set" in told


def test_published_pictures_stand_in_for_runs_that_are_not_here(plan, setup, finish):
    settings = setup("mini")
    table = plan.table("objects")
    values = {column.metric: 1.0 for column in table.columns.values()}
    for _, _, run, _ in plan.cells(table, "mini", [0]):
        for stage in run.lineage:
            where = finish(stage, images=1000, **values)
        picture = np.full((8, 8, 3), 200, np.uint8)
        write_examples(where / "examples.npz", [{"image": picture, "masks": []}])
    collect("objects", plan, settings)
    write_table("objects", plan, settings)
    write_figure("objects", plan, settings)
    publish(plan, settings)
    shutil.rmtree(Path(settings.results) / "mini")
    frozen = settings.model_copy(update={"frozen": True})
    collect("objects", plan, frozen)
    rows = [e["row"] for e in read_examples(examples_npz(settings.results, "mini", "objects"))]
    assert rows == [row.label for row in table.rows]
