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
    """Boxes from left to right, what comes in from below."""
    figure, axis = plt.subplots(figsize=(8.6, 3.1), layout="constrained")
    axis.set(xlim=(0, 100), ylim=(-20, 18))
    axis.axis("off")
    boxes = [(1, "noisy image\nz"), (17, "patches\np × p × 3"), (33, "bottleneck\nr numbers"),
             (49, "+ position\nD numbers"), (65, "blocks:\nattention,\nSwiGLU"), (84, "linear\nto pixels")]  # fmt: skip
    for left, text in boxes:
        axis.text(left + 6, 5, text, ha="center", va="center", fontsize=10,
                  bbox=dict(boxstyle="round,pad=0.5", facecolor="#E8F1F8", edgecolor="#0072B2"))  # fmt: skip
    arrow = dict(arrowstyle="-|>", color="#444444")
    for (left, _), (right, _) in zip(boxes, boxes[1:]):
        axis.annotate("", (right + 0.3, 5), (left + 12.2, 5), arrowprops=arrow)
    axis.annotate("x_pred", (99.5, 5), (97, 5), va="center", fontsize=10)
    inputs = [(56, "time t and class:\nscale, shift and gate\nof every block (adaLN-Zero)", 69),
              (83, "class: K in-context tokens,\njoin on the way, leave\nbefore the last layer", 73)]  # fmt: skip
    for left, text, target in inputs:
        axis.annotate(text, (target, 0.5), (left, -13), ha="center", va="center", fontsize=9, arrowprops=arrow)
    axis.text(22, -12, "No U-Net, no autoencoder, nothing pre-trained:\nRMSNorm, normalised queries and keys,\n"
              "rotary positions on two axes", ha="center", va="center", fontsize=9, color="#444444")  # fmt: skip
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
    jit.make_sheet(pixels, [names[label] for label in y], 10).save(folder / "samples.png")
    chosen = jit.pick_classes(2, "star,heart", s, names).to(device)
    jit.draw_trajectory(net, chosen, s, jit.Sampling(steps=20), folder)
    (folder / "trajectory.png").replace(folder / "denoising.png")
    (folder / "trajectory.gif").replace(folder / "denoising.gif")


if __name__ == "__main__":
    main()
