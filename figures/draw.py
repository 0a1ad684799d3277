"""Draw studies from the numbers and tiles that figures/run.py has kept: seconds, no torch.

    python figures/draw.py ratio                  runs/figures/ratio.json, .npz -> ratio.png, .md
    python figures/draw.py ratio --out figures    the committed ones
    python figures/draw.py predictions_digits --out figures

The .md gets its table between two marks; what is written by hand around it stays. Bars are standard
deviations over training seeds. To change a label, change LABELS: nothing else depends on it.
"""

import json
import re
import sys
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from studies import (
    FINDINGS, FLOW, PREDS, SAMPLE, STUDIES, TEXTURE, TIMES, TRAIN, digest, settings,
)  # fmt: skip
from style import COLOURS, GREEN, GREY, INK, PINK, save, script_to_out, wrap

PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")
LABELS = dict(
    pred=PREDICTION,
    loss=dict(x="x-loss", eps="ε-loss", v="v-loss"),
    kind=PREDICTION | dict(linear="linear\nt z + (1 − t) net", edm="EDM\nc_skip z + c_out net"),
    network=dict(layernorm="LayerNorm, GELU", rmsnorm="RMSNorm, SwiGLU", rope="+ RoPE, qk-norm",
                 context="+ in-context\ntokens"),
    variant=dict(JiT="network", Gated="network − g(t) z"),
    solver=dict(heun="Heun", euler="Euler"),
    sampler=dict(plain="as ever", limit="x_pred in [−1, 1]", start="from t = 0.02"),
    low={0.0: "guidance at all t", 0.1: "for t > 0.1"},
    patch="patches of {numbers} numbers", mu="μ = {}", w="w = {:g}", steps="{} steps", k="k = {}",
    r={0: "none"} | {r: f"r = {r}" for r in (4, 32, 128)}, size="{} px, patch {patch}",
    rate={0.25: "rate / 4", 0.5: "rate / 2", 1: "our rate", 2: "rate × 2", "long": "4 × steps"},
    ratio={0.25: "ratio 1/4", 0.5: "ratio 1/2", 0.75: "ratio 3/4", 1: "ratio 1", 1.5: "ratio 3/2",
           2: "ratio 2", 4: "ratio 4"},
)  # fmt: skip
SCORES = dict(recognised="recognised", noise_left="noise left", grain="grain", rfd="rfd")


def label(coordinate, value, cell=None):
    """What a value of a coordinate is called."""
    words = LABELS.get(coordinate, "{}")
    if isinstance(words, dict):
        return words.get(value, str(value))
    patch, channels = (cell.net["patch"], cell.net["channels"]) if cell else (0, 0)
    return words.format(value, patch=patch, numbers=channels * patch**2).replace("-", "−")


def distinct(cells, coordinate):
    return list(dict.fromkeys(cell.at.get(coordinate) for cell in cells))


def spread(values):
    """Standard deviation over the seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def in_words(score, values):
    """A score of one seed, or mean ± deviation: two digits are what 300 samples are good for."""
    scale, unit = (100, "%") if score == "recognised" else (1, "")
    mean = scale * np.mean(values)
    decimals = 0 if unit or mean >= 10 else 1 if mean >= 1 else 2
    text = f"{SCORES[score]} {mean:.{decimals}f}".replace("-", "−")
    return text + (f" ± {scale * spread(values):.{decimals}f}" if len(values) > 1 else "") + unit


class Results:
    """A study and its records, found by the coordinates of a cell."""

    def __init__(self, name, folder):
        kept = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz") as tiles:
            self.tiles = dict(tiles)
        self.name, self.folder = name, folder
        self.header, self.records = kept, kept["records"]
        self.real = {record["key"]: record for record in kept["real"]}
        self.study = STUDIES[kept["study"]]
        cells = list(self.study.cells(**kept["arguments"]))
        shown = {self.row_of(cell) for cell in cells if self.of(cell)}  # with results
        self.cells = [cell for cell in cells if self.row_of(cell) in shown]
        self.title = FINDINGS.get(name) or self.study.title
        self.has_paper = kept["data"] == "shapes"  # beside own pictures its FID would say nothing

    def row_of(self, cell):
        return cell.at.get(self.study.panel), cell.at.get(self.study.row)

    def of(self, cell):
        """The records of a cell, by seed; not those of other settings than studies.py has now."""
        is_now = digest(*settings(cell))
        found = [r for r in self.records if r["at"] == cell.at]
        found = [r for r in found if self.header["tiny"] or r["settings"] == is_now]
        return sorted(found, key=lambda record: record["seed"])

    def values(self, cell, score):
        return [record[score] for record in self.of(cell) if score in record]

    def picture(self, cell, shown):
        """Tiles of a cell of its first seed, in two rows, uint8 (H, W, 3); None: not run."""
        records = self.of(cell)
        return mosaic(self.tiles[records[0]["key"]][list(shown)]) if records else None

    def real_picture(self, cell, shown, which=0):
        key = self.of(cell)[0]["real"]
        return mosaic(self.tiles[key][6 * (which % 3) :][list(shown)])

    def real_words(self, cell):
        records = self.of(cell)
        real = self.real[records[0]["real"]] if records else {}
        return "real" + (f": {in_words('recognised', [real['recognised']])}"
                         if "recognised" in real else "")  # fmt: skip


def mosaic(images):
    """uint8 (n, C, S, S) as one picture (H, W, 3), with white gaps; more than three in two rows."""
    rows = 2 if len(images) > 3 else 1
    gap = max(1, images.shape[-1] // 16)
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)
    tiles = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.vstack([np.hstack(row) for row in np.split(tiles, rows)])[:-gap, :-gap]


# ---- Tiles ----


def below(cell, results, scores=("recognised", "noise_left")):
    """Under a picture: its scores, what the paper has, and what sampling costs."""
    known = [(score, results.values(cell, score)) for score in scores]
    lines = [in_words(score, values) for score, values in known if values]
    if cell.paper and results.has_paper:
        lines.append(f"paper: FID {cell.paper:.{2 if cell.paper < 100 else 0}f}")
    if "steps" in cell.at:
        lines.append(f"{evaluations(cell)} evaluations")
    return "\n".join(lines)


def evaluations(cell):
    """How often sampling asks the network: twice for a step of Heun, but for the last."""
    sample = SAMPLE | cell.sample
    steps = sample["sampling_steps"]
    return steps if sample["solver"] == "euler" else 2 * steps - 1


def draw_tiles(ax, picture, words="", colour=None, width=2):
    """A mosaic with a frame, and words under it; a grey square where there is none."""
    ax.set_axis_on()
    if picture is None:
        picture = np.full((2, 3, 3), 245, np.uint8)
        ax.text(1, 0.5, "not run here", color=GREY, ha="center", va="center")
    ax.imshow(picture, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=colour is not None, color=colour, linewidth=width)
    ax.set_xlabel(words, fontsize=9.5)


def places_of(cells, study):
    """{(row, panel, column): (i, j)} in a grid; panels stand side by side, a gap between them.

    The first row, or column, is left free for real images, if they stand there.
    """
    panels, columns = distinct(cells, study.panel), distinct(cells, study.column)
    down, across, wide = study.real == "row", study.real == "column", len(columns) + 1
    return {(row, panel, column): (i + down, j * wide + k + across)
            for i, row in enumerate(distinct(cells, study.row))
            for j, panel in enumerate(panels) for k, column in enumerate(columns)}  # fmt: skip


def place_of(cell, study):
    return tuple(cell.at.get(part) for part in (study.row, study.panel, study.column))


def draw_grid(figure, results, cells, shown):
    """The tiles of every cell in its place, and real images in a row or column of their own."""
    study, places = results.study, places_of(cells, results.study)
    height, width = (1 + max(place[k] for place in places.values()) for k in (0, 1))
    gaps = [1 if any(j == column for _, column in places.values()) or j == 0 else 0.15
            for j in range(width)]  # fmt: skip
    axes = figure.subplots(height, width, squeeze=False, width_ratios=gaps)
    for ax in axes.flat:
        ax.set_axis_off()
    for cell in cells:
        ax, colour = axes[places[place_of(cell, study)]], COLOURS.get(cell.at.get("pred"))
        thick = 6 if cell.at == study.framed else 2
        draw_tiles(ax, results.picture(cell, shown), below(cell, results), colour, thick)
    name_rows_and_columns(axes, cells, study, places)
    if any(results.of(cell) for cell in cells):
        draw_real(axes, results, cells, shown)
    return axes


def name_rows_and_columns(axes, cells, study, places):
    """Titles above the first cell of a column, or above its real images; names left of a row."""
    columns, named = distinct(cells, study.column), set()
    for cell in cells:
        i, j = places[place_of(cell, study)]
        row, panel, column = place_of(cell, study)
        if (row, panel) not in named and len(distinct(cells, study.row)) > 1:
            style = dict(fontsize=10.5, color=COLOURS.get(row, INK))
            axes[i, j].set_ylabel(label(study.row, row, cell), **style)
        if (panel, column) not in named:
            top = axes[0 if study.real == "row" else i, j]
            top.set_title(label(study.column, column, cell), color=COLOURS.get(column, INK))
            if study.panel and column == columns[len(columns) // 2]:
                style = dict(transform=top.transAxes, ha="center", fontweight="bold")
                top.text(0.5, 1.25, label(study.panel, panel, cell), **style)
        named |= {(row, panel), (panel, column)}


def draw_real(axes, results, cells, shown):
    """Real images: above all columns, left of the first row, or in a place that is free."""
    study, known = results.study, next(cell for cell in cells if results.of(cell))
    free = axes[:1, 0] if study.real == "column" else []
    if study.real == "row":
        free = [axes[0, j] for j in sorted({j for _, j in places_of(cells, study).values()})]
    if study.real == "free":
        free = [ax for ax in axes.flat if not ax.axison][:1]
    for which, ax in enumerate(free):
        draw_tiles(ax, results.real_picture(known, shown, which))
        words = results.real_words(known) if which == 0 else ""
        if study.real == "row" and which == 0:
            ax.set_ylabel(words.replace(": ", ":\n"), fontsize=9.5)
        elif study.real != "row":
            ax.set_xlabel(words, fontsize=9.5)


# ---- Plots ----


def plot_score(ax, results, score):
    """A score against the columns, a line a row, a bar for the seeds; dotted: real images."""
    study, scale = results.study, 100 if score == "recognised" else 1
    columns = distinct(results.cells, study.column)
    for row, marker, colour in zip(distinct(results.cells, study.row), "os^", (INK, GREEN, GREY)):
        cells = [cell for cell in results.cells if cell.at.get(study.row) == row]
        points = [(columns.index(cell.at[study.column]), results.values(cell, score))
                  for cell in cells if results.values(cell, score)]  # fmt: skip
        if points:
            x, values = zip(*points)
            colour = COLOURS.get(row, colour) if study.row == "pred" else colour
            means, bars = zip(*[(scale * np.mean(v), scale * spread(v)) for v in values])
            style = dict(marker=marker, color=colour, label=label(study.row, row))
            ax.errorbar(x, means, bars, **style)
    floors = [scale * real[score] for real in results.real.values() if score in real]
    if floors:
        ax.axhline(floors[0], color=GREY, linestyle=":", label="real images")
    set_columns(ax, results)
    ax.set_ylim(0, 112 if score == "recognised" else None)
    ax.set_title("recognised (%)" if score == "recognised" else SCORES[score])
    legend_below(ax)


def set_columns(ax, results):
    """The columns, evenly spaced."""
    study = results.study
    columns = distinct(results.cells, study.column)
    names = [label(study.column, column).replace(", ", ",\n") for column in columns]
    ax.set_xticks(range(len(columns)), names)
    ax.set_xlim(-0.4, len(columns) - 0.6)


def legend_below(ax):
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def plot_paper(ax, results):
    """The paper's FID at the same columns, with a gap where it is not known."""
    fids = [cell.paper or np.nan for cell in results.cells]
    ax.plot(fids, marker="s", color=GREY)
    for place, fid in enumerate(fids):
        style = dict(textcoords="offset points", color=GREY, fontsize=9, ha="center")
        ax.annotate(f"{fid:.2f}" if fid == fid else "", (place, fid), (0, 7), **style)
    set_columns(ax, results)
    ax.set_ylim(0, 1.2 * np.nanmax(fids))
    ax.set_title("the paper: FID-50K")


def plot_distance(ax, results):
    """Distance of six images to the finest solution from the same noise, against evaluations."""
    finest = max(results.cells, key=lambda cell: cell.at["steps"])

    def images(cell):
        return [results.tiles[record["key"]] / 127.5 for record in results.of(cell)[:1]]

    for name, order, colour in (("heun", 2, INK), ("euler", 1, GREEN)):
        points = []
        for cell in results.cells if images(finest) else []:
            if cell.at["solver"] == name and cell is not finest and images(cell):
                error = np.sqrt(np.square(images(cell)[0] - images(finest)[0]).mean())
                points.append((evaluations(cell), error))
        if points:
            ax.plot(*zip(*points), marker="o", color=colour, label=label("solver", name))
            ends = np.array([points[0][0], points[-1][0]])
            law = points[0][1] * (ends[0] / ends) ** order
            ax.plot(ends, law, ":", color=colour, linewidth=1, label=f"order {order}")
    ax.axhline(1 / 127.5, color=GREY, linewidth=1, label="one of 256 grey levels")
    ax.set(xlabel="evaluations of the network", xscale="log", yscale="log")
    ax.set_ylabel("distance to 512 steps of Heun")
    ax.set_xticks([4, 8, 16, 32, 64, 128], [4, 8, 16, 32, 64, 128])
    ax.minorticks_off()
    ax.legend()


def density(t, mu=FLOW["mu"], sigma=FLOW["sigma"]):
    """Where training draws t: the normal density of logit t, times 1 / (t (1 - t))."""
    logit = np.log(t / (1 - t))
    normal = np.exp(-(((logit - mu) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
    return normal / (t * (1 - t))


def shade_training(ax):
    """Where training draws t, as a pale hill along the axis."""
    t = np.linspace(0.005, 0.995, 199)
    hill = ax.inset_axes([0, 0, 1, 0.35], zorder=-1)
    hill.fill_between(t, density(t) / density(t).max(), color="#E4E4E4", linewidth=0)
    hill.set(xlim=(0, 1), ylim=(0, 1.02))
    hill.axis("off")
    ax.set_facecolor("none")
    ax.set(xlabel="t (0 noise, 1 data); grey: where training draws it", xlim=(0, 1))


def plot_loss_over_t(ax, results):
    """The v-loss of finished networks: a colour a prediction, a line a seed, a style a row."""
    rows = distinct(results.cells, results.study.row)
    for cell in results.cells:
        style = ("-", "--", ":")[rows.index(cell.at.get(results.study.row)) % 3]
        for losses in results.values(cell, "loss_over_t"):
            ax.plot(TIMES, losses, style, color=COLOURS[cell.at["pred"]], linewidth=1.3)
    ax.set(yscale="log", ylabel="v-loss")
    shade_training(ax)


def plot_gates(ax, results):
    """The learned gates over 1 / (1 - t). That of eps = (z - t x) / (1 - t) has another sign."""
    t = np.linspace(0, 0.98, 99)
    ax.plot(t, 1 / (1 - t), "--", color=INK, label="1 / (1 − t)")
    for cell in results.cells:
        pred = cell.at["pred"]
        for i, gates in enumerate(results.values(cell, "gate")):
            sign, name = (-1, "−g(t)") if pred == "eps" else (1, "g(t)")
            style = dict(color=COLOURS[pred], label=None if i else f"{name}, {PREDICTION[pred]}")
            ax.plot(TIMES, sign * np.array(gates), **style)
    ax.set(ylim=(0, 12), ylabel="gate")
    shade_training(ax)
    ax.legend(loc="upper left")


def plot_excess(ax, results):
    """v-loss beyond what the texture costs the best network, against the dimensions of the data.

    Of u ~ N(0, s^2) in k of n directions, z = t u + (1 - t) eps leaves v = u - eps a variance of
    s^2 / (t^2 s^2 + (1 - t)^2).
    """
    s, t, numbers = TEXTURE, np.array(TIMES), 3 * results.cells[0].net["patch"] ** 2
    unknowable = s**2 / ((t * s) ** 2 + (1 - t) ** 2)
    for pred in distinct(results.cells, "pred"):
        points = [(cell.at["k"], mean_loss(losses - cell.at["k"] / numbers * unknowable))
                  for cell in results.cells if cell.at["pred"] == pred
                  for losses in map(np.array, results.values(cell, "loss_over_t"))]  # fmt: skip
        ax.plot(*zip(*points), "o-", color=COLOURS[pred], label=PREDICTION[pred])
    ax.set(xlabel="k, dimensions of the texture; a patch has 192", yscale="log")
    ax.set_xticks(distinct(results.cells, "k"))
    ax.set_ylabel("v-loss beyond what the texture must cost")
    ax.legend()


plot_recognised, plot_rfd = (partial(plot_score, score=score) for score in ("recognised", "rfd"))
PLOTS = dict(
    bottleneck=(plot_recognised, plot_paper), ladder=(plot_recognised, plot_paper),
    guidance=(plot_recognised, plot_rfd), solver=(plot_distance,),
    gate=(plot_gates, plot_loss_over_t), dimension=(plot_excess,),
)  # fmt: skip

# ---- Figures ----


def draw_study(results):
    """The usual figure: title, plots, tiles."""
    study, name = results.study, results.header["study"]
    plots, cells = PLOTS.get(name, ()), results.cells
    if not results.has_paper:
        plots = [plot for plot in plots if plot is not plot_paper]
    columns = len(distinct(cells, study.column)) * len(distinct(cells, study.panel))
    columns += study.real == "column"
    rows = len(distinct(cells, study.row)) + (study.real == "row")
    wide = columns <= 3
    side = min(2.4 if wide else 1.75, 9.4 / columns)
    shown = (0, 1, 2, 3, 4, 5) if wide else (0, 1, 3, 4)
    under = 0.2 + 0.15 * max(below(cell, results).count("\n") + 1 for cell in cells)
    heights = [2.8] * bool(plots) + [rows * (side * (0.67 if wide else 1) + under) + 0.3]
    width = max(0.8 + side * columns, 9 if plots else 7)
    title = wrap(results.title, width)
    height = sum(heights) + 0.35 * (title.count("\n") + 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    parts = np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights))
    for plot, ax in zip(plots, np.ravel(parts[0].subplots(1, len(plots))) if plots else []):
        plot(ax, results)
    draw_grid(parts[-1], results, cells, shown)
    return figure


def draw_sizes(results):
    """Four samples of each size in a line, a pixel as large in all, with the borders of patches."""
    cells = [cell for cell in results.cells if results.of(cell)]
    sizes = [cell.net["size"] for cell in cells]
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(wrap(results.title, 9))
    axes = np.ravel(figure.subplots(len(sizes), 1, height_ratios=sizes))
    for ax, cell, size in zip(axes, cells, sizes):
        patch = cell.net["patch"]
        tiles = results.tiles[results.of(cell)[0]["key"]][[0, 1, 3, 4]]
        ax.imshow(np.hstack(tiles.transpose(0, 2, 3, 1)), interpolation="nearest")
        for place in range(patch, 4 * size, patch):
            ax.axvline(place - 0.5, color="white", linewidth=2 if place % size == 0 else 0.5)
        for place in range(patch, size, patch):
            ax.axhline(place - 0.5, color="white", linewidth=0.5)
        ax.set_axis_off()
        ax.set(xlim=(-0.5, 4 * max(sizes) - 0.5), anchor="W")
        words = below(cell, results, ("recognised",)).replace("\n", ", ")
        words = words.replace("paper:", f"paper at {size * 8} px:")
        title = f"{label('size', size, cell)}: {3 * patch**2:,} numbers a patch (white lines)"
        ax.set_title(f"{title}, {words}", loc="left")
    return figure


def draw_health(results):
    """A column a run: its tiles, its loss, its loss over t; the healthy one in grey beside it."""
    names = dict(healthy="healthy\n(the defaults)", slow="learning rate\ntoo low: 4e-5",
                 hot="learning rate\ntoo high: 0.1", eps="predicts\nthe noise",
                 clear="trained at little\nnoise only: μ = 2")  # fmt: skip
    notes = dict(healthy=("falls fast,\nthen slowly", "lowest near\nt = 0.35"),
                 slow=("late", "a bowl,\nbut higher"),
                 hot=("leaps, sticks", "no bowl: ignores\nwhat it sees"),
                 eps=("flat from\nthe start", "worst at small t:\nv = (z − ε) / t"),
                 clear=("not comparable:\nother t drawn", "never saw\nt < 0.2"))  # fmt: skip
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    figure.suptitle(wrap(results.title, 9))
    axes = figure.subplots(3, len(results.cells), height_ratios=(1, 1.2, 1.2))
    for i, cell in enumerate(results.cells):
        run = cell.at["run"]
        top, by_step, by_t = axes[:, i]
        top.set_title(names[run], fontsize=9.5)
        draw_tiles(top, results.picture(cell, (0, 1, 3, 4)))
        own = COLOURS["eps" if run == "eps" else "x"]
        for other, colour in ((results.cells[0], GREY), (cell, own)):
            for record in results.of(other)[:1]:
                by_step.plot(*zip(*record["log"]), color=colour)
                late = [np.nan if loss is None else loss for loss in record["late_loss_by_t"]]
                by_t.plot(np.arange(0.05, 1, 0.1), late, color=colour)
        by_step.set(yscale="log", ylim=(0.02, 40), xlabel="step")
        by_t.set(yscale="log", ylim=(0.02, 400), xlim=(0, 1), xlabel="t (0 noise, 1 data)")
        for ax, note in zip((by_step, by_t), notes[run]):
            ax.text(0.95, 0.95, note, transform=ax.transAxes, ha="right", va="top", fontsize=9)
            ax.tick_params(labelleft=i == 0)
    axes[1, 0].set_ylabel("v-loss (grey: the healthy run)")
    axes[2, 0].set_ylabel("v-loss, last 30% of the run")
    return figure


# ---- The ratio of width and numbers, and the law of what is left ----

# width / numbers of a patch: at 1,024, 512, 512, 256 and 64 px
PAPER_RATIOS = {"B/64": 1 / 16, "B/32": 1 / 4, "L/32": 1 / 3, "B/16": 1, "B/4": 16}
T_CLIP = FLOW["t_clip"]
LEFT = dict(x=0, linear=1 / np.e, edm=0.5, v=1, eps=np.e / T_CLIP)  # of noise that is out of reach


def skip(kind, t):
    """c_skip of x_pred = c_skip z + c_out net, with the clip: paper Table 10, and v and eps."""
    edm = 0.25 * t / (0.25 * t**2 + (1 - t) ** 2)
    return dict(x=0 * t, linear=t, edm=edm, v=1 + 0 * t, eps=1 / np.maximum(t, T_CLIP))[kind]


def bound(kind, ratio, t):
    """The v-loss at t that a network of this ratio has at least: the noise it cannot put out."""
    return max(0, 1 - ratio) * skip(kind, t) ** 2 * ((1 - t) / np.maximum(1 - t, T_CLIP)) ** 2


def mean_loss(losses):
    """A loss at TIMES, averaged as training draws t."""
    weights = density(np.array(TIMES))
    return float(np.sum(weights * losses) / weights.sum())


def plot_ratio(ax, results, value, law, floor):
    """value(record) against the ratio, points with bars; law(pred, ratio): dashed."""
    fine = np.geomspace(0.05, 0.999, 400)
    for pred in PREDS:
        points = []
        for cell in results.cells:
            found = [value(record) for record in results.of(cell)]
            if cell.at["pred"] == pred and found:
                points.append((cell.at["ratio"], np.mean(found), spread(found)))
        if points:
            x, mean, sd = np.transpose(points)
            low = np.minimum(sd, 0.9 * np.abs(mean))  # a bar to below 0 has no place on a log axis
            style = dict(color=COLOURS[pred], marker="o", markersize=7, linewidth=2)
            ax.errorbar(x, mean, [low, sd], label=PREDICTION[pred], **style)
        if pred != "x":
            ax.plot(fine, [law(pred, ratio) for ratio in fine], "--", color=COLOURS[pred])
    ax.set(xscale="log", yscale="log", xlim=(0.05, 20))
    ax.set_ylim(bottom=floor)
    ax.set_xticks([1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16], ["1/16", "1/4", "1/2", "1", "2", "4", "16"])
    ax.minorticks_off()
    ax.tick_params(labelsize=12)
    ax.set_xlabel("width of the network / numbers of a patch", fontsize=13)
    for i, (name, ratio) in enumerate(PAPER_RATIOS.items()):
        ax.axvline(ratio, color="0.85", zorder=0)
        style = dict(transform=ax.get_xaxis_transform(), fontsize=11, color=GREY)
        ax.text(ratio, 1.01, name, rotation=90, ha="center", va="bottom", **style)


def draw_ratio(results):
    """Above noise left and v-loss against the ratio, below samples at 1/4, 1 and 4."""
    figure = Figure(figsize=(11, 11), layout="constrained")
    figure.suptitle(wrap(results.title, 8.5), fontsize=17)
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.6, 6))
    left, right = top.subplots(1, 2)
    plot_ratio(left, results, lambda r: max(r["noise_left"], 0.005),
               lambda pred, ratio: (1 - ratio) * LEFT[pred], 0.01)  # fmt: skip
    plot_ratio(right, results, lambda r: mean_loss(r["loss_over_t"]),
               lambda *cell: mean_loss(bound(*cell, np.array(TIMES))), 0.03)  # fmt: skip
    left.set_ylabel("noise left in the samples", fontsize=13)
    right.set_ylabel("v-loss of new images", fontsize=13)
    right.plot([], "--", color=GREY, label="no training can get below")
    left.plot([], "--", color=GREY, label="the law of what is left")
    for ax in (left, right):
        ax.legend(fontsize=11, loc="upper right")
    shown = [cell for cell in results.cells if cell.at["ratio"] in (0.25, 1, 4)]
    axes = draw_grid(bottom, results, shown, (0, 3, 4))
    for ax in axes[1:].flat:
        ax.yaxis.label.set_fontsize(13)
        ax.xaxis.label.set_fontsize(12)
    for ax in axes[0]:
        ax.title.set_fontsize(14)
    return figure


def toy_left(folder):
    """{kind: [noise left of a seed]}: the same of the toy's perceptron, from toy_why.json.

    There the noise left is the distance of samples from the plane, over that of untouched noise.
    """
    path, found = folder / "toy_why.json", {}
    records = json.loads(path.read_text())["skip"] if path.exists() else []
    start = {r["seed"]: r["off_plane"] for r in records if r["pred"] == "noise"}
    for record in records:
        kind = record["skip"] if record["skip"] != "none" else record["pred"]
        if kind in LEFT:
            found.setdefault(kind, []).append(record["off_plane"] / start[record["seed"]])
    return found


def plot_left(ax, predicted, values, **style):
    """Noise left as measured, against what the law says; 0 has no place on a log axis."""
    x = [max(predicted, 0.02)] * len(values)
    ax.plot(x, np.maximum(values, 0.01), linestyle="", markersize=9, **style)


def draw_leftover(results):
    """Noise left, predicted and measured; loss against t, predicted and measured; samples."""
    colours = dict(zip(LEFT, (COLOURS["x"], GREEN, PINK, COLOURS["v"], COLOURS["eps"])))
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    figure.suptitle(wrap(results.title, 9))
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.2, 3))
    left, right = top.subplots(1, 2)
    left.plot([0.02, 100], [0.02, 100], color="0.8", zorder=0)
    toy = toy_left(results.folder)
    for cell in results.cells:
        kind, ratio = cell.at["kind"], cell.at["ratio"]
        name, style = label("kind", kind).partition("\n")[0], dict(color=colours[kind])
        values, look = results.values(cell, "noise_left"), dict(label=name, **style)
        plot_left(left, (1 - ratio) * LEFT[kind], values, marker="o", **look)
        plot_left(left, LEFT[kind], toy.get(kind, []), marker="D", fillstyle="none", **style)
        for losses in results.values(cell, "loss_over_t")[:1]:
            right.plot(TIMES, losses, **style)
        if kind != "x":
            right.plot(TIMES, bound(kind, ratio, np.array(TIMES)), "--", **style)
    left.plot([], [], "D", color=GREY, fillstyle="none", label="the toy, if all is left")
    left.set(xscale="log", yscale="log", ylabel="noise left: measured")
    left.set_xlabel("noise left: predicted (for x, 0: drawn at .02)")
    left.legend()
    right.set(yscale="log", ylim=(1e-3, 500), ylabel="v-loss; dashed: what is out of reach")
    shade_training(right)
    axes = draw_grid(bottom, results, results.cells, (0, 1, 3, 4))
    for ax in axes.flat:
        ax.set_ylabel("")
    return figure


FIGURES = dict(ratio=draw_ratio, leftover=draw_leftover, resolution=draw_sizes, health=draw_health)

# ---- The table ----

MARKS = "<!-- table: figures/draw.py writes it -->", "<!-- end of the table -->"


def table(results):
    """The lines of the .md between the marks: all scores, and how they came about."""
    study, lines = results.study, []
    for panel in distinct(results.cells, study.panel):
        cells = [cell for cell in results.cells if cell.at.get(study.panel) == panel]
        lines += [f"### {label(study.panel, panel, cells[0])}", ""] if study.panel else []
        columns = distinct(cells, study.column)
        names = [label(study.column, column).replace("\n", ": ") for column in columns]
        lines += [f"| | {' | '.join(names)} |", "|---" * (len(columns) + 1) + "|"]
        for row in distinct(cells, study.row):
            here = {c.at.get(study.column): c for c in cells if c.at.get(study.row) == row}
            texts = [table_words(here[c], results) if c in here else "" for c in columns]
            name = label(study.row, row, next(iter(here.values()))) if study.row else ""
            lines.append(f"| {name} | {' | '.join(texts)} |")
        lines.append("")
    for real in results.real.values():
        known = [in_words(score, [real[score]]) for score in SCORES if score in real]
        lines += [f"Real images, {real['size']} px, patch {real['patch']}: {', '.join(known)}.", ""]
    return [*lines, *footnotes(results)]


def table_words(cell, results):
    known = [(score, results.values(cell, score)) for score in SCORES]
    words = ", ".join(in_words(score, values) for score, values in known if values) or "not run"
    return words + (f" (paper: FID {cell.paper:g})" if cell.paper and results.has_paper else "")


def footnotes(results):
    """How the numbers came about."""
    cell, records = results.cells[0], results.records
    listed = {"numbers": cell.net, "flow": FLOW | cell.flow, "train": TRAIN | cell.train}
    chosen = ", ".join(f"{key} {value}" for part in listed.values() for key, value in part.items())
    sampled = ", ".join(f"{key} {value}" for key, value in (SAMPLE | cell.sample).items())
    seconds = sum(record.get("seconds", 0) for record in records)
    ran = sorted({f"{r['hardware']}; PyTorch {r['torch']}; commit {r['commit']}" for r in records})
    return [
        f"{cell.n} samples a cell; mean ± standard deviation over training seeds where ± stands.",
        "",
        f"- Command: `{results.header['command']}`",
        f"- The first cell: {chosen}; the others differ in what the table says.",
        f"- Its sampling: {sampled}, weights ema1, seed 0.",
        f"- Time: {seconds / 60:.0f} minutes for {len(records)} records, one after the other.",
        f"- Hardware: {' / '.join(ran)}.",
    ]


def write_table(results, path):
    """Put the table between its marks, or into a new file; the rest stays."""
    text = path.read_text() if path.exists() else f"# {results.study.title}\n\n" + "\n".join(MARKS)
    begin, end = map(re.escape, MARKS)
    inside = "\n".join((MARKS[0], "", *table(results), "", MARKS[1]))
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: inside, text.strip(), flags=re.S) + "\n")


def draw(name, folder):
    """NAME.png and the table of NAME.md, from NAME.json and NAME.npz."""
    results = Results(name, folder)
    figure = FIGURES.get(results.header["study"], draw_study)(results)
    command = f"{results.header['command']}; python figures/draw.py {name}"
    save(figure, folder / f"{name}.png", command, dpi=110)
    write_table(results, folder / f"{name}.md")


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("names", nargs="+", help="of studies, or of the files that run.py wrote")

    args = parser.parse_args(words)
    for name in args.names:
        known = (args.out / f"{name}.json").exists()
        known or sys.exit(f"{args.out} holds no {name}.json: python figures/run.py makes it.")
        draw(name, args.out)


if __name__ == "__main__":
    main()
