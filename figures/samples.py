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
from style import INK, canvas, new_figure, save, script_to_out, show

NOTE = "Samples are unselected: seed 0, classes in turn; EMA 1, guidance 2."
STEP = 0.825  # inches from one picture to the next


def draw_rows(ax, top, words, images):
    """Some words, and under them uint8 images, ten in a row."""
    ax.text(0.04, top, words, va="top", fontsize=11, color=INK)
    for i, image in enumerate(images // 5 * 5):  # fewer colours: smaller
        place = 0.0375 + STEP * (i % 10), top - 1.05 - STEP * (i // 10)
        show(ax, image / 127.5 - 1, *place, 0.8, "none")


def draw_samples(net, flow, steps):
    """Ten real shapes above 30 samples of a run."""
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), net.shape[-1]))
    title = f"What {flow.pred}-prediction generates after {steps:,} steps, beneath real shapes"
    figure = new_figure(4.925, title, NOTE)
    ax = canvas(figure)
    draw_rows(ax, 4.0, f"real: {', '.join(jit.SHAPES)}", real)
    draw_rows(ax, 2.825, f"samples after {steps:,} steps", unselected_samples(net, flow, 30)[0])
    return figure


def draw_own_pictures(runs):
    """Twenty samples of each of some (net, flow, config, steps)."""
    height = 0.8 + 2.1 * len(runs)
    figure = new_figure(height, "The same command on pictures of your own", NOTE)
    ax = canvas(figure)
    for i, (net, flow, config, steps) in enumerate(runs):
        data, numbers = Path(config["data"]).name, net.shape[0] * net.patch**2
        words = (f"{data}: {sum(config['counts']):,} of {net.shape[-1]} pixels a side, "
                 f"patches of {numbers} numbers, {steps:,} steps")  # fmt: skip
        draw_rows(ax, height - 0.75 - 2.1 * i, words, unselected_samples(net, flow, 20)[0])
    return figure


def draw(args):
    device, runs = jit.choose_device("auto"), []
    for run in args.runs:
        steps = jit.load_checkpoint(run / jit.CHECKPOINT)["step"]
        runs.append((*jit.load_run(run, "ema1", device), steps))
    net, flow, config, steps = runs[0]
    if config["data"] == "shapes":
        name, figure = "samples", draw_samples(net, flow, steps)
    else:
        name, figure = "own_pictures", draw_own_pictures(runs)
    command = "python figures/samples.py " + " ".join(f"runs/{run.name}" for run in args.runs)
    save(figure, args.out / f"{name}.png", command, 160)


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folder of a run, or of several")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
