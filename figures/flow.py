"""flow.png: following the exact mean velocity carries noise to data. Two seconds."""

import math

import torch
from common import jit
from style import GREEN, PALE, V, draw_to, new_figure, panel

from toy_manifold import quantiles, spiral


def data_points(n):
    """n points, evenly spread over the toy's spiral: (n, 2), fp64."""
    return spiral(quantiles(n)).double()


def log_likelihood(z, t, data):
    """log p(z | x, t), up to a constant: z (n, 2), data (K, 2) -> (n, K)."""
    noise = torch.cdist(z, t * data) / (1 - t)  # |eps| that leads from x to z = t x + (1 - t) eps
    return -noise.square() / 2


def mean_velocity(z, t, data):
    """E[v | z, t] = (E[x | z, t] - z) / (1 - t), exact, as of a perfect network: (n, 2)."""
    x_mean = log_likelihood(z, t, data).softmax(1) @ data
    return (x_mean - z) / (1 - t)


def flow_paths(n=48, steps=200):
    """The ways of n particles from noise to data, by jit's own solver: (steps + 1, n, 2)."""
    data = data_points(2000)
    engine = torch.quasirandom.SobolEngine(2, scramble=True, seed=132)
    # Normally distributed, but with fewer gaps and heaps than at random.
    noise = torch.special.ndtri(engine.draw(n, dtype=torch.float64))
    ways = []
    jit.integrate(lambda z, t: mean_velocity(z, t, data), noise, steps, "heun",
                  watch=lambda t, z, x_pred: ways.append(z))  # fmt: skip
    return torch.stack(ways)


def draw_arrows(ax, t, data):
    """The mean velocity at t where particles come by; arrows are as long as its root."""
    axis = torch.linspace(-2.2, 2.2, 9, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    density = log_likelihood(z, t, data).exp().mean(1)
    z = z[density > 0.06 * density.max()]
    v = mean_velocity(z, t, data)
    v = 0.36 * v / v.norm(dim=1, keepdim=True).sqrt()
    style = dict(color=V, angles="xy", scale_units="xy", scale=1, width=0.011, headwidth=4)
    ax.quiver(*z.T.numpy(), *v.T.numpy(), zorder=3, **style)


def draw_region(ax, t, data):
    """Shade the smallest region that holds 90% of all z at time t."""
    axis = torch.linspace(-3, 3, 121, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    density = log_likelihood(z, t, data).exp().mean(1)
    highest, _ = density.sort(descending=True)
    level = highest[(highest.cumsum(0) < 0.9 * highest.sum()).sum()]  # the density at its edge
    ax.contourf(axis, axis, density.view(121, 121).T, [level, math.inf], colors=[PALE], zorder=0)


def draw_flow_panel(ax, t, data, paths):
    """One moment: data, the region of z, the mean velocity, particles and how they came."""
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
    note = ("Grey: the data, a spiral; shaded: 90% of all z.  Orange: mean velocity, longer where "
            "faster.\nGreen: particles, and the ways they came.")  # fmt: skip
    figure = new_figure(3.7, "Follow the mean velocity E[v | z, t], and noise becomes data", note)
    data, paths = data_points(2000), flow_paths()
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


if __name__ == "__main__":
    draw_to(__doc__, "flow", draw_flow)
