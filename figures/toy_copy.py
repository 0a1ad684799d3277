"""How well does toy_manifold.py's perceptron copy? It is asked to return its own input, noise in D dimensions.

    python figures/toy_copy.py    5 CPU-minutes, most of them for the wide networks

A v-prediction that failed only at what is not copied would leave that part of the noise in its samples: `left` is the
off_plane this means, to compare with figures/toy_dimension.json and, at other widths, with figures/toy_why.json.
"""

import argparse
import math
import sys
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import toy_manifold as toy  # noqa: E402


def copy_error(D, width=256, steps=600, seed=0):
    """Train as toy_manifold.train does, but to return the input. -> the part of it that is missed: 0 none, 1 all"""
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


def report(D, width=256, steps=600, seeds=1):
    errors = [copy_error(D, width, steps, seed) for seed in range(seeds)]
    left = [error * math.sqrt((D - 2) / 2) for error in errors]  # untouched noise has off_plane sqrt((D - 2) / 2)
    spread = f" +- {stdev(left):.4f}" if seeds > 1 else ""
    print(f"D {D:3}, width {width:4}, {steps:4} steps: error {mean(errors):.4f}, left {mean(left):.4f}{spread}", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    for D in (4, 8, 16, 32, 64, 128, 256, 512):
        report(D, seeds=3)
    for width in (64, 128, 512, 1024, 2048):
        report(512, width)
    for D, width in ((64, 256), (512, 256), (512, 1024)):
        report(D, width, steps=2400)
