"""Figures as they are printed: size, type, labels, of published records and of hard tables.

Hard tables have many rows with long labels, or one row; equal values, values that are missing, and
no numbers of the paper.
"""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from crate.data.examples import write_examples
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.reporting.collect import examples_npz, layers_json, losses_csv, metrics_csv
from crate.reporting.figures import write_figure

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
WIDTHS = (3.3, 6.8)  # inches: a column and the text of a page
MODELS = (
    "crate_tiny_patch8", "crate_base_patch32_overcomplete", "crate_alpha_base_patch32",
    "crate_alpha_large_patch14", "vit_base_patch16",
)  # fmt: skip
LONG = "An unusually long name of a row: CRATE-alpha-B/32_with_everything-else (d 384), variant {}"
TABLES = (  # one for each kind of figure
    "ablation", "attention_segmentation", "language", "layerwise", "objects", "reconstruction",
    "scaling", "tokens", "zeroshot",
)  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, request):
    """The figures that are saved, as matplotlib has them; of hard tables, no files of content."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    written = "published" in request.fixturenames

    def remember(figure, path, **options):
        figures.append(figure)
        if written:
            save(figure, path, **options)
        else:
            path.touch()

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def texts_of(figure, monkeypatch) -> list:
    """Every text that is drawn, and where: (text, its box in pixels)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    found, draw = [], Text.draw

    def note(text, renderer, *args, **options):
        if text.get_visible() and text.get_text().strip():
            found.append((text, Text.get_window_extent(text, renderer)))
        draw(text, renderer, *args, **options)

    with monkeypatch.context() as patched:
        FigureCanvasAgg(figure).draw()  # the layout comes to rest
        patched.setattr(Text, "draw", note)
        FigureCanvasAgg(figure).draw()
    return found


def faults(figure, monkeypatch) -> list[str]:
    """What a reader of the printed figure would complain about."""
    found = []
    if not any(abs(figure.get_figwidth() - width) < 1e-9 for width in WIDTHS):
        found.append(f"the figure is {figure.get_figwidth()} inches wide")
    texts = texts_of(figure, monkeypatch)
    edge = figure.bbox
    for text, box in texts:
        words = text.get_text()
        if text.get_fontsize() < 7:
            found.append(f"{words!r} has {text.get_fontsize()} pt")
        if re.search(r"\$.*[_^].*\$", words):
            found.append(f"{words!r} has smaller letters")
        if box.x0 < -1 or box.y0 < -1 or box.x1 > edge.x1 + 1 or box.y1 > edge.y1 + 1:
            found.append(f"{words!r} goes beyond the edge")
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > 1 and high > 1:
            found.append(f"{one.get_text()!r} is over {other.get_text()!r}")
    for legend in [*figure.legends, *filter(None, (a.get_legend() for a in figure.axes))]:
        if any(legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes):
            found.append("a legend covers a panel")
    return found + [fault for axes in figure.axes for fault in faults_of(axes)]


def faults_of(axes) -> list[str]:
    found = []
    pictures = axes.images and not axes.lines
    if axes.axison and axes.has_data() and not pictures:
        grid = axes.get_subplotspec()
        for name, place, shared in (("x", "colspan", "rowspan"), ("y", "rowspan", "colspan")):
            beside = [  # one label may tell for a line of panels
                other
                for other in axes.figure.axes
                if getattr(other.get_subplotspec(), place) == getattr(grid, place)
            ]
            outer = (max if name == "x" else min)(
                beside, key=lambda other: getattr(other.get_subplotspec(), shared).start
            )
            if not any(getattr(each, f"get_{name}label")() for each in (axes, outer)):
                found.append(f"the {name} axis of {axes.get_title()!r} has no name")
    for bar in (bar for bars in axes.containers for bar in getattr(bars, "patches", [])):
        low, high = axes.get_xlim() if bar.get_height() < 0.9 else axes.get_ylim()
        if not low <= 0 <= high:
            found.append(f"a bar of {axes.get_title()!r} does not begin at zero")
            break
    return found


# --- as published -----------------------------------------------------------


@pytest.fixture
def published(plan, tmp_path):
    settings = plan.experiments.settings({"scale": "mini", "results": str(tmp_path / "results")})
    target = Path(settings.results) / "mini" / "metrics"
    shutil.copytree(PUBLISHED / "mini" / "metrics", target)
    older = target / "efficient_scaling.losses.csv"  # its column has an earlier name
    older.write_text(older.read_text().replace(",images,", ",seen,", 1))
    return settings


FIGURES = (
    "ablation", "attention", "clip", "efficient_scaling", "language", "layerwise", "objects",
    "reconstruction", "scaling", "tokens",
)  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_published_figure_is_fit_for_print(name, plan, published, drawn, monkeypatch):
    pdf, svg, png = write_figure(name, plan, published)
    assert faults(drawn[0], monkeypatch) == []
    wide, high = drawn[0].get_size_inches()
    _, _, right, top = map(float, re.search(rb"/MediaBox \[([^]]*)\]", pdf.read_bytes())[1].split())
    assert (right / 72, top / 72) == pytest.approx((wide, high), abs=0.01)
    size = re.search(r'<svg [^>]*?height="([\d.]+)pt"[^>]*?width="([\d.]+)pt"', svg.read_text())
    size = size or re.search(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"', svg.read_text())
    assert sorted(float(each) / 72 for each in size.groups()) == pytest.approx(
        sorted((wide, high)), abs=0.01
    )
    with Image.open(png) as image:
        dpi = image.info["dpi"][0]
        assert dpi > 199
        assert image.width / dpi == pytest.approx(wide, abs=0.01)
    assert b"/TrueType" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()  # shapes of letters instead of a font


def test_a_matplotlibrc_changes_nothing(plan, published, monkeypatch):
    import matplotlib

    before = [path.read_bytes() for path in write_figure("ablation", plan, published)]
    with matplotlib.rc_context({"savefig.bbox": "tight", "font.size": 14, "figure.dpi": 50}):
        assert [path.read_bytes() for path in write_figure("ablation", plan, published)] == before


# --- hard tables -----------------------------------------------------------


def hard(folder, name: str, labels: list[str], paper: bool) -> Plan:
    """A plan in which a table has other rows; without `paper`, none of the paper's numbers."""
    path = folder / "tables" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    known = {"reconstruction": ("crate_mae_base",), "zeroshot": ("crate_alpha_clipa_base_patch16",)}
    models = known.get(name, ("gpt2_base", "crate_gpt_base") if name == "language" else MODELS)
    number = {"value": 76.5, "source": "a paper", "mark": "A"}
    content["rows"] = [
        {"label": label, "model": model}
        | ({"paper": dict.fromkeys(content["columns"], number)} if paper else {})
        for label, model in zip(labels, itertools.cycle(models), strict=False)
    ]
    content["figure"].pop("rows", None)
    if "panels" in content["figure"]:
        content["figure"]["panels"] = {"by size": labels, "by patch": labels}
    path.write_text(yaml.safe_dump(content))
    return Plan(Experiments(folder))


def measured(name: str, plan: Plan, settings, values: list[list[float]]) -> None:
    """What is collected of a table whose n-th row has values[n], a value a seed, in each column."""
    content = plan.experiments.table(name)
    lines, losses, layers, examples, training = [], [], [], [], []
    ramp = np.linspace(0, 1, 20)
    for row, of_row in zip(content.rows, values, strict=True):
        for seed, value in enumerate(of_row):
            for key, column in content.columns.items():
                each = dict.fromkeys(("chain", "metric", "note", "run"), "")
                each["status"] = "missing" if np.isnan(value) else "ok"
                each |= {"row": row.label, "column": key, "model": row.model, "seed": seed}
                lines.append(each | {"value": value / column.factor})
            if np.isnan(value):
                continue
            curve = [(640 * k, value / 30 + 2 / k) for k in range(1, 20)]
            losses += [
                {"row": row.label, "seed": seed, "seen": seen, "loss": loss} for seen, loss in curve
            ]
            terms = ("compression", "official", "sparsity", "objective", "codes")
            of_layers = {term: {"mean": [0.5, 0.25, 0.1], "std": [0.1] * 3} for term in terms}
            bins = {"edges": list(1 + ramp), "counts": [[7] * 19] * 3}
            layers.append(
                {"row": row.label, "seed": seed, "evaluated": of_layers, "train": of_layers}
                | {"histograms": {"norm": bins, "nonzero": bins}}
            )
            for step in ("imagenet21k", "flowers102_from21k", "imagenet1k", "cifar100_from21k"):
                curves = {"training loss": curve, "top1": curve[-1:], "a_metric_of_ones_own": curve}
                training.append(
                    {"row": row.label, "model": row.model, "seed": seed, "step": step}
                    | {"unit": "images", "curves": curves}
                )
        picture = np.full((48, 64, 3), 200, np.uint8)
        maps = np.zeros((6, 6, 8), np.float16)
        examples += [
            {"row": row.label, "image": picture, "masked": picture, "reconstruction": picture}
            | {"masks": np.zeros((1, 48, 64), bool), "attention": maps, "colours": picture[:6, :8]}
        ] * 3
    where = (settings.results, settings.scale, name)
    metrics_csv(*where).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).to_csv(metrics_csv(*where), index=False)
    columns = ["row", "seed", "seen", "loss"]
    pd.DataFrame(losses, columns=columns).to_csv(losses_csv(*where), index=False)
    layers_json(*where).write_text(json.dumps(layers))
    metrics_csv(*where).with_suffix(".training.json").write_text(json.dumps(training))
    write_examples(examples_npz(*where), examples)


TEN = [LONG.format(number) for number in range(10)]
HARD = {  # labels, values, whether the paper has numbers
    "ten equal rows with long labels": (TEN, [[76.5, 76.5]] * 10, True),
    "ten rows, values missing": (
        TEN,
        [[70.0 + n, 70.5 + n] if n % 3 else [float("nan")] * 2 for n in range(10)],
        False,
    ),
    "one row": (["a $ and a $"], [[76.512]], True),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", TABLES)
def test_a_hard_table_is_fit_for_print(case, name, folder, tmp_path, drawn, monkeypatch):
    labels, values, paper = HARD[case]
    plan = hard(folder, name, labels, paper)
    settings = plan.experiments.settings({"scale": "mini", "results": str(tmp_path / "results")})
    measured(name, plan, settings, values)
    training = ["training_ablation"] if name == "ablation" else []  # alike for every table
    for figure in (plan.figure_of(name), *training):
        drawn.clear()
        write_figure(figure, plan, settings)
        assert faults(drawn[0], monkeypatch) == []


def test_nothing_collected_is_said(folder, tmp_path, drawn, monkeypatch):
    for name in TABLES:
        plan = hard(folder, name, ["one row"], False)
        settings = plan.experiments.settings({"scale": "mini", "results": str(tmp_path / "r")})
        measured(name, plan, settings, [[float("nan")]])
        examples = examples_npz(settings.results, "mini", name)
        write_examples(examples, [])
        drawn.clear()
        write_figure(plan.figure_of(name), plan, settings)
        words = {text.get_text() for text, _ in texts_of(drawn[0], monkeypatch)}
        assert words & {"not available", "n/a", "no pictures here", "no runs here"}, name
        assert faults(drawn[0], monkeypatch) == []


def test_a_model_has_one_colour_in_every_figure(plan):
    """By its architecture; in grey it differs by marker, dash or shade."""
    from crate.reporting.style import looks

    hues = {}
    for name in plan.experiments.tables:
        rows = plan.experiments.table(name).rows
        found = looks(rows)
        for row in rows:
            hues.setdefault(row.model, set()).add(
                (found[row.label].colour, found[row.label].marker)
            )
        competitors = [row for row in rows if not row.control]
        assert len({found[row.label] for row in competitors}) == len(competitors) or len(rows) > 20
    assert all(len(found) == 1 for found in hues.values())
    assert hues["crate_alpha_base_patch32"] == hues["crate_alpha_base_patch8"]
    assert not hues["crate_base_patch16"] & (
        hues["vit_base_patch16"] | hues["crate_alpha_base_patch8"]
    )
