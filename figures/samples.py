"""samples.png: real shapes above samples of a run.

    python figures/samples.py runs/shapes-Ti-16-x
"""

import sys
from pathlib import Path

import torch
from common import finish, jit, unselected_samples
from style import GREY, INK, canvas, new_figure, save, script_to_out, show


def draw_rows(ax, top, images, side):
    """uint8 images (n, 3, S, S), ten in a row, each in its column; returns where they end."""
    for i, image in enumerate(images // 5 * 5):  # 52 levels of a colour: a third smaller
        middle, bottom = 0.4375 + 0.825 * (i % 10), top - i // 10 * (side + 0.025) - side
        show(ax, image / 127.5 - 1, middle - side / 2, bottom, side, "none")
    return bottom


def draw_samples(net, flow, steps):
    """Ten real shapes above 30 samples of a run."""
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), net.shape[-1]))
    title = f"What {flow.pred}-prediction generates after {steps:,} steps, beneath real shapes"
    note = "Samples are unselected: seed 0, classes in turn; EMA 1, guidance 2."
    parts = [("real: the renderings that training sees", real),
             (f"samples after {steps:,} steps", unselected_samples(net, flow, 30)[0])]  # fmt: skip
    height, side = 0.925 + sum(0.35 + len(images) // 10 * 0.825 for _, images in parts), 0.8
    figure = new_figure(height, title, note)
    ax, top = canvas(figure), height - 0.725
    for i, name in enumerate(jit.SHAPES):
        ax.text(0.4375 + 0.825 * i, top - 0.4, name, ha="center", fontsize=10, color=GREY)
    for label, images in parts:
        ax.text(0.04, top, label, va="top", fontsize=11, color=INK)
        top = draw_rows(ax, top - (0.45 if images is real else 0.25), images, side) - 0.125
    return figure


def draw(args):
    net, flow, config = jit.load_run(args.run, "ema1", jit.choose_device("auto"))
    jit.check(config["data"] == "shapes", f"{args.run} is not of the shapes: python jit.py sample.")
    steps = jit.load_checkpoint(args.run / jit.CHECKPOINT)["step"]
    command = f"python figures/samples.py {args.run}"
    save(draw_samples(net, flow, steps), args.out / "samples.png", command, 160)


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run on the shapes")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
