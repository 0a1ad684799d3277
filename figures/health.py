"""A healthy run, and four that are not: health.png, their losses and what they draw.

    python figures/health.py        trains five networks of 1,000 steps, 2 to 3 minutes each on a CPU core

The runs are kept in runs/health; stopped, the same command goes on.
"""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import jit  # noqa: E402

RUNS = {  # name: (flags of jit.py train, title)
    "healthy": ("", "healthy\n(the defaults)"),
    "slow": ("--lr 2e-5", "learning rate too low\n(--lr 2e-5)"),
    "hot": ("--lr 0.05", "learning rate too high\n(--lr 0.05)"),
    "eps": ("--pred eps", "predicts the noise\n(--pred eps)"),
    "clear": ("--mu 2", "trained at little noise only\n(--mu 2)"),
}
STEPS = 1000
CENTRES = np.arange(0.05, 1, 0.1)  # of the ten bins of t
GREY, BLUE = "#999999", "#0072B2"


def train(name, flags):
    """python jit.py train, which goes on where it was and says so if it is done."""
    command = [sys.executable, str(ROOT / "jit.py"), "train", "--out", str(ROOT / "runs" / "health" / name)]
    subprocess.run([*command, "--steps", str(STEPS), "--sample-every", str(STEPS), *flags.split()], check=True)


def curves(name):
    """(steps, losses, mean loss in ten bins of t over the last 300 steps) from log.jsonl."""
    log = jit.read_log(ROOT / "runs" / "health" / name)
    last = np.array([line["loss_by_t"] for line in log if line["step"] > STEPS - 300], dtype=float)  # None: nan
    by_t = np.ma.masked_invalid(last).mean(0)
    return [line["step"] for line in log], [line["loss"] for line in log], by_t


def pictures(name):
    """The first row of the last sheet that the run has drawn, as two rows of five with no captions."""
    sheet = np.asarray(Image.open(ROOT / "runs" / "health" / name / f"samples-{STEPS:06d}.png"))
    height, width = sheet.shape[0] // 4, sheet.shape[1] // 10
    tiles = [sheet[18:height, i * width : (i + 1) * width] for i in range(10)]
    return np.vstack([np.hstack(tiles[:5]), np.hstack(tiles[5:])])


def draw(path):
    """A column a run: its pictures, its loss, its loss by t; the healthy one in grey for comparison."""
    heights = dict(height_ratios=[1, 2.2, 2.2])
    figure, axes = plt.subplots(3, len(RUNS), figsize=(12, 5.6), sharey="row", gridspec_kw=heights, layout="constrained")
    healthy = curves("healthy")
    for column, (name, (_, title)) in zip(axes.T, RUNS.items()):
        steps, losses, by_t = curves(name)
        column[0].set_title(title, fontsize=10)
        column[0].imshow(pictures(name))
        column[0].axis("off")
        column[1].plot(healthy[0], healthy[1], color=GREY)
        column[1].plot(steps, losses, color=BLUE, linewidth=2)
        column[1].set(xlabel="step", yscale="log")
        column[2].plot(CENTRES, healthy[2], color=GREY)
        column[2].plot(CENTRES, by_t, color=BLUE, linewidth=2)
        column[2].set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), yscale="log")
    axes[1, 0].set(ylabel="v-loss")
    axes[2, 0].set(ylabel="v-loss, last 300 steps")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    for name, (flags, _) in RUNS.items():
        train(name, flags)
    draw(ROOT / "figures" / "health.png")
