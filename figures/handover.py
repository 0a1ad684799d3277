"""handover.png: one network samples until t, another goes on. Which mistakes are corrected?

    for pred in x v; do python jit.py train --model Ti/8 --size 32 --width 192 --heads 6 \\
      --bottleneck 0 --context-tokens 0 --steps 4000 --lr 0.00133 --cooldown 1 \\
      --pred $pred --out runs/$pred; done
    python figures/handover.py runs/x runs/v

Both must be runs on the shapes, of one size. The numbers stand in results/handover.json, too.
"""

import json
import sys
from pathlib import Path

import judge
import torch
from common import classes_in_turn, finish, jit
from draw import DPI, PREDICTION, in_words, mosaic
from matplotlib.figure import Figure
from run import follow, noise_left
from studies import SAMPLE, SHOWN
from style import COLOURS, save, script_to_out

TIMES = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)  # when the second takes over; 0 and 1: one alone


def hand_over(first, second, at):
    """The velocity of the first for t < at, then of the second."""
    return lambda z, t: (first if t < at else second)(z, t)


@torch.no_grad()
def draw_samples(first, second, at, y):
    """first, second: (net, flow). Samples as floats, not clipped, and the noise they began with."""
    net, flow = first
    noise = flow.noise_scale * jit.image_noise(net.shape, 0, range(len(y)))

    def velocity_of(labels):
        both = (jit.guided_velocity(net, labels, flow, SAMPLE["cfg"], SAMPLE["interval"])
                for net, flow in (first, second))  # fmt: skip
        return hand_over(*both, at)

    how = {part: SAMPLE[part] for part in ("solver", "sampling_steps", "batch_size")}
    return follow(velocity_of, noise, y, **how), noise


def draw_cell(ax, samples, noise, y, judge_net):
    """Four samples and their scores, which are returned."""
    pixels = jit.to_uint8(samples)
    shown = pixels[[i % len(pixels) for i in SHOWN[:4]]]
    ax.imshow(mosaic(shown.numpy()), interpolation="nearest")
    found = dict(recognised=judge.recognised(pixels, y, judge_net),
                 noise_left=noise_left(samples, noise))  # fmt: skip
    ax.set_xlabel("\n".join(in_words(score, [value]) for score, value in found.items()))
    return found


def draw(args):
    loaded = [jit.load_run(run, "ema1", "cpu") for run in (args.first, args.second)]
    kinds = {(config["data"], net.shape, flow.noise_scale) for net, flow, config in loaded}
    jit.check(len(kinds) == 1 and kinds.pop()[0] == "shapes",
              "Both runs must be on the shapes, of one size and noise scale.")
    runs = [(net, flow) for net, flow, _ in loaded]
    y = classes_in_turn(args.n, 10)
    judge_net, records = judge.load_judge("shapes"), []
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle("Until t one network samples, then the other goes on")
    for order, axes in zip((runs, runs[::-1]), figure.subplots(2, len(TIMES))):
        names = [flow.pred for _, flow in order]
        axes[0].set_ylabel(" then ".join(names), color=COLOURS[names[0]])
        for at, ax in zip(TIMES, axes):
            found = draw_cell(ax, *draw_samples(*order, at, y), y, judge_net)
            records.append(dict(first=names[0], second=names[1], at=at) | found)
            alone = {0: PREDICTION[names[1]], 1: PREDICTION[names[0]]}
            ax.set(xticks=[], yticks=[], title=alone.get(at, f"until t = {at}"))
            ax.spines[:].set_visible(False)
    command = f"python figures/handover.py runs/{args.first.name} runs/{args.second.name}"
    save(figure, args.out / "handover.png", command, DPI)
    text = json.dumps(dict(command=command, n=args.n, records=records), indent=1) + "\n"
    (args.out / "results").mkdir(exist_ok=True)
    (args.out / "results" / "handover.json").write_text(text)


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("first", type=Path, help="folder of a run")
    parser.add_argument("second", type=Path, help="folder of another")
    parser.add_argument("--n", type=jit.positive_int, default=300, help="samples of each kind")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
