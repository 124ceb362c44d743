"""The figures of a report: matplotlib draws, and the SVG is made fit for a page.

Fit means: text stays text, colours follow the page's light or dark scheme, there is no inline
style (so a strict Content-Security-Policy holds), ids differ between figures, and a screen reader
finds a title and a description.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from endprompt import theory
from endprompt.errors import PositionError
from endprompt.io.files import writing
from endprompt.report.run_files import Arm, Run, arms, label, number, roles, window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours are names here: the page's style sheet gives each a light and a dark value.
INK, MUTED, GRID, ACCENT = "#1b1f24", "#5d6672", "#d7dce2", "#0b6bcc"
SERIES = (ACCENT, "#c2420d", "#0f7a55", "#8e45ad", "#946a00", "#c92f68", "#0e7491", "#4f5d2f")
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
STYLES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)), (0, (8, 3)))
WIDTH = 5.4
"""Inches: on a phone the figure is shown nearly one to one, and its text can be read."""

SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "endprompt",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Drawing:
    """A figure with its description for readers who can't see it."""

    name: str
    title: str
    description: str
    figure: Figure

    def svg(self, *, themed: bool = False) -> str:
        """The figure as SVG; `themed` makes it follow the style sheet of the page around it."""
        out = io.StringIO()
        with settings(), warnings.catch_warnings():
            # A label in a script that the font lacks: the reader's own font will draw it.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(out, format="svg", metadata=nothing, transparent=True)
        return _fit_for_a_page(out.getvalue(), self, themed=themed)

    def inline(self) -> dict[str, Any]:
        """Title and SVG for a template: out of an XML writer, so not to be escaped again."""
        from markupsafe import Markup

        named = replace(self, name=self.name.replace(".", "-"))
        return {"title": named.title, "svg": Markup(named.svg(themed=True))}

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.svg and NAME.png into a folder; returns both paths."""
        paths = [folder / f"{self.name}.svg", folder / f"{self.name}.png"]
        with writing(paths[0]) as partial:
            partial.write_text(self.svg(), encoding="utf-8")
        with writing(paths[1]) as partial, settings(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.figure.savefig(partial, format="png", dpi=160, facecolor="white")
        return paths


def settings() -> Any:
    import matplotlib

    return matplotlib.rc_context(rc=SETTINGS)


def _fit_for_a_page(svg: str, drawing: Drawing, *, themed: bool) -> str:
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        _without_style(element, themed=themed)
        _with_own_ids(element, drawing.name)
    root.set("stroke-linejoin", "round")
    heads = {}
    for place, (tag, text) in enumerate((("title", drawing.title), ("desc", drawing.description))):
        head = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{drawing.name}-{tag}"})
        head.text = text
        root.insert(place, head)
        heads[tag] = head.get("id")
    root.set("role", "img")
    root.set("aria-labelledby", f"{heads['title']} {heads['desc']}")
    if themed:
        del root.attrib["width"], root.attrib["height"]
    return ElementTree.tostring(root, encoding="unicode")


def _without_style(element: ElementTree.Element, *, themed: bool) -> None:
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = declaration.partition(":")
        if not value:
            continue
        name, value = name.strip(), value.strip()
        if name == "font-family":
            value = _FONT
        elif themed and value in NAMES:
            value = f"var(--{NAMES[value]}, {value})"
        element.set(name, value)
    if themed and element.tag == f"{{{_SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")


def _with_own_ids(element: ElementTree.Element, prefix: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.attrib['id']}")
    if _XLINK in element.attrib:
        element.set("href", f"#{prefix}-{element.attrib.pop(_XLINK)[1:]}")
    clip = element.attrib.get("clip-path", "")
    if clip.startswith("url(#"):
        element.set("clip-path", f"url(#{prefix}-{clip[5:]}")


def thousands(value: float, _: object = None) -> str:
    """A count of tokens in few characters.

    >>> thousands(16384), thousands(500), thousands(1536)
    ('16K', '500', '1.5K')
    """
    if value < 1024:
        return f"{value:.0f}"
    return f"{value / 1024:.1f}".removesuffix(".0") + "K"


def looks(run: Run) -> dict[str, dict[str, Any]]:
    """A colour, a line and a width for every arm, the same in all figures of a page."""
    chosen, colour, style = {}, 1, 1
    for arm, role in roles(run):
        name = str(arm.get("name"))
        if role == "method":
            chosen[name] = {"color": SERIES[0], "linestyle": "-", "linewidth": 2.2}
        elif role == "base":
            chosen[name] = {"color": MUTED, "linestyle": ":", "linewidth": 1.8}
        else:
            chosen[name] = {
                "color": SERIES[1:][(colour - 1) % (len(SERIES) - 1)],
                "linestyle": STYLES[style % len(STYLES)],
                "linewidth": 1.5,
            }
            colour, style = colour + 1, style + 1
    return chosen


def new(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > 34 else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=3)


def _mark_window(axes: Axes, run: Run) -> str:
    """Dash the old window and the target; returns the words that explain the marks."""
    marked = []
    for place, name in ((window(run), "old window"), (run.get("target"), "target")):
        low, high = axes.get_xlim()
        if place is not None and low <= place <= high:
            axes.axvline(place, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            marked.append(f"{name} {thousands(place)}")
    return f" (dashed: {', '.join(marked)})" if marked else ""


def loss_by_position(run: Run) -> Drawing | None:
    """Loss against position in the text, one line an arm; None where nobody measured it."""
    with settings():
        figure, grid = new(3.2)
        axes, look, said, far = grid[0][0], looks(run), [], 0.0
        for arm in arms(run):
            points = _positions(arm)
            if not points:
                continue
            x, y = zip(*points, strict=True)
            far = max(far, *x)
            axes.plot(x, y, label=label(arm), **look[str(arm.get("name"))])
            said.append(f"{label(arm)} goes from {y[0]:.2f} to {y[-1]:.2f}")
        if not said:
            return None
        axes.set_ylabel("loss, nats per token")
        _token_ticks(axes, far)
        axes.set_xlim(0, far * 1.05)
        axes.set_xlabel("position in the text, tokens" + _mark_window(axes, run))
        legend(figure, axes)
    return Drawing(
        "loss-by-position", "Loss by position in the text", "; ".join(said) + ".", figure
    )


def _positions(arm: Arm) -> list[tuple[float, float]]:
    points = []
    for stretch in (arm.get("evaluation") or {}).get("loss_by_position") or []:
        start, end, mean = (number(stretch.get(key)) for key in ("start", "end", "mean"))
        if start is not None and end is not None and mean is not None:
            points.append(((start + end) / 2, mean))
    return points


def _token_ticks(axes: Axes, far: float) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    step = next((s for s in (128 * 2**n for n in range(20)) if far / s <= 8), far)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))


def needle_map(run: Run) -> Drawing | None:
    """Heat map of needles, depth by length, one panel an arm; None where nobody measured it."""
    score = "digits" if any("digits" in at for at in _depths(run)) else "hits"
    grids = {}
    for arm in arms(run):
        needle = (arm.get("evaluation") or {}).get("needle") or {}
        cells = {
            (int(length), float(at["depth"])): number(at.get(score))
            for length, record in needle.items()
            for at in record.get("by_depth") or []
        }
        if cells:
            grids[label(arm)] = cells
    if not grids:
        return None
    lengths = sorted({length for cells in grids.values() for length, _ in cells})
    depths = sorted({depth for cells in grids.values() for _, depth in cells})
    columns = 2 if len(lengths) <= 6 else 1
    rows = -(-len(grids) // columns)
    with settings():
        figure, panels = new(
            rows * (0.75 + 0.22 * len(depths)), rows, columns, sharex=True, sharey=True
        )
        for axes, (name, cells) in zip(panels.flat, grids.items(), strict=False):
            _heat(axes, name, [[cells.get((n, d)) for n in lengths] for d in depths])
            axes.set_xticks(range(len(lengths)), [thousands(n) for n in lengths])
            axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        for axes in panels.flat[len(grids) :]:
            axes.remove()
        figure.supxlabel("length, tokens", fontsize=9)
        figure.supylabel("depth in the text", fontsize=9)
    said = []
    for name, cells in grids.items():
        seen = [value for value in cells.values() if value is not None]
        if seen:
            said.append(f"{name}: {sum(seen) / len(seen):.2f} on average")
    what = "Digit accuracy" if score == "digits" else "Exact match"
    return Drawing("needles", f"Needles: {what.lower()}", "; ".join(said) + ".", figure)


def _depths(run: Run) -> Iterable[Mapping[str, Any]]:
    for arm in arms(run):
        for record in ((arm.get("evaluation") or {}).get("needle") or {}).values():
            yield from record.get("by_depth") or []


def _heat(axes: Axes, name: str, values: Sequence[Sequence[float | None]]) -> None:
    from matplotlib import colormaps

    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(name, fontsize=8.5)
    colours = colormaps["cividis"]
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            fill = "none" if value is None else colours(value)
            axes.add_patch(_square(column, row, fill))
            text = "–" if value is None else f"{value:.2f}".replace("0.", ".", 1)
            ink = MUTED if value is None else ("#ffffff" if value < 0.55 else "#101010")
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlim(-0.5, len(values[0]) - 0.5)
    axes.set_ylim(len(values) - 0.5, -0.5)


def _square(column: int, row: int, fill: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.48, row - 0.46), 0.96, 0.92, facecolor=fill, edgecolor=GRID, lw=0.6
    )


def training_row(run: Run) -> Drawing | None:
    """One training row: its tokens as they lie in the array, and the positions they are given."""
    parts = row_parts(run)
    if not parts:
        return None
    length = sum(last - first + 1 for _, first, last in parts)
    target = max(int(run.get("target") or 0), max(last for _, _, last in parts) + 1)
    with settings():
        figure, grid = new(1.75)
        axes = grid[0][0]
        axes.grid(False)
        axes.spines[:].set_visible(False)
        at = 0
        for kind, first, last in parts:
            size = last - first + 1
            colour = SERIES[1] if kind == "terminal" else SERIES[0]
            # A terminal of 20 tokens in 64K would be thinner than a hair.
            least = target * 0.004
            top = (at, at + max(size, least))
            low = (
                (max(0, last + 1 - max(size, least)), last + 1) if first else (0, max(size, least))
            )
            axes.fill(*_box(*top, 2.0, 2.5), color=colour, linewidth=0)
            axes.fill(*_box(*low, 0.5, 1.0), color=colour, linewidth=0)
            slope = [top[0], top[1], low[1], low[0]]
            axes.fill(slope, [2, 2, 1, 1], color=colour, alpha=0.3, linewidth=0.8)
            at += size
        axes.plot([0, target], [0.5, 0.5], color=MUTED, linewidth=1, solid_capstyle="butt")
        axes.set_xlim(-target * 0.01, target * 1.01)
        axes.set_ylim(0.3, 2.6)
        axes.set_yticks([2.25, 0.75], [f"{length:,} tokens,\nas they lie", "positions\nthey get"])
        axes.tick_params(axis="y", length=0)
        marks = sorted({0, target} | ({window(run)} if window(run) else set()))
        axes.set_xticks(marks, [thousands(mark) for mark in marks])
        for mark in marks[1:-1]:
            axes.plot([mark, mark], [0.4, 1.15], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xlabel("position (old window and target marked)", fontsize=8.5)
    said = ", then ".join(
        f"{last - first + 1:,} {kind} tokens at positions {first:,} to {last:,}"
        for kind, first, last in parts
    )
    return Drawing("training-row", "The positions of one training row", said + ".", figure)


def row_parts(run: Run) -> list[tuple[str, int, int]]:
    """Kind, first and last position of each part of the example row, in the array's order."""
    row = run.get("example_row") or {}
    parts = []
    for segment in row.get("segments") or []:
        first, last = segment.get("positions") or (None, None)
        if isinstance(first, int) and isinstance(last, int) and last >= first >= 0:
            parts.append((str(segment.get("kind", "text")), first, last))
    return parts


def _box(left: float, right: float, low: float, high: float) -> tuple[list[float], list[float]]:
    return [left, right, right, left], [low, low, high, high]


def training(run: Run) -> Drawing | None:
    """Loss of prefix and terminal over training, apart; None where nothing was trained."""
    panels = (("prefix_loss", "loss on the prefix"), ("terminal_loss", "loss on the terminal"))
    shown = [(key, title) for key, title in panels if any(_points(arm, key) for arm in arms(run))]
    if not shown:
        return None
    with settings():
        figure, grid = new(0.5 + 1.9 * len(shown), len(shown), sharex=True)
        look, said = looks(run), []
        for axes, (key, title) in zip(grid.flat, shown, strict=True):
            axes.set_title(title)
            axes.set_ylabel("nats per token")
            for arm in arms(run):
                points = _points(arm, key)
                if points:
                    x, y = zip(*points, strict=True)
                    dot = {"marker": "o"} if len(points) == 1 else {}
                    axes.plot(x, y, label=label(arm), **look[str(arm.get("name"))], **dot)
                    said.append(f"{title}, {label(arm)}: from {y[0]:.2f} to {y[-1]:.2f}")
        grid[-1][0].set_xlabel("step")
        legend(figure, grid[0][0])
    return Drawing("training", "Loss during training", "; ".join(said) + ".", figure)


def _points(arm: Arm, key: str) -> list[tuple[float, float]]:
    points = [
        (number(entry.get("step")), number(entry.get(key))) for entry in arm.get("curve") or []
    ]
    return [(x, y) for x, y in points if x is not None and y is not None]


def terminal_over_training(
    curve: Sequence[Mapping[str, Any]], gradients: Sequence[float], name: str
) -> Drawing | None:
    """The terminal's loss at every step of a run's log, and its gradient on the prefix.

    gradients  norms before and after training
    """
    points = _points({"curve": curve}, "terminal_loss")
    if not points:
        return None
    steps, losses = zip(*points, strict=True)
    with settings():
        figure, grid = new(4.2, 2, sharex=True)
        loss_axes, gradient_axes = grid[0][0], grid[1][0]
        loss_axes.plot(steps, losses, color=SERIES[1], linewidth=1.8)
        loss_axes.set_title("loss of the terminal, nats per token")
        ends = [0, steps[-1]]
        gradient_axes.plot(ends, gradients, "o", color=SERIES[0], markersize=6)
        gradient_axes.set_title("gradient of that loss on the prefix, before and after")
        for axes, values in ((loss_axes, losses), (gradient_axes, gradients)):
            axes.set_ylim(0, 1.1 * max(values) or 1)
        gradient_axes.set_xlabel("step")
    said = (
        f"The terminal's loss goes from {losses[0]:.2f} to {losses[-1]:.2f} nats, its gradient on "
        f"the prefix from {gradients[0]:.3g} to {gradients[-1]:.3g}."
    )
    return Drawing(f"terminal-{name}", f"What the terminal teaches, {name}", said, figure)


def coverage(run: Run) -> Drawing | None:
    """Distances that each recipe trains, on a log axis; height is pairs per distance and row.

    Reads `coverage.recipes`: name, label and intervals (first, last, pairs). Where a run has not
    recorded it, the distances of its example row are drawn.
    """
    recipes = (run.get("coverage") or {}).get("recipes") or _of_example_row(run)
    if not recipes:
        return None
    target = int(
        run.get("target") or max(i[1] for recipe in recipes for i in recipe["intervals"]) + 1
    )
    with settings():
        figure, grid = new(0.75 + 0.62 * len(recipes), len(recipes), sharex=True, sharey=True)
        marked = ""
        for axes, recipe in zip(grid.flat, recipes, strict=True):
            axes.set_title(str(recipe.get("label") or recipe.get("name")), pad=2, fontsize=8.5)
            for first, last, pairs in recipe["intervals"]:
                density = pairs / (last - first + 1)
                axes.fill_between(
                    [max(first, 0.7), last + 1], 1e-3, density, color=SERIES[0], lw=0, alpha=0.85
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlim(0.7, target)
            axes.set_ylim(1e-3, None)
            axes.set_yticks([1, 1000], ["1", "1,000"])
            axes.minorticks_off()
            marked = _mark_window(axes, run)
        last_axes = grid[-1][0]
        marks = [2**n for n in range(0, 31, 2) if 2**n < target * 0.8] + [target]
        last_axes.set_xticks(marks, [thousands(mark) for mark in marks])
        last_axes.set_xlabel("distance between query and key, tokens" + marked)
        figure.supylabel("pairs in a row", fontsize=8.5)
    said = []
    for recipe in recipes:
        seen = sum(last - first + 1 for first, last, _ in recipe["intervals"])
        name = recipe.get("label") or recipe.get("name")
        said.append(f"{name} trains {seen:,} of {target:,} distances")
    return Drawing("coverage", "Distances that training sees", "; ".join(said) + ".", figure)


def _of_example_row(run: Run) -> list[dict[str, Any]]:
    parts = row_parts(run)
    if not parts:
        return []
    positions = np.concatenate([np.arange(first, last + 1) for _, first, last in parts])
    target = max(int(run.get("target") or 0), int(positions[-1]) + 1)
    try:
        counts = theory.coverage([positions], target=target)
    except PositionError:  # a record of something else than rows with rising positions
        return []
    intervals = theory.intervals(counts, theory.octaves(target, parts=8))
    return [{"label": "the training row shown above", "intervals": intervals}]


def everything(run: Run) -> list[Drawing]:
    """Every figure that the run has numbers for, in the page's order."""
    makers = (loss_by_position, needle_map, training_row, coverage, training)
    return [drawing for make in makers if (drawing := make(run)) is not None]
