"""One look for all pictures: colours, fonts, and how a picture is written. Without torch."""

import argparse
import importlib.util
import io
import math
import os
import sys
import textwrap
from pathlib import Path

if not importlib.util.find_spec("matplotlib_inline"):  # a notebook's, set for its own Python:
    os.environ.pop("MPLBACKEND", None)  # here it would stop the import

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Colour-blind safe (Okabe and Ito). The first three mean x, eps and v, or their predictions.
COLOURS = dict(x="#0072B2", eps="#D55E00", v="#E69F00")
X, EPS, V = COLOURS.values()
GREEN, PINK = "#009E73", "#CC79A7"
INK, GREY, PALE = "#222222", "#666666", "#F2F2F2"
FIGURES = Path(__file__).resolve().parent
DRAFTS = FIGURES.parent / "runs" / "figures"  # unless --out says otherwise
WIDTH, DPI = 8.3, 150  # inches, dots an inch. A README shows 830 pixels: 10 points are 14 there

matplotlib.rcParams.update({
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.fontsize": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "figure.titlesize": 13, "figure.titleweight": "bold", "errorbar.capsize": 4,
})  # fmt: skip


def save(figure, path, command, dpi=DPI):
    """Write a picture, with the command that draws it inside, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn, about = io.BytesIO(), PngInfo()
    figure.savefig(drawn, dpi=dpi)
    about.add_text("Description", command)
    image = Image.open(drawn).convert("RGB")  # without transparency, and packed well: a tenth less
    image.save(path, optimize=True, pnginfo=about)
    print(path)


def script(doc):
    """The parser of a script, with its docstring as help."""
    style = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    return argparse.ArgumentParser(description=doc, **style)


def script_to_out(doc):
    """The same with --out, the folder of what it leaves."""
    parser = script(doc)
    parser.add_argument("--out", type=Path, default=DRAFTS, help="folder of the results")
    return parser


def find_results(out, name):
    """The folder that holds NAME.json: out/results, or the committed figures/results."""
    for folder in (out / "results", FIGURES / "results"):
        if (folder / f"{name}.json").exists():
            print(f"{name}: the numbers of {os.path.relpath(folder)}")
            return folder
    sys.exit(f"There is no {name}.json in {out / 'results'}: python figures/run.py makes it.")


def draw_to(doc, name, draw):
    """The command line of a script that draws one picture without a run."""
    path = script_to_out(doc).parse_args().out / f"{name}.png"
    save(draw(), path, f"python figures/{name}.py")


def new_figure(height, title, note=""):
    """A figure as wide as a README: on top a sentence that says what to see, and how to read it."""
    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(title, y=1 - 0.1 / height, va="top", color=INK)
    style = dict(ha="center", va="top", fontsize=10, color=GREY, linespacing=1.3)
    figure.text(0.5, 1 - 0.42 / height, note, **style)
    return figure


def wrap(title, width):
    """A title in lines of about one length, that fit on a figure of this width in inches."""
    most = int(8.6 * width)
    lines = math.ceil(len(title) / most)
    return "\n".join(textwrap.wrap(title, min(most, len(title) // lines + 8)))


def panel(figure, left, bottom, width, height, **settings):
    """An axis at this place, in inches from the lower left corner of the figure."""
    total = figure.get_figheight()
    ax = figure.add_axes([left / WIDTH, bottom / total, width / WIDTH, height / total])
    ax.spines[:].set_visible(True)
    ax.set(**settings)
    return ax


def canvas(figure):
    """An axis without frame over the whole figure, to draw on in inches."""
    height = figure.get_figheight()
    limits = dict(xlim=(0, WIDTH), ylim=(0, height), autoscale_on=False)
    ax = panel(figure, 0, 0, WIDTH, height, **limits)
    ax.axis("off")
    return ax


def arrow(ax, start, end, colour=INK, width=1.3, **style):
    """An arrow from start to end, in the axis' own coordinates."""
    style = dict(arrowstyle="-|>", shrinkA=0, shrinkB=0, mutation_scale=11) | style
    ax.annotate("", end, start, arrowprops=dict(color=colour, linewidth=width, **style))


def line(ax, *points, colour=INK):
    ax.plot(*zip(*points), color=colour, linewidth=1.5, solid_joinstyle="miter", zorder=3.5)


def show(ax, image, left, bottom, side, colour=INK, width=1.0):
    """A picture (C, H, W) in [-1, 1], clipped, as a square with a frame."""
    pixels = ((image + 1) / 2).clip(0, 1)
    pixels = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    place = dict(extent=(left, left + side, bottom, bottom + side), aspect="auto")
    ax.imshow(pixels, interpolation="nearest", zorder=3, **place)
    style = dict(fill=False, edgecolor=colour, linewidth=width, zorder=4)
    ax.add_patch(Rectangle((left, bottom), side, side, **style))
