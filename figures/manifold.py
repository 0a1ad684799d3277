"""manifold.png: x lies near a surface of few dimensions, eps and v do not (paper Figure 1).

    python figures/manifold.py
    python figures/manifold.py --measure data/digits data/photos     is it so? prints MEASURED anew

Measured on patches of shapes, and of two folders of pictures: the share of their variance that lies
outside their best sixth of the directions, as 128 of 768 in JiT-B's bottleneck. Of noise it is 5/6.
"""

import sys

import torch
import torch.nn.functional as F
from common import finish, hearts, jit, noise_like, real_images
from style import (
    EPS, GREY, INK, PALE, V, X, arrow, new_figure, panel, save, script_to_out, show,
)  # fmt: skip


MEASURED = dict(shapes=0.00481, digits=0.11886, photos=0.05089)


def outside(pixels, patch):
    """Share of the variance of patches that lies outside their best sixth of the directions."""
    patches = F.unfold(pixels.double(), patch, stride=patch).transpose(1, 2).flatten(0, 1)
    variance = torch.linalg.eigvalsh(patches.T.cov()).flip(0)
    return (variance[round(len(variance) / 6) :].sum() / variance.sum()).item()


def measure(folders):
    """{name: share outside}, of patches of 768 numbers, of digits, which are grey, of 196."""
    found = {}
    for name, folder in zip(("shapes", "digits", "photos"), ("shapes", *folders)):
        channels, size, patch = (1, 28, 14) if name == "digits" else (3, 64, 16)
        data = jit.open_data(folder, (channels, size, size))
        found[name] = round(outside(real_images(data, 4000, seed=7)[0], patch), 5)
    return found


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
    """One x, one eps and what lies between: as points of a plane, and as pictures."""
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
    """One pair of x and eps, and beside it where many x, eps and v lie."""
    title = "x lies near a surface of few dimensions; ε and v fill the whole space"
    note = ("Drawn: the surface as a curve in a plane. Measured: the best sixth of the directions "
            f"leaves out\n{MEASURED['photos']:.0%} of the variance of patches of photographs, and "
            "83% of that of noise.")  # fmt: skip
    figure = new_figure(4.65, title, note)
    bare = dict(xticks=[], yticks=[], facecolor=PALE)
    frame = dict(xlim=(-3.2, 3.3), ylim=(-1.95, 1.94))
    draw_training_pair(panel(figure, 0.1, 0.1, 6.1, 3.65, **frame, **bare))
    x = curve(torch.linspace(-1, 1, 400))
    eps = noise_like(x)
    clouds = [("x: on a curve", x, X), ("ε: everywhere", eps, EPS), ("v: everywhere", x - eps, V)]
    for i, (name, points, colour) in enumerate(clouds):
        frame = dict(xlim=(-7.3, 7.3), ylim=(-4.2, 4.8))
        ax = panel(figure, 6.3, 2.58 - 1.24 * i, 1.9, 1.17, **frame, **bare)
        ax.plot(*points.T, "o", color=colour, markersize=2.2, markeredgewidth=0)
        ax.text(-6.9, 4.4, name, color=colour, fontsize=10, fontweight="bold", va="top")
    return figure


def work(args):
    if args.measure:
        return print(measure(args.measure))
    save(draw_manifold(), args.out / "manifold.png", "python figures/manifold.py")


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("DIGITS", "PHOTOS"), help="two folders")
    args = parser.parse_args(words)
    return finish(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
