"""A healthy run, and four that are not; and the loss of a run of your own.

    python figures/health.py                          trains five networks of 1,000 steps, about a minute each on a CPU
                                                      core, and draws health.png: their samples and losses
    python figures/health.py runs/shapes-Ti-16-x      draws that run's loss.png: against the step, and against t

The five runs are kept in runs/health; stopped, the same command goes on.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from common import EPS, GREY, INK, ROOT, Parser, X, exit_code, jit, read_log, save_figure
from lesson import DPI, new_figure, panel
from matplotlib.figure import Figure
from PIL import Image

RUNS = {  # name: (flags of jit.py train, title)
    "healthy": ("", "healthy"),
    "slow": ("--lr 4e-5", "learning rate\ntoo low"),
    "hot": ("--lr 0.1", "learning rate\ntoo high"),
    "eps": ("--pred eps", "predicts\nthe noise"),
    "clear": ("--mu 2", "trained at\nlittle noise only"),
}
NOTES = [  # run, "step" or "t", text, where it begins in its panel (0 to 1), what it points at (in step or t, and loss)
    ("healthy", "step", "falls fast,\nthen slowly", (0.25, 0.6), (310, 0.1)),
    ("healthy", "t", "lowest near\nt = 0.35", (0.2, 0.5), (0.35, 0.047)),
    ("slow", "step", "where healthy\nwas by step 150", (0.06, 0.66), (970, 0.16)),
    ("slow", "t", "a bowl,\nbut higher", (0.2, 0.55), (0.3, 0.13)),
    ("hot", "step", "off the scale", (0.38, 0.88), (185, 25)),
    ("hot", "step", "sticks", (0.66, 0.6), (850, 0.4)),
    ("hot", "t", "no bowl: ignores\nwhat it sees", (0.06, 0.74), (0.36, 0.33)),
    ("eps", "step", "flat from\nthe start", (0.3, 0.5), (500, 19)),
    ("eps", "t", "worst at small t:\nv = (z - eps) / t", (0.23, 0.82), (0.07, 170)),
    ("clear", "step", "not comparable:\nother t drawn", (0.23, 0.82), (65, 10)),
    ("clear", "t", "never saw\nt < 0.2", (0.06, 0.65), (0.12, 0.25)),
]
STEPS = 1000
PLACES = ((4.3, 1.44, 1.44), (2.6, 1.44, 1.6), (0.48, 1.44, 1.6))  # bottom, width, height of the panels of a column
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
    """Four pictures of the last sheet that the run has drawn, in two rows: a triangle, a heart, a cross and a moon."""
    sheet = np.asarray(Image.open(ROOT / "runs" / "health" / name / f"samples-{STEPS:06d}.png").convert("RGB"))
    height, width = sheet.shape[0] // 4, sheet.shape[1] // 10
    triangle, heart, cross, moon = (sheet[16:height, i * width : (i + 1) * width] for i in (2, 5, 6, 7))
    four = np.vstack([np.hstack([triangle, heart]), np.hstack([cross, moon])])
    return np.uint8((four / 10.2).round() * 10.2 + 0.5)  # 26 levels instead of 256, for a smaller file


def annotate(ax, text, place, tip):
    """A few words in a panel, and an arrow from them to what they are about."""
    arrow = dict(arrowstyle="->", color=INK, shrinkB=0)
    ax.annotate(text, tip, place, textcoords="axes fraction", arrowprops=arrow, fontsize=9, color=INK)


def draw_health(path):
    """A column a run: its pictures, its loss, its loss by t; the healthy one in grey for comparison."""
    note = (
        "On the left a healthy run of 1,000 steps, in grey beside four that are not. Below the pictures the loss\n"
        "against the step, then against t, over the last 300 steps. Blue: the network predicts x; vermilion: eps."
    )
    figure = new_figure(7.2, "A healthy loss falls fast, then slowly, and is lowest near t = 0.35", note)
    logs = {name: read_log(ROOT / "runs" / "health" / name) for name in RUNS}
    for i, (name, (flags, title)) in enumerate(RUNS.items()):
        top, by_step, by_t = (panel(figure, 0.66 + 1.52 * i, *rest) for rest in PLACES)
        top.set_title(f"{title}\n{flags or '(the defaults)'}", fontsize=9.5)
        top.imshow(pictures(name), interpolation="nearest")
        top.axis("off")
        own = dict(color=EPS if name == "eps" else X, linewidth=2)
        for log, style in ((logs["healthy"], dict(color=GREY)), (logs[name], own)):
            plot_losses(by_step, by_t, log, [line for line in log if line["step"] > STEPS - 300], **style)
        by_step.set(xlim=(0, STEPS), ylim=(0.02, 40), xticks=(0, 500, 1000), xticklabels=("0", "500", "1,000"))
        by_t.set(ylim=(0.02, 400), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
        for ax in (by_step, by_t):
            ax.tick_params(labelsize=9, labelleft=i == 0)
            for label, side in zip(ax.get_xticklabels(), ("left", "center", "right")):
                label.set_horizontalalignment(side)  # clear of the neighbour's
        for run, against, *words in NOTES:
            if run == name:
                annotate(by_step if against == "step" else by_t, *words)
        if i == 0:
            by_step.set_ylabel("v-loss")
            by_t.set_ylabel("v-loss, last 300 steps")
        if i == 1:
            by_step.text(40, 0.03, "healthy run", color=GREY, fontsize=9)
    save_figure(figure, path, dpi=DPI)
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
