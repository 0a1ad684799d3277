"""loss.png of a run of your own: its loss against the step and, over the last tenth, against t.

    python figures/loss.py runs/mine              runs/mine/loss.png; compare it with health.png
    python figures/loss.py runs/mine runs/other   side by side, the first in grey behind all
"""

import json
import sys
from pathlib import Path

import numpy as np
from common import finish, jit
from matplotlib.figure import Figure
from style import GREY, X, save, script


def read_log(run):
    """log.jsonl of a run as a list of dicts, by step; of a step that is there twice the last."""
    path, lines = run / "log.jsonl", {}
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            lines[line["step"]] = line
        except (ValueError, TypeError, KeyError):  # half a line, of a run that was killed
            continue
    return [lines[step] for step in sorted(lines)]


def mean_by_t(lines):
    """The mean loss in ten bins of t; masked where no t fell."""
    by_t = np.array([line["loss_by_t"] for line in lines], dtype=float)
    return np.ma.masked_invalid(by_t).mean(0)


def draw_loss(logs):
    """{title: log}: a column each, above its loss against the step, below its mean over the last
    tenth in ten bins of t."""
    figure = Figure(figsize=(max(5, 2 * len(logs)), 4.6), layout="constrained")
    axes = figure.subplots(2, len(logs), sharex="row", sharey="row", squeeze=False)
    first = next(iter(logs.values()))
    for (title, log), by_step, by_t in zip(logs.items(), *axes):
        for lines, colour in ((first, GREY), (log, X)):
            steps, losses = zip(*[(line["step"], line["loss"]) for line in lines])
            by_step.plot(steps, losses, color=colour)
            late = mean_by_t(lines[-max(1, len(lines) // 10) :])
            by_t.plot(np.arange(0.05, 1, 0.1), late, color=colour)
        by_step.set(xlabel="step", yscale="log", title=title)
        by_t.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), yscale="log")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("loss, last tenth")
    return figure


def draw(runs):
    logs = {run.name: read_log(run) for run in runs}
    for run in runs:
        jit.check(logs[run.name], f"{run} has no log.jsonl; python jit.py train makes one.")
    command = "python figures/loss.py " + " ".join(f"runs/{name}" for name in logs)
    save(draw_loss(logs), runs[0] / "loss.png", command, dpi=100)


def main(words=None):
    parser = script(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    args = parser.parse_args(words)
    return finish(lambda: draw(args.runs))


if __name__ == "__main__":
    sys.exit(main())
