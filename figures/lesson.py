"""Draws the pictures of the lesson: four that need no trained network, three of a run.

    python figures/lesson.py                          the first four: 5 s on a CPU
    python figures/lesson.py runs/shapes-Ti-16-x      all: 20 s
    python figures/lesson.py runs/shapes-Ti-16-x runs/long
                                                      all, and a longer run (jit.py train --steps N --out runs/long)
    python figures/lesson.py runs/photos-Ti-16-x      a run on other data: the last three, into its own folder

flow.png              following the exact mean velocity carries noise to data
manifold.png          x lies on a low-dimensional manifold, eps and v do not (paper Figure 1)
architecture.png      the network, as high as a token has numbers, and the inside of a block (paper Figure 3)
t_distribution.png    which t training draws, and the weight that the v-loss adds
samples.png           real shapes above samples of the run; with a longer run: its samples above those of the default
denoising.png, .gif   from noise to image, by the longer run if there is one: z above x_pred
"""

import functools
import math
import sys
from pathlib import Path

import torch
from common import EPS, GREEN, GREY, INK, PALE, PINK, Parser, ROOT, SKY, V, X, density_of_t, exit_code, jit, make_folder, save_figure
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from PIL import Image, ImageDraw, ImageOps

PALE_GREEN, PALE_SKY, PALE_PINK = "#DDF1EB", "#DDF0FA", "#F5E3EE"
WIDTH, DPI = 8.3, 150  # inches; dots an inch. A README shows 830 pixels, so 10 pt are 14 pixels there


def new_figure(height, title, note):
    """A figure as wide as a README. On top a sentence that says what to see, and a note on how to read it."""
    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(title, y=1 - 0.1 / height, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.5, 1 - 0.42 / height, note, ha="center", va="top", fontsize=10, color=GREY, linespacing=1.3)
    return figure


def panel(figure, left, bottom, width, height, **settings):
    """An axis at this place, in inches from the lower left corner of the figure."""
    total = figure.get_figheight()
    ax = figure.add_axes([left / WIDTH, bottom / total, width / WIDTH, height / total])
    ax.set(**settings)
    return ax


def canvas(figure):
    """An axis without frame over the whole figure, to draw on in inches."""
    height = figure.get_figheight()
    ax = panel(figure, 0, 0, WIDTH, height, xlim=(0, WIDTH), ylim=(0, height), autoscale_on=False)
    ax.axis("off")
    return ax


def arrow(ax, start, end, colour=INK, width=1.3, **style):
    """An arrow from start to end, in the axis' own coordinates."""
    style = dict(arrowstyle="-|>", shrinkA=0, shrinkB=0, mutation_scale=11) | style
    ax.annotate("", end, start, arrowprops=dict(color=colour, linewidth=width, **style))


def hearts(count, size=32):
    """A heart, from one draw of its factors to another: a path on the manifold. -> (count, 3, size, size)"""
    torch.manual_seed(36)
    first, last = jit.random_factors(2)
    factors = torch.lerp(first, last, torch.linspace(0, 1, count)[:, None])
    return jit.render_shapes(torch.full((count,), jit.SHAPES.index("heart")), factors, size)


def noise_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def show(ax, image, left, bottom, side, colour=INK, width=1.0):
    """A picture (3, H, W), clipped to [-1, 1], as a square with a frame."""
    pixels = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    extent = (left, left + side, bottom, bottom + side)
    ax.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest", zorder=3)
    frame = Rectangle((left, bottom), side, side, fill=False, edgecolor=colour, linewidth=width, zorder=4)
    ax.add_patch(frame)


# ---- flow.png ----------------------------------------------------------------------------------------------


def spiral(n):
    """n points, evenly spread over 1.5 turns of a spiral of mean 0 and variance 1. -> (n, 2)"""
    angle = 3 * math.pi * ((torch.arange(n, dtype=torch.float64) + 0.5) / n).sqrt()
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    return (points - points.mean(0)) / points.std(0)


def log_likelihood(z, t, data):
    """log p(z | x, t), up to a constant, of each z and each x of the data. (n, 2), (K, 2) -> (n, K)"""
    noise = torch.cdist(z, t * data) / (1 - t)  # |eps| that leads from x to z = t x + (1 - t) eps
    return -noise.square() / 2


def mean_velocity(z, t, data):
    """E[v | z, t] = (E[x | z, t] - z) / (1 - t), exact: what a perfect network would say. (n, 2) -> (n, 2)"""
    x_mean = log_likelihood(z, t, data).softmax(1) @ data
    return (x_mean - z) / (1 - t)


def flow_paths(n=48, steps=200):
    """The ways of n particles from noise to data, by jit's own solver: (steps + 1, n, 2)."""
    data = spiral(2000)
    even = torch.quasirandom.SobolEngine(2, scramble=True, seed=132).draw(n, dtype=torch.float64)  # in (0, 1)
    noise = torch.special.ndtri(even)  # normally distributed, but with fewer gaps and heaps than at random
    states = jit.integrate(lambda z, t: mean_velocity(z, t, data), noise, steps, "heun")
    return torch.stack([z for _, z, _ in states])


def draw_arrows(ax, t, data):
    """The mean velocity at time t, where particles come by. An arrow is as long as the root of the speed."""
    axis = torch.linspace(-2.2, 2.2, 9, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    density = log_likelihood(z, t, data).exp().mean(1)
    z = z[density > 0.06 * density.max()]
    v = mean_velocity(z, t, data)
    v = 0.36 * v / v.norm(dim=1, keepdim=True).sqrt()
    style = dict(color=V, angles="xy", scale_units="xy", scale=1, width=0.011, headwidth=4, zorder=3)
    ax.quiver(*z.T.numpy(), *v.T.numpy(), **style)


def draw_region(ax, t, data):
    """Shade the smallest region that holds 90% of all z at time t."""
    axis = torch.linspace(-3, 3, 121, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    density = log_likelihood(z, t, data).exp().mean(1)
    highest, _ = density.sort(descending=True)
    level = highest[(highest.cumsum(0) < 0.9 * highest.sum()).sum()]  # the density at its edge
    ax.contourf(axis, axis, density.view(121, 121).T, [level, math.inf], colors=[PALE], zorder=0)


def draw_flow_panel(ax, t, data, paths):
    """One moment: data, the region of z, the mean velocity, the particles and the ways they have come."""
    now = round(t * (len(paths) - 1))
    if t < 1:
        draw_region(ax, t, data[::4])
        draw_arrows(ax, t, data)
    ax.plot(*data.T, color="#BBBBBB", linewidth=2.5, zorder=1)
    ways, strength = paths[: now + 1].permute(2, 0, 1), 1 if t == 1 else 0.45
    ax.plot(*ways, color=GREEN, linewidth=0.9, alpha=strength, zorder=2)
    dots = dict(markersize=4.2, markeredgecolor="white", markeredgewidth=0.5)
    ax.plot(*paths[now].T, "o", color=GREEN, zorder=4, **dots)


def draw_flow():
    """The spiral: particles that follow the mean velocity, at four times."""
    note = ("Grey: the data, a spiral; shaded: 90% of all z.  Orange: mean velocity, longer where faster.\n"
            "Green: particles, and the ways they came.")  # fmt: skip
    figure = new_figure(3.7, "Follow the mean velocity E[v | z, t], and noise becomes data", note)
    data, paths = spiral(2000), flow_paths()
    notes = {
        0.0: "t = 0: noise\nall arrows point to\nthe mean of the data",
        0.3: "t = 0.3\nthey still point inward,\nbut not to one point",
        0.6: "t = 0.6\nthey spread, each to\nthe arm next to it",
        1.0: "t = 1: data\nevery particle is\non the curve",
    }
    for i, (t, note) in enumerate(notes.items()):
        ax = panel(figure, 0.08 + 2.05 * i, 0.74, 2, 2, xticks=[], yticks=[])
        ax.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
        draw_flow_panel(ax, t, data, paths)
        ax.text(0.5, -0.05, note, transform=ax.transAxes, ha="center", va="top", fontsize=10)
    return figure


# ---- manifold.png ------------------------------------------------------------------------------------------


def curve(s):
    """The manifold of the drawing, s in [-1, 1]. (n,) -> (n, 2)"""
    return torch.stack([2.9 * s, 0.45 * torch.sin(2.6 * s) - 0.58], dim=1)


def draw_images(ax, places, pictures, chosen):
    """The manifold with pictures on it, one of them framed in the colour of x."""
    ax.plot(*curve(torch.linspace(-1, 1, 200)).T, color=X, linewidth=3, zorder=1)
    for i, (place, picture) in enumerate(zip(places.tolist(), pictures)):
        ax.plot(*place, "o", color=X, markersize=10 if i == chosen else 5, zorder=5)
        colour, width = (X, 2.5) if i == chosen else (GREY, 1)
        show(ax, picture, place[0] - 0.36, place[1] - 0.88, 0.72, colour, width)


def draw_training_pair(ax):
    """One x, one eps and what lies between: as points of a plane that stands for pixel space, as pictures."""
    ax.set_autoscale_on(False)
    places, pictures = curve(torch.linspace(-0.9, 0.9, 5)), hearts(5)
    draw_images(ax, places, pictures, chosen=1)
    x, noise = pictures[1], noise_like(pictures[1])
    x_place, eps_place = places[1], torch.tensor([0.35, 1.5])
    z_place = 0.5 * x_place + 0.5 * eps_place
    arrow(ax, eps_place.tolist(), x_place.tolist(), V, 2.5, mutation_scale=18, shrinkB=5)
    ax.plot(*z_place, "o", color=INK, markersize=10, zorder=5)
    ax.plot(*eps_place, "o", color=EPS, markersize=10, zorder=5)
    show(ax, x - noise, -1.2, 0.72, 0.72, V, 2.5)
    show(ax, noise, 0.62, 1.08, 0.72, EPS, 2.5)
    show(ax, 0.5 * x + 0.5 * noise, -0.2, -0.12, 0.72, INK, 2.5)
    label = dict(fontsize=11, va="center", fontweight="bold", linespacing=1.4)
    ax.text(-1.32, 1.08, "v = x − ε", color=V, ha="right", **label)
    ax.text(1.46, 1.44, "ε, the noise", color=EPS, **label)
    ax.text(0.64, 0.38, "z, what the network sees", color=INK, **label)
    ax.text(-1.5, -0.7, "x", color=X, ha="right", **label)
    ax.text(3.1, 0.05, "clean images", color=X, ha="right", **label)


def draw_manifold():
    """Left: one pair of x and eps. Right: where many x, eps and v lie."""
    note = ("Drawn: a curve in a plane. The assumption: of the 768 dimensions of a patch of 16 × 16 pixels,\n"
            "clean images fill but a few; noise fills all, and so does all that contains it.")  # fmt: skip
    figure = new_figure(4.75, "x lies on a low-dimensional manifold; ε and v fill the whole space", note)
    bare = dict(xticks=[], yticks=[], facecolor=PALE)
    draw_training_pair(panel(figure, 0.1, 0.1, 6.1, 3.65, xlim=(-3.2, 3.3), ylim=(-1.95, 1.94), **bare))
    x = curve(torch.linspace(-1, 1, 400))
    eps = noise_like(x)
    clouds = [("x: on a curve", x, X), ("ε: everywhere", eps, EPS), ("v: everywhere", x - eps, V)]
    for i, (name, points, colour) in enumerate(clouds):
        ax = panel(figure, 6.3, 2.58 - 1.24 * i, 1.9, 1.17, xlim=(-7.3, 7.3), ylim=(-4.2, 4.8), **bare)
        ax.plot(*points.T, "o", color=colour, markersize=2.2, markeredgewidth=0)
        ax.text(-6.9, 4.4, name, color=colour, fontsize=10, fontweight="bold", va="top")
    return figure


# ---- architecture.png --------------------------------------------------------------------------------------


HIGH = 2.3 / 768  # inches for each number of a token
MIDDLE = 4.0  # the height, in inches, of the line on which tokens travel
INSIDE = 1.5  # the same for the inside of a block


def box(ax, left, middle, width, height, text="", colour="white", edge=INK):
    """A box around the height `middle`, with a word in it."""
    ax.add_patch(Rectangle((left, middle - height / 2), width, height, facecolor=colour, edgecolor=edge))
    ax.text(left + width / 2, middle, text, ha="center", va="center", fontsize=10, linespacing=1.15)


def line(ax, *points, colour=INK):
    ax.plot(*zip(*points), color=colour, linewidth=1.5, solid_joinstyle="miter", zorder=3.5)


def token(ax, left, numbers, shift=0.0):
    """A bar as high as a token has numbers, and how many these are."""
    height = numbers * HIGH
    box(ax, left, MIDDLE, 0.12, height, colour=GREY)
    text = dict(ha="center", va="bottom", fontsize=11, fontweight="bold")
    ax.text(left + 0.06 + shift, MIDDLE + height / 2 + 0.05, numbers, **text)


def linear(ax, left, right, before, after):
    """A linear map, drawn as what it does to the height of a token."""
    low, high = before * HIGH / 2, after * HIGH / 2
    corners = [(left, MIDDLE - low), (left, MIDDLE + low), (right, MIDDLE + high), (right, MIDDLE - high)]
    ax.add_patch(Polygon(corners, facecolor=PALE, edgecolor=GREY, linewidth=0.8))


def draw_ends(ax, patch, bottleneck, width):
    """What happens to a token before the blocks and after them."""
    x = hearts(5, 64)[1]
    below = dict(fontsize=10, ha="center", va="top", linespacing=1.25)
    inside = dict(fontsize=10, ha="center", va="center", linespacing=1.15)
    show(ax, 0.5 * (x + noise_like(x)), 0.12, MIDDLE - 0.375, 0.75)
    for cut in (-0.1875, 0, 0.1875):  # into 4 x 4 patches, as 64 pixels by 16
        line(ax, (0.495 + cut, MIDDLE - 0.375), (0.495 + cut, MIDDLE + 0.375), colour="white")
        line(ax, (0.12, MIDDLE + cut), (0.87, MIDDLE + cut), colour="white")
    ax.text(0.5, MIDDLE - 0.43, "z, cut into\npatches", **below)
    arrow(ax, (0.9, MIDDLE), (1.15, MIDDLE))
    token(ax, 1.15, patch)
    linear(ax, 1.27, 1.9, patch, bottleneck)
    ax.text(1.53, MIDDLE, "linear", **inside)
    token(ax, 1.9, bottleneck, 0.04)
    linear(ax, 2.02, 2.4, bottleneck, width)
    token(ax, 2.4, width)
    ax.text(2.22, MIDDLE - 0.3, "bottleneck,\n+ position", **below)
    token(ax, 6.2, width, -0.12)
    linear(ax, 6.32, 7.0, width, patch)
    ax.text(6.75, MIDDLE, "norm,\nscale,\nshift,\nlinear", **inside)
    token(ax, 7.0, patch)
    arrow(ax, (7.12, MIDDLE), (7.4, MIDDLE))
    show(ax, x, 7.43, MIDDLE - 0.375, 0.75, X, 2.5)
    ax.text(7.8, MIDDLE - 0.43, "x_pred", color=X, **below)


def draw_blocks(ax, width, depth, context_tokens, context_start):
    """The blocks, each with an arrow from c above it, and the in-context tokens that join and leave."""
    step, gap, top = 3.42 / depth, 0.2, MIDDLE + width * HIGH / 2
    for i in range(depth):
        left = 2.74 + step * i
        arrow(ax, (left - gap, MIDDLE), (left, MIDDLE))
        edge = GREEN if i >= context_start else INK
        box(ax, left, MIDDLE, step - gap, width * HIGH, f"block {i}", PALE_SKY, edge)
        arrow(ax, (left + (step - gap) / 2, 4.8), (left + (step - gap) / 2, top), PINK)
    arrow(ax, (5.96, MIDDLE), (6.2, MIDDLE))
    joins = 2.74 + step * context_start - gap / 2
    text = f"{context_tokens} in-context tokens\njoin: class + position"
    box(ax, joins - 0.85, 3.1, 1.7, 0.42, text, PALE_GREEN, GREEN)
    arrow(ax, (joins, 3.31), (joins, MIDDLE - 0.02), GREEN)
    arrow(ax, (6.04, MIDDLE - 0.02), (6.04, 3.33), GREEN)
    ax.text(6.04, 3.1, "and leave\nagain", fontsize=10, ha="center", va="center", color=INK)


def draw_condition(ax):
    """Time and class, which become c, which goes to every block and to the last layer."""
    box(ax, 2.9, 5.3, 1.5, 0.42, "time t: 256 waves,\ntwo linear maps", PALE_PINK, PINK)
    box(ax, 4.8, 5.3, 1.5, 0.42, "class y: a row\nof a table", PALE_PINK, PINK)
    ax.text(4.6, 5.3, "+", ha="center", va="center", fontsize=14)
    arrow(ax, (4.6, 5.17), (4.6, 4.8), PINK)
    ax.text(4.7, 4.97, "c", color=PINK, fontsize=12, fontweight="bold", va="center")
    line(ax, (3.05, 4.8), (6.5, 4.8), colour=PINK)
    arrow(ax, (6.5, 4.8), (6.5, MIDDLE + 0.45), PINK)


def draw_half(ax, left, name, name_width):
    """Half a block, x + gate * f(scale, shift (norm x)), from this place to the right. -> where it ends"""
    start = left + 0.08
    steps = {"norm": 0.55, "scale,\nshift": 0.62, name: name_width, "× gate": 0.6}
    for text, width in steps.items():
        from_c = text in ("scale,\nshift", "× gate")
        arrow(ax, (left, INSIDE), (left + 0.2, INSIDE))
        box(ax, left + 0.2, INSIDE, width, 0.62, text, *((PALE_PINK, PINK) if from_c else ()))
        left += 0.2 + width
        if from_c:
            arrow(ax, (left - width / 2, 0.8), (left - width / 2, INSIDE - 0.31), PINK)
    arrow(ax, (left, INSIDE), (left + 0.2, INSIDE))
    ax.add_patch(Circle((left + 0.3, INSIDE), 0.1, facecolor="white", edgecolor=INK, zorder=3))
    ax.text(left + 0.3, INSIDE - 0.01, "+", ha="center", va="center", fontsize=12, zorder=4)
    line(ax, (start, INSIDE), (start, INSIDE + 0.5), (left + 0.3, INSIDE + 0.5))
    arrow(ax, (left + 0.3, INSIDE + 0.5), (left + 0.3, INSIDE + 0.1))
    return left + 0.4


def draw_block(ax):
    """The inside of a block."""
    style = dict(boxstyle="round,pad=0.05", facecolor=PALE_SKY, edgecolor=INK)
    ax.add_patch(FancyBboxPatch((0.2, 0.17), 7.9, 2.38, **style))
    ax.text(0.3, 2.36, "The inside of every block", fontsize=11, fontweight="bold", va="center")
    end = draw_half(ax, 0.27, "attention:\nq, k normed,\nrotated", 1.02)
    end = draw_half(ax, end, "SwiGLU", 0.74)
    arrow(ax, (end, INSIDE), (8.08, INSIDE))
    line(ax, (0.5, 0.8), (7.27, 0.8), colour=PINK)
    ax.text(0.36, 0.8, "c", color=PINK, fontsize=12, fontweight="bold", va="center")
    note = ("From c, SiLU and a linear map make scale, shift and gate, for each half its own.\n"
            "The gates start at 0, so that at first a block changes nothing.")  # fmt: skip
    ax.text(4.15, 0.42, note, fontsize=10, ha="center", va="center")


def architecture_note(patch, large):
    """How to read the drawing, and the numbers of the paper's B/16 beside those drawn."""
    chain = "{} → {bottleneck} → {width} → {depth} blocks of {width} → {}".format(patch, patch, **large)
    joined = "{context_tokens} in-context tokens join before block {context_start}".format(**large)
    return ("Heights to scale: numbers in a token. Here Ti/16, for patches of 16 × 16 pixels in 3 colours.\n"
            f"The paper's B/16: {chain}; {joined}.")  # fmt: skip


def draw_architecture():
    """The network to scale, and the inside of a block."""
    model, patch = jit.MODELS["Ti"], 16 * 16 * 3
    bottleneck, width = model["bottleneck"], model["width"]
    title = f"An hourglass: {patch} noisy numbers enter through {bottleneck}, and {patch} clean ones leave"
    figure = new_figure(6.6, title, architecture_note(patch, jit.MODELS["B"]))
    ax = canvas(figure)
    draw_ends(ax, patch, bottleneck, width)
    draw_blocks(ax, width, model["depth"], model["context_tokens"], model["context_start"])
    draw_condition(ax)
    draw_block(ax)
    return figure


# ---- t_distribution.png ------------------------------------------------------------------------------------


TIMES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the pictures


def weight_of_v_loss(t):
    """The v-loss of an x-prediction is the squared error of x times this."""
    return 1 / (1 - t).clamp_min(jit.T_CLIP) ** 2


def draw_densities(ax, t):
    """The density of t for the mu of the paper's Table 3, and what the weight makes of the paper's choice."""
    for mu, colour in {0.0: GREEN, -0.4: SKY, -0.8: INK, -1.2: PINK}.items():
        paper = mu == -0.8
        name = f"μ = {mu:g}".replace("-", "−") + (", the paper's" if paper else "")
        ax.plot(t, density_of_t(t, mu), color=colour, linewidth=3 if paper else 1.6, label=name)
    counts = density_of_t(t, -0.8) * weight_of_v_loss(t)
    counts = counts / torch.trapezoid(counts, t)
    ax.plot(t, counts, "--", color=INK, linewidth=2, label="the paper's × weight,\nscaled to area 1")
    ax.legend(frameon=False, fontsize=10, loc="upper right", borderaxespad=0.2)


def draw_weight(ax, t):
    """The weight at each t; where the clip takes over it stays at 400."""
    ax.plot(t, weight_of_v_loss(t), color=INK, linewidth=2.5)
    ax.set_yticks([1, 10, 100, 400], ["1", "10", "100", "400"])
    ax.set_xticks((0, *TIMES, 1), ["0\nnoise", *(f"{t:g}\n" for t in TIMES), "1\ndata"])
    ax.minorticks_off()
    ax.text(1.015, 0, "t", transform=ax.transAxes, fontsize=12, fontweight="bold", va="center")


def draw_noised(ax, left, width):
    """One picture at five times, each under its t on an axis that starts at `left` and is `width` wide."""
    x = hearts(5, 40)[1]
    for t in TIMES:
        z = jit.interpolate(x[None], noise_like(x)[None], torch.tensor([t]))[0]
        middle = left + t * width
        show(ax, z, middle - 0.64, 0.12, 1.28)
        line(ax, (middle, 1.4), (middle, 1.62), colour=GREY)


def draw_t_distribution():
    """Density above weight above pictures, all along the same t."""
    note = ("Top: how often t is drawn, logit t ~ N(μ, 0.8²).  Middle: by what the v-loss multiplies\n"
            "the squared error of x, 1 / max(1 − t, 0.05)².  Bottom: what the network sees, z.")  # fmt: skip
    title = "Training draws mostly noisy images; the v-loss shifts weight to clearer ones"
    figure = new_figure(6.4, title, note)
    t, left, width = torch.linspace(0.001, 0.999, 999), 0.75, 7.2
    top = panel(figure, left, 3.35, width, 2.1, xlim=(0, 1), ylim=(0, 3.4), ylabel="density of t")
    low = panel(figure, left, 2.0, width, 1.2, xlim=(0, 1), ylim=(0.7, 700), ylabel="weight", yscale="log")
    top.set_xticks(TIMES, [])
    for ax in (top, low):
        ax.vlines(TIMES, 0, 700, color=PALE, zorder=0)
    draw_densities(top, t)
    draw_weight(low, t)
    draw_noised(canvas(figure), left, width)
    return figure


# ---- samples.png, denoising.png, denoising.gif, of a run ------------------------------------------------------


def draw_strip(states):
    """z above x_pred at nine times, of each image. states: (t, z, x_pred) from ten steps of jit.integrate."""
    chosen, left, step, side = (0, 1, 2, 3, 4, 5, 6, 8, 10), 0.5, 0.862, 0.8533  # inches; the last are 128 dots
    n = len(states[0][1])
    height = 1.05 + n * (2 * step + 0.1)
    note = "On top z, on its way from noise to image; under it x_pred, the image that the network takes it for."
    figure = new_figure(height, "The network sees the shape where the eye still sees noise", note)
    ax, top = canvas(figure), height - 0.95
    for column, i in enumerate(chosen):
        middle = left + step * column + side / 2
        ax.text(middle, top + 0.06, f"t = {states[i][0]:.1f}", ha="center", fontsize=10, color=INK)
    for number in range(n):
        for part, name in enumerate(("z", "x_pred"), 1):
            top -= step
            ax.text(0.03, top + side / 2, name, va="center", fontsize=9, color=INK)
            for column, i in enumerate(chosen):
                if i < 10 or name == "z":  # at t = 1 there is nothing left to predict
                    image = states[i][part][number].cpu().expand(3, -1, -1)
                    show(ax, image, left + step * column, top, side, "none")
        top -= 0.1
    return figure


def draw_frame(t, z, x_pred):
    """All z at time t above their x_pred, enlarged to a side of 96 at least, as a PIL image."""
    top, bottom = (torch.cat(list(jit.to_uint8(images)), dim=2) for images in (z, x_pred))  # (C, H, n W)
    pixels = torch.cat([top, bottom], dim=1).expand(3, -1, -1)  # (3, 2 H, n W)
    zoom = math.ceil(96 / z.shape[-1])
    array = pixels.permute(1, 2, 0).cpu().numpy().repeat(zoom, 0).repeat(zoom, 1)
    frame = ImageOps.expand(Image.fromarray(array), (2, 18, 2, 2), fill="white")
    ImageDraw.Draw(frame).text((3, 3), f"t = {t:.2f}: z above x_pred", fill="black")
    return frame


def draw_animation(states, path):
    """A frame for each time, the last one stays for two seconds."""
    frames = [draw_frame(*state).quantize(40, dither=Image.Dither.NONE) for state in states]  # noise is large
    pauses = [80] * (len(frames) - 1) + [2000]  # milliseconds
    settings = dict(format="GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    jit.write_whole(path, functools.partial(frames[0].save, **settings))


def sample(net, flow, names, n):
    """n unselected samples of seed 0, classes in turn: uint8 (n, C, S, S), and their captions."""
    y, captions = jit.pick_classes(n, net.classes, names)
    batches = jit.sample_images(net, y.to(net.pos_embed.device), flow, net.shape, cfg=2.0 if net.classes > 1 else 1.0)
    return torch.cat(list(batches)).cpu(), captions


def draw_rows(ax, top, images, side):
    """uint8 images (n, 3, S, S), ten in a row, each in the middle of its column; returns where they end."""
    for i, image in enumerate(images // 5 * 5):  # of 52 levels of each colour: the file is a third smaller
        middle, bottom = 0.4375 + 0.825 * (i % 10), top - i // 10 * (side + 0.025) - side
        show(ax, image / 127.5 - 1, middle - side / 2, bottom, side, "none")
    return bottom


def draw_samples(runs):
    """Real shapes above samples of a run; or above those of a long run and, smaller, those of the default run."""
    (net, flow, _, steps), *default = runs
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), net.shape[-1]))
    title = f"What {flow.pred}-prediction draws after {steps:,} steps of training, beneath real shapes"
    label = "long run: " * len(default) + f"samples after {steps:,} steps"
    parts = [("real: the renderings that training sees", real, 0.8)]  # label, images, their side in inches
    parts += [(label, sample(net, flow, jit.SHAPES, 30)[0], 0.8)]
    for net, flow, _, fewer in default:
        title = f"{fewer:,} steps draw the ten shapes, {steps:,} steps cleaner ones"
        label = f"default run (python jit.py train): samples after {fewer:,} steps, from the same noise, half as large"
        parts += [(label, sample(net, flow, jit.SHAPES, 20)[0], 0.4)]
    height = 0.925 + sum(0.35 + len(images) // 10 * (side + 0.025) for _, images, side in parts)
    figure = new_figure(height, title, "Samples are unselected: seed 0, classes in turn; EMA 1, guidance 2.")
    ax, top = canvas(figure), height - 0.725
    for i, name in enumerate(jit.SHAPES):
        ax.text(0.4375 + 0.825 * i, top - 0.4, name, ha="center", fontsize=10, color=GREY)
    for label, images, side in parts:
        ax.text(0.04, top, label, va="top", fontsize=11, color=INK)
        top = draw_rows(ax, top - (0.45 if images is real else 0.25), images, side) - 0.125
    return figure


def draw_run(runs, folder):
    """Samples of each class, and the way to two of them: a star and a heart, if it knows these."""
    net, flow, config, _ = runs[0]
    device, names, of_shapes = net.pos_embed.device, config["names"], config["data"] == "shapes"
    samples = draw_samples(runs) if of_shapes else sample(net, flow, names, 40)
    y, _ = jit.pick_classes(2, net.classes, names, "star,heart" if of_shapes else "")
    velocity = jit.guided_velocity(net, y.to(device), flow, 2.0 if net.classes > 1 else 1.0)
    noise = flow.noise_scale * jit.image_noise(net.shape, 0, range(2)).to(device)
    states = list(jit.integrate(velocity, noise, steps=10))  # few: noise hardly compresses
    if of_shapes:
        save_figure(samples, folder / "samples.png", 160)  # 0.8 inches are 128 dots, two for a pixel
    else:
        jit.draw_sheet(folder / "samples.png", *samples)
    save_figure(draw_strip(states), folder / "denoising.png", DPI)
    draw_animation(states, folder / "denoising.gif")


# ---- All ---------------------------------------------------------------------------------------------------

PICTURES = {"flow": draw_flow, "manifold": draw_manifold, "architecture": draw_architecture,
            "t_distribution": draw_t_distribution}  # fmt: skip


def draw_lesson(folder):
    """The pictures that need no trained network."""
    for name, draw in PICTURES.items():
        save_figure(draw(), folder / f"{name}.png", DPI)


def load(run):
    """Network, flow and config of a run, and the steps it was trained."""
    step = jit.load_checkpoint(run / jit.CHECKPOINT if run.is_dir() else run).get("step")
    return *jit.load_run(run, "ema1", jit.choose_device("auto")), step


def draw_all(run, long, out):
    """The lesson, and the pictures of a run on the shapes. Those of other data go to its own folder."""
    if not run:
        draw_lesson(make_folder(out or ROOT / "figures"))
        print("Name a run to draw samples and denoising, too: python figures/lesson.py runs/shapes-Ti-16-x")
        return
    runs = [load(path) for path in (long, run) if path]  # the long one first
    (*_, first, most), (*_, last, least) = runs[0], runs[-1]  # config and steps; of one run twice the same
    of_lesson, same = last["data"] == "shapes", all(first[key] == last[key] for key in ("network", "flow", "data"))
    fits = not long or of_lesson and same and most > least
    jit.check(fits, f"{long} must be the same as {run}, a run on the shapes, and trained for longer.")
    own = run if run.is_dir() else run.parent
    folder = make_folder(out or (ROOT / "figures" if of_lesson else own))
    draw_run(runs, folder)  # first: if it fails, nothing has been overwritten
    if of_lesson:
        draw_lesson(folder)
    print(f"{folder / 'samples.png'}, denoising.png and denoising.gif")


def main(words=None):
    parser = Parser(__doc__, prog="lesson.py")
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, or its checkpoint")
    text = "a longer run of the same: samples.png shows both, run then is called the default; denoising.* show this one"
    parser.add_argument("long", nargs="?", type=Path, help=text)
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: figures/, or that of the run)")
    args = parser.parse_args(words)
    return exit_code("lesson.py", lambda: draw_all(args.run, args.long, args.out))


if __name__ == "__main__":
    sys.exit(main())
