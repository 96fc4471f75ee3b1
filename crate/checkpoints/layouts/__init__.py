"""Layouts of official checkpoints, one file a family; `LAYOUTS` is the table of all.

May import models and the ground; no torch before a tensor is touched.
"""

from crate.checkpoints.layouts import clipa, crate, gpt, mae
from crate.checkpoints.layouts.base import Layout

# Name → layout. A file has the first of these whose sign it holds.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (*crate.LAYOUTS, *clipa.LAYOUTS, *mae.LAYOUTS, *gpt.LAYOUTS)
}
