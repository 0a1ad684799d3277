"""Draws the pictures of the README that need no study of their own.

    python figures/lesson.py runs/shapes-Ti-16-x        15 s on a CPU

t_distribution.png    where training looks: the density of t for some mu, and the weight that the v-loss adds
architecture.png      the network, as a block diagram
samples.png           four samples of each class of the run
denoising.png, .gif   from noise to image: z above x_pred
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import jit  # noqa: E402

COLOURS = ["#009E73", "#56B4E9", "#0072B2", "#CC79A7"]  # colour-blind safe (Okabe and Ito)


def draw_t_distribution(path):
    """p(t) of logit-normal t: the normal density of logit t times d logit t / dt = 1 / (t (1 - t))."""
    t = np.linspace(0.002, 0.998, 500)
    logit = np.log(t / (1 - t))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9), layout="constrained")
    for mu, colour in zip((0.0, -0.4, -0.8, -1.2), COLOURS):
        density = np.exp(-(((logit - mu) / 0.8) ** 2) / 2) / (0.8 * np.sqrt(2 * np.pi)) / (t * (1 - t))
        bold = 2.5 if mu == -0.8 else 1.2
        left.plot(t, density, color=colour, linewidth=bold, label=f"mu = {mu}{' (paper)' if mu == -0.8 else ''}")
        weighted = density / np.maximum(1 - t, jit.T_CLIP) ** 2
        right.plot(t, weighted / weighted.sum() * len(t), color=colour, linewidth=bold)
    left.set(xlabel="t (0 noise, 1 data)", ylabel="density", title="how often training draws t", ylim=(0, None))
    right.set(xlabel="t (0 noise, 1 data)", ylabel="density × 1/(1 − t)², scaled", ylim=(0, None),
              title="how much an x-error counts there (v-loss)")  # fmt: skip
    left.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_architecture(path):
    """Boxes from left to right, what comes in from below; in grey the shape of what an arrow carries."""
    figure, axis = plt.subplots(figsize=(9, 2.7), layout="constrained")
    axis.set(xlim=(-1, 104.5), ylim=(-15, 12))
    axis.axis("off")
    boxes = [("noisy image\nz", "H × W × 3"), ("cut into\npatches", "N × 3p²"), ("bottleneck\n(linear)", "N × r"),
             ("linear,\n+ position", "N × D"), ("blocks:\nattention,\nSwiGLU", "N × D"),
             ("linear\nto pixels", "N × 3p²"), ("x_pred", "")]  # fmt: skip
    arrow = dict(arrowstyle="-|>", color="#444444")
    for i, (text, shape) in enumerate(boxes):
        left = 15.5 * i
        box = FancyBboxPatch((left, 0), 10, 8, boxstyle="round,pad=0.3", facecolor="#E8F1F8", edgecolor="#0072B2")
        axis.add_patch(box)
        axis.text(left + 5, 4, text, ha="center", va="center", fontsize=9.5)
        if i < len(boxes) - 1:
            axis.annotate("", (left + 15.3, 4), (left + 10.3, 4), arrowprops=arrow)
            axis.text(left + 12.8, 9, shape, ha="center", fontsize=8.5, color="#666666")
    inputs = [(51, "time and class: shift, scale and gate\nof every block (adaLN-Zero)", 65),
              (85, "class: K in-context tokens join before\na middle block, leave after the last", 69)]  # fmt: skip
    for left, text, target in inputs:
        axis.annotate(text, (target, -0.3), (left, -11), ha="center", va="center", fontsize=9.5, arrowprops=arrow)
    axis.text(15, -11, "No U-Net, no autoencoder,\nnothing pre-trained", ha="center", va="center", fontsize=9.5,
              color="#444444")  # fmt: skip
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    folder = ROOT / "figures"
    draw_t_distribution(folder / "t_distribution.png")
    draw_architecture(folder / "architecture.png")
    if len(sys.argv) < 2:
        sys.exit("figures/lesson.py: name a run on shapes to draw the other pictures")
    device = jit.choose_device("auto")
    net, s, names = jit.load_run(sys.argv[1], "ema1", device)
    y = jit.pick_classes(40, "", s, names).to(device)
    pixels = torch.cat(list(jit.sample_images(net, y, s, jit.Sampling())))
    jit.save_sheet(folder / "samples.png", pixels, y, names)
    chosen = jit.pick_classes(2, "star,heart", s, names).to(device)
    jit.draw_trajectory(net, chosen, s, jit.Sampling(steps=20), folder)
    (folder / "trajectory.png").replace(folder / "denoising.png")
    (folder / "trajectory.gif").replace(folder / "denoising.gif")


if __name__ == "__main__":
    main()
