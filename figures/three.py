"""three.png: the same network three times at ratio 1: what x-, v- and eps-prediction draw.

    python figures/run.py ratio          trains the networks, among others
    python figures/three.py

One sample of each class, unselected: seed 0, as in figures/run.py; real ones on top.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from common import ROOT, finish, jit
from run import draw_samples, network_key
from studies import SAMPLE, STUDIES
from style import COLOURS, GREY, INK, canvas, new_figure, save, script_to_out, show

STEP, LEFT = 0.7, 1.22  # inches from one picture to the next, and to the first
NOTE = "Same network, data, training, sampler; patches of 192 numbers, width 192. Unselected."


def samples_of(pred, runs):
    """A sample of each class, uint8 (10, 3, 32, 32)."""
    (cell,) = [cell for cell in STUDIES["ratio"].cells() if cell.at == dict(ratio=1, pred=pred)]
    folder = runs / network_key(cell, 0, "shapes", False)
    jit.check(folder.exists(), f"no network of {pred}-prediction: python figures/run.py ratio")
    net, flow, _ = jit.load_run(folder, "ema1", "cpu")
    samples, _ = draw_samples(net, flow, torch.arange(10), **SAMPLE)
    return jit.to_uint8(samples)


def draw(args):
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), 32))
    rows = [("real", "images", INK, real)]
    for pred, name in (("x", "the image, x"), ("v", "the velocity, v"), ("eps", "the noise, ε")):
        rows.append(("predicts", name, COLOURS[pred], samples_of(pred, args.runs)))
    title = "On large patches: predict the image, and it draws; velocity or noise, and it fails"
    figure = new_figure(3.75, title, NOTE)
    ax = canvas(figure)
    for row, (above, below, colour, images) in enumerate(rows):
        bottom = 0.12 + STEP * (len(rows) - 1 - row)
        style = dict(ha="right", va="center", fontsize=10)
        ax.text(LEFT - 0.08, bottom + 0.43, above, color=GREY, **style)
        ax.text(LEFT - 0.08, bottom + 0.23, below, color=colour, **style)
        for i, image in enumerate(np.asarray(images) // 5 * 5):  # fewer colours: smaller
            show(ax, torch.from_numpy(image) / 127.5 - 1, LEFT + STEP * i, bottom, 0.66, "none")
    save(figure, args.out / "three.png", "python figures/three.py")


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "studies", help="of run.py")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
