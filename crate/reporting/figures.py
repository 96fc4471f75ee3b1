"""Figures: `metrics/<table>.*` and the table's YAML → `figures/<figure>.{pdf,svg,png}`.

Equal numbers give equal bytes. This module imports no torch, and matplotlib only to draw.
"""

import os
from pathlib import Path

from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import atomic_path
from crate.reporting import by_layer, charts, pictures

# kind of figure, in a table's YAML → what draws it
DRAWERS = {
    "bars": charts.draw_bars,
    "layers": by_layer.draw_layers,
    "tokens": by_layer.draw_tokens,
    "scaling": charts.draw_scaling,
    "masks": pictures.draw_masks,
    "attention": pictures.draw_attention,
    "curves": charts.draw_curves,
    "stages": charts.draw_stages,
    "reconstruction": pictures.draw_reconstruction,
}


def write_figure(name: str, plan: Plan, settings: Settings) -> list[Path]:
    """Draw a figure of `plan.figures()` into `figures/<name>.{pdf,svg,png}`."""
    os.environ.setdefault("MPLCONFIGDIR", str(Path(settings.results) / ".matplotlib"))
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "crate", "font.size": 9, "pdf.fonttype": 42})
    table = plan.figures()[name]
    if plan.shows_training(name):
        figure = charts.draw_training(table, plan, settings)
    else:
        figure = DRAWERS[plan.experiments.table(table).figure.kind](table, plan, settings)
    paths = []
    for suffix, metadata in (
        ("pdf", {"CreationDate": None}),
        ("svg", {"Date": None}),
        ("png", {"Software": None}),
    ):
        path = Path(settings.results) / settings.scale / "figures" / f"{name}.{suffix}"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata, dpi=200)
        paths.append(path)
    return paths
