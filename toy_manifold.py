"""A network can predict clean data in D dimensions where it cannot predict noise (paper Figure 2).

    python toy_manifold.py                  12 small networks, under a minute on one CPU core
    python toy_manifold.py --draw           only the picture again, from the numbers: seconds

A spiral in a plane is put into R^D; a small perceptron learns to denoise it: predict x, eps or v.
Loss, conversions and sampler come from jit.py: what trains the image Transformer is tested here.
As there, t = 0 is noise, t = 1 is data, z = t x + (1 - t) eps, v = x - eps; B is the batch size.
It leaves toy_manifold.png in runs/figures, or in --out, and the numbers in results/ there.

figures/findings.md tells what further studies found (figures/toy_studies.py), and why what the
paper leaves open was chosen so.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from jit import convert, flow_loss, integrate, interpolate, positive_int, write_whole

PREDS = ("x", "eps", "v")  # what a network can predict
REFERENCES = ("data", "oracle", "noise")  # new data, best possible denoiser, noise as it is
ERRORS = ("off_plane", "off_curve", "sliced_w1")
STEPS, BATCH, LR = 600, 128, 4e-3
SAMPLES, SOLVER_STEPS = 1000, 20
DIMS = (2, 8, 16, 512)
COLOURS = dict(x="#0072B2", eps="#D55E00", v="#E69F00")  # as in all pictures (figures/style.py)
LABELS = dict(x="x-prediction", eps="ε-prediction", v="v-prediction",
              data="true data", oracle="oracle", noise="untouched noise")  # fmt: skip


class Config(NamedTuple):
    """One network of a study."""

    D: int  # dimension of the space
    d: int = 2  # dimension of the data
    data: str = "spirals"  # or "gaussian"
    width: int = 256  # hidden units in each layer
    skip: str = "none"  # path for z around the hidden layers (figures/toy_studies.py)
    pred: str = "x"  # what the network predicts; one of REFERENCES: no network
    loss: str = "v"  # the quantity that the loss compares


# ---- Data ----


def quantiles(n):
    """n evenly spaced numbers in (0, 1)."""
    return (torch.arange(n) + 0.5) / n


def spiral(u):
    """u uniform in (0, 1) -> points spread evenly along 1.5 turns. (...) -> (..., 2)"""
    angle = 3 * math.pi * u.sqrt()  # also the radius; the root puts more points where it is large
    curve = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=-1)
    center, scale = torch.tensor([-0.4244, 1.9099]), torch.tensor([4.7725, 4.2200])
    return (curve - center) / scale  # mean 0 and variance 1 in both coordinates


def random_plane(D, d):
    """P (D, d), orthonormal columns: x = P s puts s (d,) into R^D. No network is told P."""
    return torch.linalg.qr(torch.randn(D, d)).Q


def draw_data(n, P, data="spirals"):
    """n points x = P s -> (n, D). s (n, d): independent spirals in pairs of coordinates, or normal
    numbers, as many dimensions without any shape."""
    s = spiral(torch.rand(n, P.shape[1] // 2)).flatten(1)  # (n, d/2, 2) -> (n, d)
    s = torch.randn_like(s) if data == "gaussian" else s
    return s @ P.T


# ---- Network ----


class Perceptron(nn.Module):
    """Five linear layers with ReLU between them; t is one more input. outputs: D, unless given."""

    def __init__(self, D, width=256, outputs=None):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(D + 1, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, outputs or D),
        )  # fmt: skip

    def forward(self, z, t):
        return self.layers(torch.cat([z, t[:, None]], dim=1))  # (B, D + 1) -> (B, D)


# ---- Training and sampling ----


def draw_times(n):
    """n training times, logit(t) ~ N(0.5, 1.5^2), one from each n-th part of that law."""
    u = (torch.arange(n) + torch.rand(n)) / n
    normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))  # uniform -> N(0, 1), and never infinite
    return torch.sigmoid(0.5 + 1.5 * normal)  # images: -0.8, 0.8, but a curve is finer


def learning_rate(step, steps, width=256):
    """50 steps of warm-up; from half-way on, linearly to 0. Lower for wide layers, as they need."""
    return LR * min(1, 256 / width) * min(1, (step + 1) / 50, 2 * (steps - step) / steps)


def train_network(net, config, P, steps=STEPS, title=""):
    """Train a network on fresh data (paper Algorithm 1)."""
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in tqdm(range(steps), title, leave=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, config.width)
        x = draw_data(BATCH, P, config.data)
        eps, t = torch.randn(BATCH, config.D), draw_times(BATCH)
        output = net(interpolate(x, eps, t), t)
        loss = flow_loss(output, x, eps, t, config.pred, config.loss).mean()
        optimizer.zero_grad()  # here the freed memory goes straight to the new gradients: faster
        loss.backward()
        optimizer.step()


@torch.no_grad()
def sample(net, pred, noise):
    """Follow dz/dt = v from noise (n, D) at t = 0 to samples at t = 1 (paper Algorithm 2)."""

    def velocity(z, t):
        t = torch.full((len(z),), t)
        return convert(net(z, t), z, t, pred)["v"]

    return integrate(velocity, noise, SOLVER_STEPS, "heun")


def posterior_mean(z, t, P, points):
    """The oracle, E[x | z] for x one of points (K, 2) in the plane: no x-prediction is better."""
    # P^T z is all z tells of x. Point c is as likely as the noise that leads from t c to P^T z.
    t = t[:, None]  # (B, 1)
    distance = ((z @ P)[:, None] - t[:, None] * points).norm(dim=-1)  # (B, K)
    probability = (-(distance**2) / (2 * (1 - t) ** 2)).softmax(dim=1)
    return probability @ points @ P.T  # (B, D)


# ---- Measuring ----


def errors_of(x, P):
    """How far samples x (n, D) lie from the plane, and their shadow in it from the spiral."""
    s = x @ P
    off_plane = (x - s @ P.T).norm(dim=1).mean() / math.sqrt(P.shape[1])  # 1 = norm of the data
    planes = s.unflatten(1, (-1, 2)).transpose(0, 1)  # (n, d) -> (d/2, n, 2)
    curve = spiral(quantiles(2048))
    off_curve = mean(torch.cdist(plane, curve).amin(dim=1).mean().item() for plane in planes)
    return dict(off_plane=off_plane.item(), off_curve=off_curve, sliced_w1=sliced_w1(planes))


def sliced_w1(planes):
    """Wasserstein-1 distance from points (..., n, 2) to the spiral, mean over 32 projections."""
    angle = math.pi * quantiles(32)
    directions = torch.stack([angle.cos(), angle.sin()])  # (2, 32)
    target = spiral(quantiles(planes.shape[-2])) @ directions  # (n, 32)
    # On a line, the best transport takes the k-th point to the k-th.
    difference = (planes @ directions).sort(dim=-2).values - target.sort(dim=0).values
    return difference.abs().mean().item()


def plain(config):
    return Perceptron(config.D, config.width)


def run_network(config, seed, steps=STEPS, title="", build=plain):
    """Train, sample and measure one network. -> its record, its samples in the plane (n, d)

    build(config) makes the network; where that has `facts`, they are part of the record.
    """
    torch.manual_seed(seed)
    P = random_plane(config.D, config.d)
    record = config._asdict() | dict(seed=seed)
    start = torch.Generator().manual_seed(seed + 1000)  # every network starts from the same noise
    noise = torch.randn(SAMPLES, config.D, generator=start)
    if config.pred == "noise":
        samples = noise
    elif config.pred == "data":
        samples = draw_data(SAMPLES, P)
    elif config.pred == "oracle":
        points = spiral(quantiles(512))
        samples = sample(lambda z, t: posterior_mean(z, t, P, points), "x", noise)
    else:
        net = build(config)
        train_network(net, config, P, steps, title)
        samples = sample(net, config.pred, noise)
        record |= net.facts(P) if hasattr(net, "facts") else {}
    return record | errors_of(samples, P), samples @ P


def run_networks(configs, seeds, steps=STEPS, build=plain):
    """All networks of a study. -> records, {"x-512": samples in the plane of the first seed}"""
    jobs = [(config, seed) for config in configs for seed in seeds]
    jobs = [job for job in jobs if job[0].width < 1024 or job[1] == seeds[0]]  # slow: one seed
    records, planes = [], {}
    for number, (config, seed) in enumerate(jobs, start=1):
        record, plane = run_network(config, seed, steps, f"{number} of {len(jobs)}", build)
        records.append(record)
        planes.setdefault(f"{config.pred}-{config.D}", plane.numpy())
    print_table(records)
    return records, planes


# ---- Table and picture ----


def group(records, *fields):
    """{values of the fields: the records that have them}, in order of appearance."""
    groups = {}
    for record in records:
        groups.setdefault(tuple(record[field] for field in fields), []).append(record)
    return groups


def print_table(records):
    """Mean +- standard deviation over seeds, a row for each network."""
    heads = "".join(f"   {error:19}" for error in ERRORS)
    fields = [field for field in Config._fields if field != "data"]  # spirals, all of them
    print("   D    d  width  skip    pred    loss" + heads)
    for config, found in group(records, *fields).items():
        line = "{:4} {:4} {:6}  {:7} {:7} {:4}".format(*config)
        for error in ERRORS:
            values = [record[error] for record in found]
            spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
            line += f"{mean(values):12.4f}{spread:10}"
        print(line)


def draw_samples(records, planes):
    """A row for each prediction, a column for each D; the last column holds the references."""
    errors = {key: mean(record["off_plane"] for record in found)
              for key, found in group(records, "D", "pred").items()}  # fmt: skip
    dims = sorted({record["D"] for record in records})
    figure = Figure(figsize=(1.6 * len(dims) + 1.9, 6), layout="constrained")
    rows = figure.subplots(3, len(dims) + 1, squeeze=False)
    for row, pred, reference in zip(rows, COLOURS, REFERENCES):
        for ax, D in zip(row, dims):
            draw_plane(ax, planes[f"{pred}-{D}"], COLOURS[pred])
            ax.set_xlabel(f"off plane: {round(errors[D, pred], 4):.3g}", fontsize=10.5)
        draw_plane(row[-1], planes[f"{reference}-{dims[-1]}"], "#666666")
        error = round(errors[dims[-1], reference], 4)
        row[-1].set_xlabel(f"{LABELS[reference]}: {error:#.3g}", fontsize=9.5)
        row[0].set_ylabel(LABELS[pred], color=COLOURS[pred], fontsize=12)
    for ax, title in zip(rows[0], [*(f"D = {D}" for D in dims), f"reference, {dims[-1]}"]):
        ax.set_title(title, fontsize=12)
    title = "As D grows, ε- and v-prediction lose the spiral; x-prediction keeps it"
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def draw_plane(ax, points, colour):
    """Points (n, 2) over the true curve, in the same frame everywhere."""
    frame = 2.5
    ax.plot(*spiral(quantiles(500)).T, color="0.8", linewidth=1)
    ax.scatter(*points.T, s=1.5, color=colour, linewidths=0)
    ax.set(xlim=(-frame, frame), ylim=(-frame, frame), xticks=[], yticks=[], aspect="equal")
    outside = (np.abs(points) > frame).any(axis=1).mean()
    if outside > 0.5:  # else the panel shows it
        ax.text(0, -2.2, f"{outside:.1%} outside", ha="center", fontsize=11)


# ---- Files and command line ----


def add_flags(parser):
    """The flags of all toy studies."""
    add = parser.add_argument
    add("--seeds", default=1, type=positive_int, help="how many seeds to average over")
    add("--seed", type=int, default=0, help="the first of them")
    add("--steps", default=STEPS, type=positive_int, help="training steps")
    add("--out", type=Path, default=Path("runs/figures"), help="folder for the results")
    return parser


def save_records(path, records):
    """Numbers as JSON, one record a line: records, or {study: records}."""
    text = json.dumps(records).replace("}, {", "},\n{") + "\n"
    write_whole(path, lambda part: part.write_text(text))


def parse(words=None):
    style = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = add_flags(argparse.ArgumentParser(description=__doc__, **style))
    parser.add_argument("--dims", type=positive_int, nargs="+", default=DIMS, help="of the space")
    parser.add_argument("--draw", action="store_true", help="only the picture, from its numbers")
    args = parser.parse_args(words)
    path = args.out / "results" / "toy_manifold.json"
    if min(args.dims) < 2:
        parser.error("--dims: a plane needs two dimensions")
    if args.draw and args != parser.parse_args(["--draw", "--out", str(args.out)]):
        parser.error("--draw draws the numbers that are there: leave out all but --out")
    if args.draw and not path.exists():
        parser.error(f"there is no {path}: leave out --draw")
    return args, path


def main(words=None):
    args, path = parse(words)
    torch.set_num_threads(1)  # such small products gain nothing from more
    if not args.draw:
        seeds = range(args.seed, args.seed + args.seeds)
        preds = PREDS + REFERENCES
        configs = [Config(D, pred=pred) for D in sorted(set(args.dims)) for pred in preds]
        records, planes = run_networks(configs, seeds, args.steps)
        planes = {key: plane.astype(np.float16) for key, plane in planes.items()}
        save_records(path, records)
        write_whole(path.with_suffix(".npz"), functools.partial(np.savez_compressed, **planes))
    records = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as planes:
        figure = draw_samples(records, {key: plane.astype(float) for key, plane in planes.items()})
    picture = args.out / "toy_manifold.png"
    write_whole(picture, functools.partial(figure.savefig, format="png", dpi=120))
    print(f"wrote {picture}; its numbers are in {path.parent}")


if __name__ == "__main__":
    main()
