"""handover.png: one network samples until t, another goes on. Where is which mistake made?

    for pred in x v; do python jit.py train --size 32 --patch 8 --width 192 --heads 6 \\
      --bottleneck 0 --context-tokens 0 --steps 4000 --lr 0.00133 --cooldown 1 \\
      --pred $pred --out runs/$pred; done
    python figures/handover.py runs/x runs/v

Both must be runs on the shapes, of one size. The numbers are those of figures/run.py.
"""

import sys
from pathlib import Path

import judge
import torch
from common import finish, jit
from draw import PREDICTION, in_words, mosaic
from matplotlib.figure import Figure
from run import noise_left
from studies import SAMPLE, SHOWN
from style import COLOURS, save, script_to_out, wrap

TIMES = (0, 0.1, 0.2, 0.3, 0.5, 1)  # at which the second takes over; 0 and 1: one alone


def hand_over(first, second, at):
    """The velocity of the first for t < at, then of the second."""
    return lambda z, t: (first if t < at else second)(z, t)


@torch.no_grad()
def draw_samples(first, second, at, y):
    """first, second: (net, flow). Samples as floats, not clipped, and the noise they began with."""
    noise, samples = jit.image_noise(first[0].shape, 0, range(len(y))), []
    for labels, z in zip(y.split(50), noise.split(50)):
        both = [jit.guided_velocity(*part, SAMPLE["cfg"], SAMPLE["interval"])
                for part in ((net, labels, flow) for net, flow in (first, second))]  # fmt: skip
        *_, (_, z, _) = jit.integrate(hand_over(*both, at), z, SAMPLE["sampling_steps"])
        samples.append(z)
    return torch.cat(samples), noise


def draw_cell(ax, samples, noise, y, judge_net):
    pixels = jit.to_uint8(samples)
    ax.imshow(mosaic(pixels[[SHOWN[i] for i in (0, 1, 3, 4)]].numpy()), interpolation="nearest")
    found = dict(recognised=judge.recognised(pixels, y, judge_net),
                 noise_left=noise_left(samples, noise))  # fmt: skip
    ax.set_xlabel("\n".join(in_words(score, [value]) for score, value in found.items()))


def draw(args):
    runs = [jit.load_run(run, "ema1", "cpu")[:2] for run in (args.first, args.second)]
    jit.check(runs[0][0].shape == runs[1][0].shape, "The runs must be of one size of images.")
    y, _ = jit.pick_classes(args.n, 10)
    judge_net = judge.load_judge("shapes")
    title = "Until t one network samples, then the other: early steps decide what is recognised"
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    figure.suptitle(wrap(title, 11))
    for order, axes in zip((runs, runs[::-1]), figure.subplots(2, len(TIMES))):
        names = [flow.pred for _, flow in order]
        axes[0].set_ylabel(" then ".join(names), color=COLOURS[names[0]])
        for at, ax in zip(TIMES, axes):
            draw_cell(ax, *draw_samples(*order, at, y), y, judge_net)
            alone = {0: PREDICTION[names[1]], 1: PREDICTION[names[0]]}
            ax.set(xticks=[], yticks=[], title=alone.get(at, f"until t = {at}"))
            ax.spines[:].set_visible(False)
    save(figure, args.out / "handover.png", f"figures/handover.py {args.first} {args.second}", 100)


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("first", type=Path, help="folder of a run")
    parser.add_argument("second", type=Path, help="folder of another")
    parser.add_argument("--n", type=jit.positive_int, default=300, help="samples of each kind")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
