"""A healthy run, and four that are not; and the loss of a run of your own.

    python figures/health.py                          trains five networks of 1,000 steps, 2 to 3 minutes each on a CPU
                                                      core, and draws health.png: their losses and samples
    python figures/health.py runs/shapes-Ti-16-x      draws that run's loss.png: against the step, and against t

The five runs are kept in runs/health; stopped, the same command goes on.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from common import EPS, GREY, INK, ROOT, Parser, X, exit_code, jit, read_log, save_figure
from matplotlib.figure import Figure
from PIL import Image

RUNS = {  # name: (flags of jit.py train, title)
    "healthy": ("", "healthy\n(the defaults)"),
    "slow": ("--lr 2e-5", "learning rate too low\n(--lr 2e-5)"),
    "hot": ("--lr 0.05", "learning rate too high\n(--lr 0.05)"),
    "eps": ("--pred eps", "predicts the noise\n(--pred eps)"),
    "clear": ("--mu 2", "trained at little noise only\n(--mu 2)"),
}
STEPS = 1000
CENTRES = np.arange(0.05, 1, 0.1)  # of the ten bins of t


def mean_by_t(log):
    """Mean loss (10,) in ten bins of t over some lines of a log; masked where no t fell into a bin."""
    losses = np.array([line["loss_by_t"] for line in log], dtype=float)  # None becomes nan
    return np.ma.masked_invalid(losses).mean(0)


def plot_losses(by_step, by_t, log, last, **style):
    """The loss against the step; and against t, over the lines `last` of the log."""
    by_step.plot([line["step"] for line in log], [line["loss"] for line in log], **style)
    by_t.plot(CENTRES, mean_by_t(last), **style)
    by_step.set(xlabel="step", yscale="log")
    by_t.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), yscale="log")


def draw_loss(run):
    """loss.png of a run; its right half shows the last tenth of the log."""
    log = read_log(run)
    jit.check(log, f"{run} has no log.jsonl with a line in it; python jit.py train makes one.")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_losses(left, right, log, log[-max(1, len(log) // 10) :], color=INK)
    left.set_ylabel("loss")
    save_figure(figure, Path(run, "loss.png"), dpi=100)
    print(Path(run, "loss.png"))


def train(name, flags):
    """python jit.py train, which goes on where it was and says so if it is done."""
    command = [sys.executable, str(ROOT / "jit.py"), "train", "--out", str(ROOT / "runs" / "health" / name)]
    command += ["--steps", str(STEPS), "--sample-every", str(STEPS), *flags.split()]
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    finally:  # after Ctrl-C, which it gets as well: it saves, then ends
        process.wait()
    if code:  # it has said why
        raise jit.Stop(f"the run {name} stopped; the same command goes on.", code)


def pictures(name):
    """The first row of the last sheet that the run has drawn, as two rows of five with no captions."""
    sheet = np.asarray(Image.open(ROOT / "runs" / "health" / name / f"samples-{STEPS:06d}.png"))
    height, width = sheet.shape[0] // 4, sheet.shape[1] // 10
    tiles = [sheet[18:height, i * width : (i + 1) * width] for i in range(10)]
    return np.vstack([np.hstack(tiles[:5]), np.hstack(tiles[5:])])


def draw_health(path):
    """A column a run: its pictures, its loss, its loss by t; the healthy one in grey for comparison."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    axes = figure.subplots(3, len(RUNS), sharey="row", gridspec_kw=dict(height_ratios=[1, 2.2, 2.2]))
    logs = {name: read_log(ROOT / "runs" / "health" / name) for name in RUNS}
    for (top, by_step, by_t), (name, (_, title)) in zip(axes.T, RUNS.items()):
        top.set_title(title, fontsize=10)
        top.imshow(pictures(name))
        top.axis("off")
        own = dict(color=EPS if name == "eps" else X, linewidth=2)
        for log, style in ((logs["healthy"], dict(color=GREY)), (logs[name], own)):
            plot_losses(by_step, by_t, log, [line for line in log if line["step"] > STEPS - 300], **style)
    axes[1, 0].set(ylabel="v-loss")
    axes[2, 0].set(ylabel="v-loss, last 300 steps")
    save_figure(figure, path, dpi=100)
    print(path)


def compare():
    """Train the five, where that is not done, and draw them."""
    for name, (flags, _) in RUNS.items():
        train(name, flags)
    draw_health(ROOT / "figures" / "health.png")


def main(words=None):
    parser = Parser(__doc__, prog="health.py")
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, to draw its loss.png; none: health.png")
    args = parser.parse_args(words)
    if args.run:
        return exit_code("health.py", lambda: draw_loss(args.run))
    return exit_code("health.py", compare, "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
