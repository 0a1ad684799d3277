"""samples.png: real shapes above samples of a run.

    python figures/samples.py runs/shapes-Ti-16-x
"""

import sys
from pathlib import Path

import torch
from common import finish, jit, unselected_samples
from style import GREY, INK, canvas, new_figure, save, script_to_out, show


def draw_samples(net, flow, steps):
    """Ten real shapes above 30 samples of a run."""
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), net.shape[-1]))
    samples, _ = unselected_samples(net, flow, 30)
    title = f"What {flow.pred}-prediction generates after {steps:,} steps, beneath real shapes"
    note = "Samples are unselected: seed 0, classes in turn; EMA 1, guidance 2."
    figure = new_figure(4.925, title, note)
    ax = canvas(figure)
    ax.text(0.04, 4.2, "real: the renderings that training sees", va="top", fontsize=11, color=INK)
    ax.text(0.04, 2.825, f"samples after {steps:,} steps", va="top", fontsize=11, color=INK)
    bottoms = (2.95, 1.775, 0.95, 0.125)
    for i, image in enumerate(torch.cat([real, samples]) // 5 * 5):  # fewer colours: smaller
        show(ax, image / 127.5 - 1, 0.0375 + 0.825 * (i % 10), bottoms[i // 10], 0.8, "none")
    for i, name in enumerate(jit.SHAPES):
        ax.text(0.4375 + 0.825 * i, 3.8, name, ha="center", fontsize=10, color=GREY)
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
