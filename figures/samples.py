"""samples.png: real shapes above samples of a run; own_pictures.png: samples of runs on folders.

    python figures/samples.py runs/shapes-Ti-16-x
    python jit.py train --data data/digits --size 28 --model Ti/7 --no-flip --out runs/digits
    python jit.py train --data data/photos --out runs/photos
    python figures/samples.py runs/digits runs/photos
"""

import sys
from pathlib import Path

import torch
from common import finish, jit, unselected_samples
from style import GREY, INK, WIDTH, canvas, new_figure, save, script_to_out, show

NOTE = "Samples are unselected: seed 0, classes in turn; EMA 1, guidance 2."
STEP = 0.825  # inches from one picture to the next


def draw_row(ax, images, bottom):
    """Ten uint8 images side by side."""
    for i, image in enumerate(images // 5 * 5):  # fewer colours: smaller
        show(ax, image / 127.5 - 1, 0.0375 + STEP * i, bottom, 0.8, "none")


def draw_samples(net, flow, steps):
    """Ten real shapes above 30 samples of a run."""
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), net.shape[-1]))
    samples, _ = unselected_samples(net, flow, 30)
    title = f"What {flow.pred}-prediction generates after {steps:,} steps, beneath real shapes"
    figure = new_figure(4.925, title, NOTE)
    ax = canvas(figure)
    ax.text(0.04, 4.2, "real: the renderings that training sees", va="top", fontsize=11, color=INK)
    ax.text(0.04, 2.825, f"samples after {steps:,} steps", va="top", fontsize=11, color=INK)
    for images, bottom in zip([real, *samples.split(10)], (2.95, 1.775, 0.95, 0.125)):
        draw_row(ax, images, bottom)
    for i, name in enumerate(jit.SHAPES):
        ax.text(0.4375 + STEP * i, 3.8, name, ha="center", fontsize=10, color=GREY)
    return figure


def draw_own_pictures(runs):
    """runs: [(words about the data, net, flow)]. Twenty samples of each."""
    height = 0.85 + 2 * len(runs)
    figure = new_figure(height, "The same command on pictures of your own", NOTE)
    ax = canvas(figure)
    for i, (words, net, flow) in enumerate(runs):
        top = 2 * (len(runs) - i) - 0.05
        ax.text(WIDTH / 2, top, words, va="center", ha="center", fontsize=11, color=INK)
        samples, _ = unselected_samples(net, flow, 20)
        for images, below in zip(samples.split(10), (1, 1 + STEP)):
            draw_row(ax, images, top - below)
    return figure


def about(net, config, steps):
    """A line about a run."""
    data, (channels, size, _) = Path(config["data"]).name, net.shape
    numbers = channels * net.patch**2
    return (f"{data}: {sum(config['counts']):,} of {size} x {size} pixels, patches of {numbers} numbers, "
            f"{steps:,} steps")  # fmt: skip


def draw(args):
    device, runs = jit.choose_device("auto"), []
    for run in args.runs:
        net, flow, config = jit.load_run(run, "ema1", device)
        runs.append((net, flow, config, jit.load_checkpoint(run / jit.CHECKPOINT)["step"]))
    net, flow, config, steps = runs[0]
    if config["data"] == "shapes":
        name, figure = "samples", draw_samples(net, flow, steps)
    else:
        name = "own_pictures"
        figure = draw_own_pictures([(about(net, config, steps), net, flow)
                                    for net, flow, config, steps in runs])  # fmt: skip
    command = "python figures/samples.py " + " ".join(f"runs/{run.name}" for run in args.runs)
    save(figure, args.out / f"{name}.png", command, 160)


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folder of a run, or of several")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
