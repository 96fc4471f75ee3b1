"""Figures: `metrics/<table>.*` and the table's YAML → `figures/<figure>.{pdf,svg,png}`.

Equal numbers give equal bytes. This module imports no torch, and matplotlib only to draw.
"""

import os
from pathlib import Path

from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import atomic_path
from crate.reporting import by_layer, charts, curves, pictures
from crate.reporting.style import RC

# kind of figure, in a table's YAML → what draws it
DRAWERS = {
    "bars": charts.draw_bars,
    "layers": by_layer.draw_layers,
    "tokens": by_layer.draw_tokens,
    "scaling": charts.draw_scaling,
    "masks": pictures.draw_masks,
    "attention": pictures.draw_attention,
    "curves": curves.draw_curves,
    "stages": charts.draw_stages,
    "reconstruction": pictures.draw_reconstruction,
}


def write_figure(name: str, plan: Plan, settings: Settings) -> list[Path]:
    """Draw a figure of `plan.figures()` into `figures/<name>.{pdf,svg,png}`, of one size."""
    os.environ.setdefault("MPLCONFIGDIR", str(Path(settings.results) / ".matplotlib"))
    import matplotlib

    matplotlib.use("agg")
    table = plan.figures()[name]
    kind = None if plan.shows_training(name) else plan.table(table).figure.kind
    draw = DRAWERS[kind] if kind else curves.draw_training
    paths = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says, of savefig.bbox for one
        matplotlib.rcParams.update(RC)
        figure = draw(table, plan, settings)
        for suffix, metadata in (
            ("pdf", {"CreationDate": None}),
            ("svg", {"Date": None}),
            ("png", {"Software": None}),
        ):
            path = Path(settings.results) / settings.scale / "figures" / f"{name}.{suffix}"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata, dpi=DPI)
            paths.append(path)
    return paths


DPI = 300  # of the PNG, and of pictures in the others
