"""loss.png of a run of your own: its loss against the step and, over the last tenth, against t.

    python figures/loss.py runs/shapes-Ti-16-x

Compare it with figures/health.png: a healthy run and four that are not.
"""

import json
import sys
from pathlib import Path

import numpy as np
from common import finish, jit
from matplotlib.figure import Figure
from style import INK, save, script


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


def draw_loss(log):
    """Left the loss against the step, right its mean in ten bins of t over the last tenth."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([line["step"] for line in log], [line["loss"] for line in log], color=INK)
    right.plot(np.arange(0.05, 1, 0.1), mean_by_t(log[-max(1, len(log) // 10) :]), color=INK)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), yscale="log")
    return figure


def draw(run):
    log = read_log(run)
    jit.check(log, f"{run} has no log.jsonl with a line in it; python jit.py train makes one.")
    save(draw_loss(log), run / "loss.png", f"python figures/loss.py {run}", dpi=100)


def main(words=None):
    parser = script(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    args = parser.parse_args(words)
    return finish(lambda: draw(args.run))


if __name__ == "__main__":
    sys.exit(main())
