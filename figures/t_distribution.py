"""t_distribution.png: which t training draws, and the weight that the v-loss adds."""

import numpy as np
import torch
from common import hearts, jit, noise_like
from theory import density
from style import GREY, INK, PALE, canvas, draw_to, line, new_figure, panel, show

TIMES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the pictures


def weight_of_v_loss(t):
    """The v-loss of an x-prediction is the squared error of x times this."""
    return 1 / np.maximum(1 - t, jit.T_CLIP) ** 2


def draw_densities(ax, t):
    """The density of t, of Table 3's other ends in grey; and what the weight makes of it."""
    for mu, grey in ((0.0, "0.8"), (-1.2, "0.55")):
        ax.plot(t, density(t, mu), color=grey, label=f"μ = {mu:g}".replace("-", "−"))
    ax.plot(t, density(t), color=INK, linewidth=3, label="μ = −0.8, the paper's")
    counts = density(t) * weight_of_v_loss(t)
    name = "the paper's × weight,\nscaled to area 1"
    ax.plot(t, counts / np.trapezoid(counts, t), "--", color=INK, linewidth=2, label=name)
    ax.legend(frameon=False, fontsize=10, loc="upper right", borderaxespad=0.2)


def draw_weight(ax, t):
    """The weight at each t; where the clip takes over it stays at 400."""
    ax.plot(t, weight_of_v_loss(t), color=INK, linewidth=2.5)
    ax.set_yticks([1, 10, 100, 400], ["1", "10", "100", "400"])
    ax.set_xticks((0, *TIMES, 1), ["0\nnoise", *(f"{t:g}\n" for t in TIMES), "1\ndata"])
    ax.minorticks_off()
    ax.text(1.015, 0, "t", transform=ax.transAxes, fontsize=12, fontweight="bold", va="center")


def draw_noised(ax, left, width):
    """One picture at five times, each under its t on an axis at `left` that is `width` wide."""
    x = hearts(5, 40)[1]
    for t in TIMES:
        z = jit.interpolate(x[None], noise_like(x)[None], torch.tensor([t]))[0]
        middle = left + t * width
        show(ax, z, middle - 0.64, 0.12, 1.28)
        line(ax, (middle, 1.4), (middle, 1.62), colour=GREY)


def draw_t_distribution():
    """Density above weight above pictures, all along the same t."""
    note = ("Top: how often t is drawn, logit t ~ N(μ, 0.8²).  Middle: by what the v-loss "
            "multiplies\nthe squared error of x, 1 / max(1 − t, 0.05)².  Bottom: what the "
            "network sees, z.")  # fmt: skip
    title = "Training draws mostly noisy images; the v-loss shifts weight to clearer ones"
    figure = new_figure(6.4, title, note)
    t, left, width = np.linspace(0.001, 0.999, 999), 0.75, 7.2
    top = panel(figure, left, 3.35, width, 2.1, xlim=(0, 1), ylim=(0, 3.4), ylabel="density of t")
    low = panel(figure, left, 2.0, width, 1.2, xlim=(0, 1), ylim=(0.7, 700), ylabel="weight")
    low.set_yscale("log")
    top.set_xticks(TIMES, [])
    for ax in (top, low):
        ax.vlines(TIMES, 0, 700, color=PALE, zorder=0)
    draw_densities(top, t)
    draw_weight(low, t)
    draw_noised(canvas(figure), left, width)
    return figure


if __name__ == "__main__":
    draw_to(__doc__, "t_distribution", draw_t_distribution)
