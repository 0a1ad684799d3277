"""samples.png: real shapes above samples of a run; with a longer run its samples above those.

    python figures/samples.py runs/shapes-Ti-16-x
    python figures/samples.py runs/shapes-Ti-16-x runs/long     (jit.py train --steps N --out ...)
"""

import sys
from pathlib import Path

import torch
from common import finish, jit
from style import GREY, INK, canvas, new_figure, save, script_to_out, show


def load(run):
    """Network, flow and config of a run on the shapes, and the steps it was trained."""
    step = jit.load_checkpoint(run / jit.CHECKPOINT if run.is_dir() else run)["step"]
    net, flow, config = jit.load_run(run, "ema1", jit.choose_device("auto"))
    jit.check(config["data"] == "shapes", f"{run} is no run on the shapes: python jit.py sample.")
    return net, flow, config, step


def draw_unselected(net, flow, n):
    """n samples of seed 0, classes in turn: uint8 (n, C, S, S)."""
    y, _ = jit.pick_classes(n, net.classes)
    cfg = jit.guidance_weight(2.0, net, flow)
    batches = jit.sample_images(net, y.to(net.pos_embed.device), flow, net.shape, cfg=cfg)
    return torch.cat(list(batches)).cpu()


def draw_rows(ax, top, images, side):
    """uint8 images (n, 3, S, S), ten in a row, each in its column; returns where they end."""
    for i, image in enumerate(images // 5 * 5):  # 52 levels of a colour: a third smaller
        middle, bottom = 0.4375 + 0.825 * (i % 10), top - i // 10 * (side + 0.025) - side
        show(ax, image / 127.5 - 1, middle - side / 2, bottom, side, "none")
    return bottom


def draw_samples(runs):
    """Real shapes above samples of a run, or of a long run and, smaller, of the default run."""
    (net, flow, _, steps), *default = runs
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), net.shape[-1]))
    title = f"What {flow.pred}-prediction draws after {steps:,} steps, beneath real shapes"
    label = "long run: " * len(default) + f"samples after {steps:,} steps"
    # Label, images, their side in inches.
    parts = [("real: the renderings that training sees", real, 0.8)]
    parts += [(label, draw_unselected(net, flow, 30), 0.8)]
    for net, flow, _, fewer in default:
        title = f"{fewer:,} steps draw the ten shapes, {steps:,} steps cleaner ones"
        label = (f"default run (python jit.py train): samples after {fewer:,} steps, "
                 "from the same noise, half as large")  # fmt: skip
        parts += [(label, draw_unselected(net, flow, 20), 0.4)]
    height = 0.925 + sum(0.35 + len(images) // 10 * (side + 0.025) for _, images, side in parts)
    note = "Samples are unselected: seed 0, classes in turn; EMA 1, guidance 2."
    figure = new_figure(height, title, note)
    ax, top = canvas(figure), height - 0.725
    for i, name in enumerate(jit.SHAPES):
        ax.text(0.4375 + 0.825 * i, top - 0.4, name, ha="center", fontsize=10, color=GREY)
    for label, images, side in parts:
        ax.text(0.04, top, label, va="top", fontsize=11, color=INK)
        top = draw_rows(ax, top - (0.45 if images is real else 0.25), images, side) - 0.125
    return figure


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run on the shapes, or its checkpoint")
    parser.add_argument("long", nargs="?", type=Path, help="a longer run of the same")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


def draw(args):
    runs = [load(path) for path in (args.long, args.run) if path]  # the long one first
    same = all(runs[0][2][key] == runs[-1][2][key] for key in ("network", "flow"))
    longer = len(runs) == 1 or same and runs[0][3] > runs[1][3]
    jit.check(longer, f"{args.long} must be the same as {args.run}, and trained for longer.")
    words = " ".join(str(path) for path in (args.run, args.long) if path)
    save(draw_samples(runs), args.out / "samples.png", f"python figures/samples.py {words}", 160)


if __name__ == "__main__":
    sys.exit(main())
