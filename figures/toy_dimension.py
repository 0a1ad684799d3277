"""The distance of the toy's samples from the plane against D, and how well its perceptron copies.

    python figures/toy_dimension.py --seeds 3     D = 2, 4 ... 512: 4 minutes
    python figures/toy_dimension.py --draw        the picture again, from the numbers
    python figures/toy_dimension.py copy          the copy test, a table: 5 minutes

The copy test asks the same perceptron to return its input, noise in D dimensions. A v-prediction
that failed only at what is not copied would leave that part of the noise in its samples: `left` is
the off_plane this means, to compare with toy_dimension.json and, at other widths, toy_why.json.
"""

import json
import math
from statistics import mean, stdev

import torch
from common import jit
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from style import COLOURS, GREY, save, script

import toy_manifold as toy

DISTANCES = {"off_plane": "distance from the plane", "off_curve": "distance from the curve",
             "missed": "v missed, mean square"}  # fmt: skip


def copy_error(D, width=256, steps=600, seed=0):
    """Train as toy_manifold does, to return the input. -> the part that is missed: 0 none, 1 all"""
    torch.manual_seed(seed)
    net, t = toy.Perceptron(D, width), torch.zeros(toy.BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = toy.learning_rate(step, steps, width)
        z = torch.randn(toy.BATCH, D)
        error = net(z, t) - z
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return error.square().mean().sqrt().item()  # of new noise, at a rate near 0


def copy_test():
    """A line for each D, width and length of training."""
    cases = [(2**k, 256, 600, 3) for k in range(2, 10)]
    cases += [(512, width, 600, 1) for width in (64, 128, 512, 1024, 2048)]
    cases += [(D, width, 2400, 1) for D, width in ((64, 256), (512, 256), (512, 1024))]
    for D, width, steps, seeds in cases:
        errors = [copy_error(D, width, steps, seed) for seed in range(seeds)]
        left = [error * math.sqrt((D - 2) / 2) for error in errors]  # untouched noise: this times 1
        spread = f" +- {stdev(left):.4f}" if seeds > 1 else ""
        words = f"error {mean(errors):.4f}, left {mean(left):.4f}{spread}"
        print(f"D {D:3}, width {width:4}, {steps:4} steps: {words}", flush=True)


def draw_errors(ax, records, field, error, joined=True, marker="o", size=5):
    """An error against a field of the networks: one dot a seed, a line through the means."""
    values = [value for (value,) in toy.group(records, field)]
    for (pred,), found in toy.group(records, "pred").items():
        if pred in COLOURS:
            x = [values.index(record[field]) for record in found]
            ax.plot(x, [r[error] for r in found], marker, color=COLOURS[pred], markersize=size)
        means = {value: mean(record[error] for record in same)
                 for (value,), same in toy.group(found, field).items()}  # fmt: skip
        x = [values.index(value) for value in means]
        if pred in COLOURS and joined:
            ax.plot(x, means.values(), color=COLOURS[pred])
        if pred == "noise" and len(means) > 1:
            ax.plot(x, means.values(), "--", color=GREY)
        elif pred == "noise":
            ax.axhline(*means.values(), linestyle="--", color=GREY)
    ax.set(yscale="log", xlim=(-0.4, len(values) - 0.6))
    ax.set_xticks(range(len(values)), [{"edm": "EDM"}.get(value, value) for value in values])
    ax.set_ylabel(DISTANCES[error], fontsize=11)
    return values


def legend_lines():
    """What colours and lines mean."""
    dots = dict(marker="o", markersize=5)
    lines = [Line2D([], [], color=COLOURS[p], label=toy.LABELS[p], **dots) for p in COLOURS]
    return [*lines, Line2D([], [], linestyle="--", color=GREY, label=toy.LABELS["noise"])]


def draw_dimension(records):
    """Distance from the plane against D, without D = 2, where there is no way off it."""
    figure = Figure(figsize=(8.3, 4.8), layout="constrained")
    ax = figure.subplots()
    dims = draw_errors(ax, [r for r in records if r["D"] > 2], "D", "off_plane")
    if 256 in dims:
        ax.axvline(dims.index(256), color="0.8", zorder=0)
        note = "256 dimensions, \n256 hidden units "
        ax.text(dims.index(256), 0.06, note, ha="right", color=GREY, fontsize=11)
    ax.set_xlabel("dimension D of the space", fontsize=11)
    figure.legend(handles=legend_lines(), loc="outside lower center", ncols=4, fontsize=11)
    title = "As D grows, ε- and v-prediction leave the plane; x-prediction stays close to it"
    figure.suptitle(title)
    return figure


def open_results(folder, name):
    """The folder of results, made and known to be writable; returns FOLDER/NAME.json."""
    jit.check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return folder / f"{name}.json"


def main(words=None):
    parser = toy.add_flags(script(__doc__))
    parser.add_argument("study", nargs="?", choices=("dimension", "copy"), default="dimension")
    args = parser.parse_args(words)
    if args.study == "copy":
        return copy_test()
    path = open_results(args.out, "toy_dimension")
    if not args.draw:
        preds = toy.PREDS + toy.REFERENCES
        configs = [toy.Config(2**k, pred=pred) for k in range(1, 10) for pred in preds]
        seeds = range(args.seed, args.seed + args.seeds)
        toy.save_records(path, toy.run_networks(configs, seeds, args.steps)[0])
    records = json.loads(path.read_text())
    command = f"python figures/toy_dimension.py --seeds {len(toy.group(records, 'seed'))}"
    save(draw_dimension(records), path.with_suffix(".png"), command, dpi=120)


if __name__ == "__main__":
    main()
