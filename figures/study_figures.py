"""Draws the studies of figures/ablations.py: a sentence that says the finding, plots, and pictures under one another.

The sentence is the line "Finding: ..." among the notes of STUDY.md; without it the figure has the study's own title.
Blue, vermilion and orange are x-, eps- and v-prediction; error bars are standard deviations over training seeds.
"""

import textwrap
from dataclasses import dataclass

import common
import numpy as np
import torch
import torch.nn.functional as F
from common import EPS, GREEN, GREY, INK, V, X, jit
from matplotlib.figure import Figure
from studies import TIMES, deviation, distinct, in_words, key_of, look_up, panels_of, run_of, sampling_of, scores_of

COLOUR = {"x-prediction": X, "ε-prediction": EPS, "v-prediction": V}
SHOWN = (1, 4, 5, 7)  # the pictures of a cell: of shapes a ring, a star, a heart and a moon
SHOWN_WIDE = (1, 4, 9, 5, 7, 2)  # where there is room, a gear and a triangle too
FORMULA = dict(none="none\nnet", linear="linear\nt z + (1 − t) net", edm="EDM-style\nc_skip z + c_out net")
DPI = 110

# ---- Pictures ----------------------------------------------------------------------------------------------------


def mosaic(pixels, numbers=SHOWN):
    """Some of the images (n, C, S, S) as one, in two rows with white gaps between them: uint8 (H, W, 3)."""
    chosen = pixels[[number % len(pixels) for number in numbers]]
    images = np.broadcast_to(chosen.transpose(0, 2, 3, 1), (len(numbers), *pixels.shape[2:], 3))
    gap = max(1, pixels.shape[-1] // 16)
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    top, bottom = np.split(images, 2)
    return np.vstack([np.hstack(top), np.hstack(bottom)])[:-gap, :-gap]


def real_pictures(size, number=0):
    """A rendering of each shape, in the order of the samples; other numbers, others: uint8 (10, 3, size, size)."""
    torch.manual_seed(number)
    labels = torch.arange(len(jit.SHAPES))
    return jit.to_uint8(jit.render_shapes(labels, jit.random_factors(len(labels)), size)).numpy()


def main_score(scores):
    """Agreement, or the first score if there is none."""
    return "agreement" if "agreement" in scores else next(iter(scores))


def fid_in_words(fid):
    """As the paper prints it, but for decimals where there are three digits before them."""
    return f"FID {fid:.2f}" if fid < 100 else f"FID {fid:.0f}"


def scores_in_words(cell, args, paper="paper"):
    """Under a picture: its main score, and what the paper has."""
    scores = scores_of(cell, args)
    lines = [in_words(main_score(scores), scores[main_score(scores)])] if scores else []
    if cell.paper:
        lines.append(f"{paper}: {fid_in_words(cell.paper)}")
    return "\n".join(lines)


def evaluations(cell, args):
    """How often sampling asks the network: twice for a step of Heun, but for the last."""
    sampling = sampling_of(cell, args)
    return sampling["sampling_steps"] if sampling["solver"] == "euler" else 2 * sampling["sampling_steps"] - 1


def words_below(cell, study, args):
    """What stands under the pictures of a cell."""
    words = scores_in_words(cell, args)
    return words + (f"\n{evaluations(cell, args)} evaluations" if study.columns == "steps" else "")


def draw_image(ax, image, below="", colour=None, width=2):
    ax.imshow(image, interpolation="nearest")
    ax.axis("on")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=colour is not None, color=colour, linewidth=width)
    ax.set_xlabel(below, fontsize=9)


def draw_nothing(ax, below=""):
    """The place of a cell that was not run."""
    draw_image(ax, np.full((1, 1, 3), 245, np.uint8), below)
    ax.text(0, 0, "not run here", color=GREY, fontsize=9.5, ha="center", va="center")


def pixels_of(cell, args):
    """The pictures of a cell, of the first seed: uint8 (n, 3, S, S), or None."""
    found = look_up(cell, args)
    return np.load(found[0][0] / f"{key_of(cell, args)}.npy") if found else None


def draw_cell(ax, cell, study, args, shown):
    """The pictures of a cell with its scores under them; the paper's own choice framed."""
    colour = COLOUR.get(cell.column)
    chosen = (cell.panel, cell.row, cell.column) == study.chosen
    pixels = pixels_of(cell, args)
    if pixels is not None:
        draw_image(ax, mosaic(pixels, shown), words_below(cell, study, args), colour, 6 if chosen else 2)
    else:
        draw_nothing(ax, words_below(cell, study, args))
    if chosen:
        ax.xaxis.label.set(fontweight="bold")


def real_score(cells, args):
    """What the classifier makes of real images, in words."""
    floors = [result["floor"] for cell in cells for _, _, result in look_up(cell, args)]
    share = [floor["agreement"] for floor in floors[:1] if "agreement" in floor]
    return in_words("agreement", share) if share else ""


def draw_real(ax, cells, number=0, shown=SHOWN, below=""):
    """Real images."""
    draw_image(ax, mosaic(real_pictures(cells[0].network["size"], number), shown), below)


def draw_pictures(figure, cells, study, args, real, shown):
    """One panel: the pictures of every cell in its row and column; real images in a row or column of their own."""
    rows, columns = distinct(cells, "row"), distinct(cells, "column")
    rows = ["real", *rows] if real == "row" else rows
    columns = ["real", *columns] if real == "column" else columns
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.suptitle(cells[0].panel or None, fontsize=11, fontweight="bold")
    for ax in axes.flat:
        ax.axis("off")
    for cell in cells:
        draw_cell(axes[rows.index(cell.row), columns.index(cell.column)], cell, study, args, shown)
    for number, ax in enumerate(axes[0] if real == "row" else axes[:1, 0] if real == "column" else []):
        draw_real(ax, cells, number, shown, real_score(cells, args) if real == "column" else "")
    for ax, column in zip(axes[1 if real == "row" else 0], columns):
        name = FORMULA.get(column, column) if study.columns == "pre-conditioning" else column
        if study.columns in ("r", "weight w") and column not in ("real", "none"):
            name = f"{study.columns[-1]} = {name}"
        name += " steps" if study.columns == "steps" and column != "real" else ""
        ax.set_title(name, color=COLOUR.get(column, INK), fontsize=10.5, fontweight="bold")
    for line, row in zip(axes, rows):
        first = next(ax for ax in line if ax.axison)  # a place may be free
        first.set_ylabel(row if len(rows) > 1 else "", fontsize=10.5)
    if real == "row":
        axes[0, 0].set_ylabel(f"real: {real_score(cells, args)}".rstrip(": "), fontsize=9.5)
    return axes


# ---- Plots -------------------------------------------------------------------------------------------------------


def legend_above(ax):
    """A legend that cannot lie over a curve."""
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 0.98), borderaxespad=0)


def tidy(ax):
    ax.spines[["top", "right"]].set_visible(False)


def set_columns(ax, study):
    """The columns, evenly spaced."""
    columns = distinct(study.cells, "column")
    ax.set_xticks(range(len(columns)), [column.replace(", ", ",\n").replace("text ", "text\n") for column in columns])
    ax.set(xlim=(-0.4, len(columns) - 0.6), xlabel=study.columns if study.columns != "network" else None)
    tidy(ax)


def draw_score(ax, study, args, score):
    """A score against the columns, a line for each row, a bar for the deviation over the seeds; and real images."""
    columns, unit = distinct(study.cells, "column"), 100 if score == "agreement" else 1
    for row, marker, colour in zip(distinct(study.cells, "row"), "os", (INK, GREEN)):
        known = {cell.column: scores_of(cell, args).get(score) for cell in study.cells if cell.row == row}
        points = [(columns.index(column), unit * np.array(values)) for column, values in known.items() if values]
        if points:
            x, values = zip(*points)
            style = dict(marker=marker, color=COLOUR.get(row, colour), label=row, capsize=4, linewidth=1.5)
            ax.errorbar(x, [v.mean() for v in values], [deviation(v) for v in values], **style)
    floors = [result["floor"] for cell in study.cells for _, _, result in look_up(cell, args)]
    floors = [unit * floor[score] for floor in floors if score in floor]
    if floors:
        ax.axhline(floors[0], color=GREY, linestyle=":")
        ax.annotate("real images", (0.99, floors[0]), (0, 3), ("axes fraction", "data"), "offset points",
                    color=GREY, fontsize=9, horizontalalignment="right")  # fmt: skip
    set_columns(ax, study)
    ax.set_ylim(0, 112 if score == "agreement" else None)
    ax.set_title("here: agreement (%)" if score == "agreement" else f"here: {score}, lower is better", fontsize=10.5)
    if len(distinct(study.cells, "row")) > 1:
        ax.set_title("")
        ax.set_ylabel("agreement (%)" if score == "agreement" else score)
        legend_above(ax)


def draw_agreement(ax, study, args):
    draw_score(ax, study, args, "agreement")


def draw_rfd(ax, study, args):
    draw_score(ax, study, args, "rfd")


def draw_paper(ax, study, args):
    """The paper's FID at the same columns."""
    fids = [cell.paper or np.nan for cell in study.cells]
    ax.plot(fids, marker="s", color=GREY, linewidth=1.5)  # with a gap where it is not known
    for place, fid in enumerate(fids):
        text = f"{fid:.2f}" if fid == fid else ""
        ax.annotate(text, (place, fid), (0, 7), textcoords="offset points", color=GREY, fontsize=9, ha="center")
    set_columns(ax, study)
    ax.set_ylim(0, 1.2 * np.nanmax(fids))
    ax.set_title("the paper: FID-50K, lower is better", fontsize=10.5)


def draw_spectrum(ax, study, args):
    """How much of the variance of the data's patches is outside their first r principal components."""
    run = run_of(study.cells[0], 0, args)
    pixels, _ = common.real_images(jit.open_data(args.data, run.shape), 1000, seed=11)
    patch = run.network["patch"]
    patches = F.unfold(pixels.double(), patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (n N, C p p)
    variance = torch.linalg.eigvalsh(patches.T.cov()).flip(0)
    outside = (100 * (1 - variance.cumsum(0) / variance.sum())).clamp(min=0)
    columns = distinct(study.cells, "column")
    points = [(i, outside[int(r) - 1].item()) for i, r in enumerate(columns) if r.isdecimal() and int(r) < len(outside)]
    ax.plot(*zip(*points or [(0, 0)]), marker="D", color=GREEN, linewidth=1.5)  # none: patches of 12 numbers
    for place, share in points:
        text = f"{round(share, 3):.2g}%"  # rounding may leave 1e-14
        ax.annotate(text, (place, share), (3, 6), textcoords="offset points", color=GREEN, fontsize=9)
    set_columns(ax, study)
    ax.set_ylim(0, 1.3 * max((share for _, share in points), default=0) or 1)
    ax.set_title("variance of patches outside\nthe best r numbers (%)", fontsize=10.5)


def draw_distance(ax, study, args):
    """Root mean square distance to the finest solution from the same noise, against evaluations of the network."""
    finest = max(study.cells, key=lambda cell: sampling_of(cell, args)["sampling_steps"])
    solution = pixels_of(finest, args)
    for row, marker, colour in zip(distinct(study.cells, "row"), "os", (INK, GREEN)):
        points = []
        for cell in study.cells if solution is not None else []:
            pixels = pixels_of(cell, args) if cell.row == row and cell is not finest else None
            if pixels is not None:
                n = min(len(pixels), len(solution))
                error = pixels[:n] / 127.5 - solution[:n] / 127.5
                points.append((evaluations(cell, args), np.sqrt(np.square(error).mean())))
        if points:
            ax.plot(*zip(*points), marker=marker, color=colour, linewidth=1.5, label=row)
            ax.annotate(row, points[-1], (8, -3), textcoords="offset points", color=colour, fontsize=10)
            order, (n, error) = (1 if row == "euler" else 2), points[0]
            ends = np.array([n, points[-1][0]])
            ax.plot(ends, error * (n / ends) ** order, color=colour, linestyle=":", linewidth=1)
    ax.axhline(1 / 127.5, color=GREY, linewidth=1)
    ax.annotate("one of 256 grey levels", (0.01, 1 / 127.5), (0, 3), ("axes fraction", "data"), "offset points",
                color=GREY, fontsize=9)  # fmt: skip
    ax.set(xlabel="evaluations of the network (dotted: order 1 and order 2)", xscale="log", yscale="log")
    ax.set_ylabel("distance to 512 steps of Heun")
    ax.set_xticks([4, 8, 16, 32, 64, 128], [4, 8, 16, 32, 64, 128])
    ax.minorticks_off()
    tidy(ax)


def draw_gates(ax, study, args):
    """The learned gates over 1 / (1 - t), a curve for each seed. That of eps = (z - t x) / (1 - t) has another sign."""
    t = np.linspace(0, 0.98, 99)
    ax.plot(t, 1 / (1 - t), color=INK, linestyle="--", label="1 / (1 − t)")
    for cell in study.cells:
        gates = [results["gate"] for _, results, _ in look_up(cell, args) if "gate" in results]
        sign, name = (-1, "−g(t)") if cell.flow["pred"] == "eps" else (1, "g(t)")
        for i, values in enumerate(gates):
            label = f"{name}, {cell.column}" if i == 0 else None
            ax.plot(TIMES, sign * np.array(values), color=COLOUR[cell.column], label=label)
    ax.set(xlabel="t (0 noise, 1 data); grey: where training draws it", xlim=(0, 1), ylim=(0, 12), ylabel="gate")
    shade_training(ax)
    tidy(ax)
    ax.legend(frameon=False, fontsize=9, loc="upper left")


def draw_loss_over_t(ax, study, args):
    """The v-loss of finished networks, a colour for each column, a style for each row, a curve for each seed."""
    for row, style in zip(distinct(study.cells, "row"), ("-", "--")):
        ax.plot([], [], color=GREY, linestyle=style, label=row)
        for cell in study.cells:
            for _, results, _ in look_up(cell, args) if cell.row == row else []:
                ax.plot(TIMES, results["loss_over_t"], color=COLOUR[cell.column], linestyle=style)
    ax.set(
        xlabel="t (0 noise, 1 data); grey: where training draws it",
        xlim=(0, 1),
        yscale="log",
        ylabel="v-loss (colours: below)",
    )
    shade_training(ax)
    legend_above(ax)
    tidy(ax)


def shade_training(ax):
    """Where training draws t, of logit-normal law, as a pale hill along the axis."""
    t, flow = torch.linspace(0.005, 0.995, 199), jit.Flow()
    density = common.density_of_t(t, flow.mu, flow.sigma)
    hill = ax.inset_axes([0, 0, 1, 0.35], zorder=-1)
    hill.fill_between(t, density / density.max(), color="#E4E4E4", linewidth=0)
    hill.set(xlim=(0, 1), ylim=(0, 1.02))
    hill.axis("off")
    ax.set_facecolor("none")


def draw_losses(figure, study, args):
    """The v-loss in training, and, of the finished network, against t; a row for each panel, a line for each seed."""
    for number, (part, cells) in enumerate(zip(figure.subfigures(2, 1), panels_of(study))):
        part.suptitle(cells[0].panel, fontsize=11, fontweight="bold")
        left, right = part.subplots(1, 2, sharey=True)
        for cell in cells:
            for seed, (out, results, _) in enumerate(look_up(cell, args)):
                log, style = common.read_log(out), dict(color=COLOUR[cell.column], linewidth=1.2)
                left.plot([line["step"] for line in log], [line["loss"] for line in log], **style)
                right.plot(TIMES, results["loss_over_t"], label=None if seed else cell.column, **style)
        left.set(xlabel="training step", ylabel="v-loss", yscale="log")
        right.set(xlabel="t (finished network); grey: where training draws it", xlim=(0, 1))
        for ax in (left, right):
            tidy(ax)
        shade_training(right)
        right.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        if number == 0:
            right.annotate("an x-error counts\n1 / (1 − t)² times", (0.97, 3), (0.62, 8), color=X, fontsize=9,
                           arrowprops=dict(arrowstyle="->", color=X))  # fmt: skip


def draw_sizes(figure, study, args):
    """Four samples of each size in a line, a pixel as large in all of them, with the borders of the patches."""
    sizes = [cell.network["size"] for cell in study.cells]
    axes = figure.subplots(len(sizes), 1, height_ratios=sizes)
    for ax, cell, size in zip(axes, study.cells, sizes):
        patch, pixels = cell.network["patch"], pixels_of(cell, args)
        if pixels is not None:
            draw_image(ax, np.hstack([pixels[number].transpose(1, 2, 0) for number in SHOWN]))
            for place in range(patch, len(SHOWN) * size, patch):
                ax.axvline(place - 0.5, color="white", linewidth=2 if place % size == 0 else 0.5)
            for place in range(patch, size, patch):
                ax.axhline(place - 0.5, color="white", linewidth=0.5)
            ax.set_xlim(-0.5, len(SHOWN) * max(sizes) - 0.5)
        else:
            draw_nothing(ax)
        scores = scores_in_words(cell, args, f"paper's {256 * size // min(sizes)} px").replace("\n", ", ")
        title = f"{cell.column}: {3 * patch**2:,} numbers a patch (white lines)"
        ax.set_title(f"{title}, {scores}".strip(", "), fontsize=10.5, fontweight="bold", loc="left")
        ax.set_anchor("W")


# ---- A figure ----------------------------------------------------------------------------------------------------


@dataclass
class Look:
    """How the figure of a study looks."""

    plots: tuple = ()
    real: str = ""  # where real images stand: in a first row or column, or in the place that the cells leave free
    shown: tuple = SHOWN
    first_row: bool = False  # pictures of the first row only, of the others a line of words


LOOKS = dict(
    nine=Look(real="row"),
    predictions=Look(real="row"),
    shift=Look(real="column", first_row=True),  # eps and v are noise everywhere
    bottleneck=Look((draw_agreement, draw_paper, draw_spectrum), real="column"),
    ladder=Look((draw_agreement, draw_paper), real="column"),
    precond=Look(real="row"),
    guidance=Look((draw_agreement, draw_rfd)),
    solver=Look((draw_distance,)),
    gate=Look((draw_gates, draw_loss_over_t), real="free", shown=SHOWN_WIDE),
)
WIDTH = 9.0  # inches


def other_rows(study, args):
    """The rows that a figure has no room for, in a line each: from which score to which."""
    lines = []
    for row in distinct(study.cells, "row")[1:]:
        cells = [cell for cell in study.cells if cell.row == row]
        known = [cell for cell in cells if scores_of(cell, args)]
        scores = [scores_of(cell, args) for cell in known]
        fids = [cell.paper for cell in cells if cell.paper]
        if known:
            score = main_score(scores[0])
            means = [np.mean(values[score]) for values in scores if score in values]
            low, high = in_words(score, [min(means)]), in_words(score, [max(means)])
            ours = low if low == high else f"{low.strip('%')} to {high.removeprefix(score)[1:]}"
            places = ", ".join(cell.column.removeprefix("μ = ") for cell in known)
            ours += " at every μ" if known == cells else f" at μ = {places}"
            lines.append(f"{row}: {ours}" + (f" (paper: FID {min(fids):.0f} to {max(fids):.0f})" if fids else ""))
    return "\n".join(lines)


def plots_of(look, study, args):
    """Its plots, without the paper's where there is no FID, and with rfd where there is no agreement."""
    plots = [plot for plot in look.plots if plot is not draw_paper or any(cell.paper for cell in study.cells)]
    if not any("agreement" in scores_of(cell, args) for cell in study.cells):  # without classes, say
        plots = list(dict.fromkeys(draw_rfd if plot is draw_agreement else plot for plot in plots))
    return plots


def draw_study(look, study, args, title):
    """Title, plots, pictures, as a figure."""
    panels, plots = panels_of(study), plots_of(look, study, args)
    if look.first_row:
        panels = [[cell for cell in study.cells if cell.row == study.cells[0].row]]
    real = look.real if args.data == "shapes" else ""  # pictures of others are not ours to show
    columns = sum(len(distinct(cells, "column")) + (real == "column") for cells in panels)
    rows = len(distinct(panels[0], "row")) + (real == "row")
    side = min(1.75, (WIDTH - 0.6) / columns)  # of the pictures of a cell, in inches
    below = 0.3 + 0.12 * max(words_below(cell, study, args).count("\n") for cell in study.cells)
    pictures = rows * (side + below) + 0.3 + 0.3 * bool(panels[0][0].panel) + 0.4 * (look.first_row or real == "free")
    width = WIDTH if plots else 0.7 + side * columns
    lines = textwrap.wrap(title, int(8.4 * width))
    heights = [2.7] * bool(plots) + [pictures]
    figure = Figure(figsize=(width, sum(heights) + 0.3 * len(lines)), layout="constrained", dpi=DPI)
    figure.suptitle("\n".join(lines), fontsize=13, fontweight="bold")
    *top, bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part in top:
        for plot, ax in zip(plots, np.ravel(part.subplots(1, len(plots)))):
            plot(ax, study, args)
    for part, cells in zip(np.ravel(bottom.subfigures(1, len(panels))), panels):
        axes = draw_pictures(part, cells, study, args, real, look.shown)
        if real == "free":
            below = f"real images: {real_score(cells, args)}".rstrip(": ")
            draw_real(axes[1, 0], cells, shown=look.shown, below=below)
    if look.first_row:
        bottom.supxlabel(other_rows(study, args), fontsize=10)
    return figure


def draw(name, study, args, path, title):
    """The figure of a study to a file."""
    if name in ("lossbyt", "resolution"):
        figure = Figure(figsize=(WIDTH, 6.3 if name == "lossbyt" else 5.4), layout="constrained", dpi=DPI)
        figure.suptitle("\n".join(textwrap.wrap(title, 78)), fontsize=13, fontweight="bold")
        (draw_losses if name == "lossbyt" else draw_sizes)(figure, study, args)
    else:
        figure = draw_study(LOOKS[name], study, args, title)
    common.save_figure(figure, path, DPI)
