"""The names of points in a chart, placed where they cover neither points nor each other."""

import math

from crate.reporting.style import LINE, legend_below, text_width

# a name is tried at these places around its point: the angle in degrees, the distance in points
ANGLES = (0, 180, 90, 270, 45, 315, 135, 225)
DISTANCES = (5, 9, 14, 20, 28, 38, 50, 64, 80)


def name_points(figure, named: dict, handles: dict) -> None:
    """Write the names of points, and the figure's legend, label → handle, below.

    `named` is, by axes, label → (x, y). Where there is no room for all names, points have numbers,
    which the legend explains.
    """
    from matplotlib.lines import Line2D

    names = {label: label for points in named.values() for label in points}
    height = figure.get_figheight()
    legend_below(figure, handles)
    figure.draw_without_rendering()  # the layout decides where points are
    placed = {axes: _places(axes, points, names) for axes, points in named.items()}
    if any(None in places.values() for places in placed.values()):
        for legend in list(figure.legends):
            legend.remove()
        figure.set_figheight(height)
        names = {label: str(place) for place, label in enumerate(names, start=1)}
        told = {label: label for label in handles}
        told |= {label: f"{number}: {label}" for label, number in names.items()}
        unlined = Line2D([], [], linestyle="")
        legend_below(figure, {told[label]: handles.get(label, unlined) for label in told})
        figure.draw_without_rendering()
        placed = {axes: _places(axes, points, names) for axes, points in named.items()}
    for axes, points in named.items():
        for label, shift in placed[axes].items():
            far = shift is not None and math.hypot(*shift) > 12 + 36 * text_width(names[label])
            line = {"arrowstyle": "-", "color": "0.6", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
            axes.annotate(
                names[label].replace("$", r"\$"), points[label], shift or (0, 8),
                textcoords="offset points", ha="center", va="center",
                arrowprops=line if far else None,
            ).set_in_layout(False)  # fmt: skip


def _places(axes, points: dict[str, tuple], names: dict[str, str]) -> dict:
    """Label → the offset, in points, of its name's middle; None where there is no free place."""
    scale = 72 / axes.figure.dpi
    frame = axes.bbox.x0 * scale, axes.bbox.y0 * scale, axes.bbox.x1 * scale, axes.bbox.y1 * scale
    spots = {label: axes.transData.transform(point) * scale for label, point in points.items()}
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in spots.values()]
    for container in axes.containers:  # the whiskers
        for bars in container[2]:
            for (x, low), (_, high) in axes.transData.transform(bars.get_segments()[0])[None]:
                taken.append((x * scale - 2, low * scale - 2, x * scale + 2, high * scale + 2))
    shifts: dict[str, tuple | None] = {}
    for label, (x, y) in spots.items():
        wide, high = 36 * text_width(names[label]) + 1, 36 * LINE
        shifts[label] = None
        for distance, angle in ((d, math.radians(a)) for d in DISTANCES for a in ANGLES):
            right = math.cos(angle) * distance + round(math.cos(angle)) * wide
            up = math.sin(angle) * distance + round(math.sin(angle)) * high
            box = (x + right - wide, y + up - high, x + right + wide, y + up + high)
            inside = all(box[i] >= frame[i] and box[i + 2] <= frame[i + 2] for i in (0, 1))
            if inside and not any(_meet(box, other) for other in taken):
                shifts[label] = (right, up)
                taken.append(box)
                break
    return shifts


def _meet(one: tuple, other: tuple) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))
