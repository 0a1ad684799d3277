"""The toy of JiT (paper Figure 2): a network can predict clean data in D dimensions, where it cannot predict noise.

    python toy_manifold.py                    Figure 1, samples: 50 s on one CPU core (--seeds N: N times as long)
    python toy_manifold.py --sweep dimension  Figure 2, error against D: 100 s a seed
    python toy_manifold.py --sweep STUDY      Figure 3: skip 40 s, combos 75 s, intrinsic 100 s a seed; width 15 min
Data: a spiral in the plane, put into R^D as x = P s (P: D x 2, random, orthonormal columns; no network sees it).
Network: a five-layer ReLU perceptron, 256 hidden units, which sees z = t x + (1 - t) eps (t = 0 noise, 1 data) and t,
predicts x, eps or v = x - eps under the v-loss. Loss, conversion and sampler are jit.py's: the Transformer's own.
Errors: off_plane = E|x - P P^T x| / sqrt(d), sqrt(d) being the norm of the data; off_curve = E min_c |s - c|, from
s = P^T x to the nearest point c of the curve; sliced_w1 = Wasserstein-1 distance from s to the curve, both projected to
a line, mean of 32 lines. References: "true data", a second draw; "oracle", the exact E[x | z], through the same solver.
Chosen where the paper is silent, by trying: AdamW, 600 steps of 128, lr 4e-3 (50 of warm-up, to 0 from half-way);
logit t ~ N(0.5, 1.5^2), stratified (images: -0.8, 0.8; a curve has detail at lower noise), t as one more input; 20 Heun
steps: the last call is at t = 0.95, so that jit.py's clip max(1 - t, 0.05) never bites and leaves no noise behind.
Lessons: (1) The prediction decides, not the loss: eps and v push D numbers through 256 units, x d. (2) A way for z
around the units, if learned, repairs most of v; one that makes x cancel noise ruins x. (3) x needs d << D: with d = 32
(16 spirals at once) it still finds the subspace, but not the spirals. (4) Four times the width saves neither eps nor v.
"""

import argparse
import json
import math
from collections import namedtuple
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from jit import convert, flow_loss, integrate, interpolate

PREDS, REFERENCES = ("x", "eps", "v"), ("data", "oracle")
STEPS, BATCH, LR, SAMPLES, SOLVER_STEPS = 600, 128, 4e-3, 1000, 20
METRICS = {"off_plane": "off_plane (1 = norm of the data)", "off_curve": "off_curve (1 = std of the data)",
           "sliced_w1": "sliced_w1 (1 = std of the data)"}  # fmt: skip
LABEL = {"x": "x-prediction", "eps": "ε-prediction", "v": "v-prediction", "data": "true data", "oracle": "oracle"}
COLOUR = {"x": "#0072B2", "eps": "#D55E00", "v": "#E69F00", "data": "#666666", "oracle": "#666666"}
# One network: dimension of space and of data, hidden width, way around the hidden layers, prediction, loss.
Run = namedtuple("Run", "D d width skip pred loss", defaults=(2, 256, "none", "x", "v"))


def quantiles(n):
    return (torch.arange(n) + 0.5) / n


def spiral(u):
    """Uniform u in (0, 1) -> points spread evenly on 1.5 turns of r = angle, mean 0, variance 1. (...) -> (..., 2)"""
    angle = 3 * math.pi * u.sqrt()
    arm = torch.stack([angle * angle.cos(), angle * angle.sin()], -1)
    return (arm - torch.tensor([-0.4244, 1.9099])) / torch.tensor([4.7725, 4.2200])


def draw_data(n, P, rng):
    """n points x = P s, an independent spiral in each pair of the d coordinates of s. -> (n, D)"""
    return spiral(torch.rand(n, P.shape[1] // 2, generator=rng)).flatten(1) @ P.T  # (n, d/2, 2) -> (n, d) -> (n, D)


class Bank(torch.nn.Module):
    """M five-layer ReLU perceptrons (z, t) -> x, eps or v, as one: a single batched product a layer runs them all."""

    def __init__(self, runs, rng):
        super().__init__()
        self.runs, first = runs, runs[0]
        sizes = [first.D + 1, *[first.width] * 4, first.D + (first.skip == "gate")]
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:]):
            weight = (2 * torch.rand(fan_in, fan_out, generator=rng) - 1) / fan_in**0.5  # nn.Linear's law
            self.weights.append(weight.repeat(len(runs), 1, 1))
            self.biases.append(torch.zeros(len(runs), 1, fan_out))

    def forward(self, z, t):
        h = torch.cat([z, t.expand_as(z[..., :1])], -1)  # (M, B, D), (B, 1) -> (M, B, D + 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(bias, h.relu() if layer > 0 else h, weight)  # (M, B, in) -> (M, B, out)
        return lead_around(self.runs[0].skip, h, z, t)


def lead_around(skip, net, z, t):
    """z past the hidden layers: pre-conditioning of x (paper Table 10; sigma_d = 0.5), or a gate that v learns."""
    if skip == "linear":
        return t * z + (1 - t) * net
    if skip == "EDM":
        total = 0.25 * t**2 + (1 - t) ** 2
        return 0.25 * t / total * z + (1 - t) * (0.25 / total).sqrt() * net
    if skip == "gate":
        return net[..., :-1] - net[..., -1:] * z
    return net


def train(runs, seed, steps=STEPS, device="cpu", tick=lambda: None):
    """Train networks of one shape on the same batches. The CPU draws all random numbers, on any device. -> Bank, P"""
    rng = torch.Generator().manual_seed(seed)
    P = torch.linalg.qr(torch.randn(runs[0].D, runs[0].d, generator=rng)).Q  # (D, d), orthonormal columns
    bank = Bank(runs, rng).to(device)
    optimiser = torch.optim.AdamW(bank.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(steps):  # 50 steps of warm-up; linear decay to 0 from half-way on
        optimiser.param_groups[0]["lr"] = LR * min(1, (step + 1) / 50, 2 * (steps - step) / steps)
        x, eps = draw_data(BATCH, P, rng).to(device), torch.randn(BATCH, len(P), generator=rng).to(device)
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=rng)) / BATCH  # one u in each 128th of (0, 1)
        t = torch.sigmoid(0.5 + 1.5 * torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))).to(device)  # logit t: a normal law
        out = bank(interpolate(x, eps, t).expand(len(runs), -1, -1), t[:, None])  # (B, D) -> (M, B, D)
        losses = [flow_loss(o, x, eps, t, run.pred, run.loss).mean() for o, run in zip(out, runs)]
        optimiser.zero_grad()
        sum(losses).backward()  # no parameter is shared, so each network trains as if alone
        optimiser.step()
        tick()
    return bank, P


def solve(velocity, copies, D, seed, device="cpu"):
    """Follow dz/dt = velocity(z, t) from this seed's noise, the same for all networks. -> (M, n, D)"""
    noise = torch.randn(SAMPLES, D, generator=torch.Generator().manual_seed(1000 + seed)).to(device)
    *_, (_, z, _) = integrate(velocity, noise.expand(copies, -1, -1), SOLVER_STEPS)
    return z.cpu()


def bank_velocity(bank, z, t):
    """v of every network at time t. (M, n, D), float -> (M, n, D)"""
    t = torch.full(z.shape[1:2], t, device=z.device)
    out = bank(z, t[:, None])
    return torch.stack([convert(o, y, t, run.pred)["v"] for o, y, run in zip(out, z, bank.runs)])


def posterior_mean(z, t, P, points):
    """E[x | z_t = z], exact for data uniform over P points (K, 2): P^T z is all z says of x. (..., D) -> (..., D)"""
    squares = ((z @ P).unsqueeze(-2) - t * points).square().sum(-1)  # (..., 1, 2), (K, 2) -> (..., K)
    return (-squares / (2 * (1 - t) ** 2)).softmax(-1) @ points @ P.T


def measure(x, P):
    """The three errors of the docstring for samples x (n, D)."""
    s = x @ P
    off = (x - s @ P.T).norm(dim=1).mean() / P.shape[1] ** 0.5
    planes = s.unflatten(1, (-1, 2)).transpose(0, 1)  # (n, d) -> (d/2, n, 2)
    near = [torch.cdist(plane, spiral(quantiles(2048))).amin(1).mean().item() for plane in planes]
    angle = math.pi * quantiles(32)
    directions = torch.stack([angle.cos(), angle.sin()])  # (2, 32)
    target = (spiral(quantiles(len(x))) @ directions).sort(0).values  # (n, 32)
    w1 = ((planes @ directions).sort(1).values - target).abs().mean()
    return {"off_plane": off.item(), "off_curve": mean(near), "sliced_w1": w1.item()}


def run_bank(runs, seed, steps=STEPS, device="cpu", tick=lambda: None):
    """Train, sample and measure a bank; with the plain one, the references. -> records, {run: (n, d) in the plane}"""
    bank, P = train(runs, seed, steps, device, tick)
    found = dict(zip(runs, solve(lambda z, t: bank_velocity(bank, z, t), len(runs), len(P), seed, device)))
    if runs[0] == Run(len(P)):
        points = spiral(quantiles(512))
        oracle = solve(lambda z, t: (posterior_mean(z, t, P, points) - z) / (1 - t), 1, len(P), seed)
        found[Run(len(P), pred="data")] = draw_data(SAMPLES, P, torch.Generator().manual_seed(2000 + seed))
        found[Run(len(P), pred="oracle")] = oracle[0]
    records = [run._asdict() | {"seed": seed} | measure(x, P) for run, x in found.items()]
    return records, {run: x @ P for run, x in found.items()}


def study(name, dims):
    """The banks of a study, each a tuple of runs of one shape."""
    if name == "combos":
        return [tuple(Run(D, pred=pred, loss=loss) for pred in PREDS for loss in PREDS) for D in (2, 512)]
    if name == "skip":
        ways = {"none": PREDS, "linear": "x", "EDM": "x", "gate": "v"}
        return [tuple(Run(512, skip=skip, pred=pred) for pred in preds) for skip, preds in ways.items()]
    shapes = {"width": [Run(512, width=2**k) for k in range(6, 12)]}
    shapes["intrinsic"] = [Run(512, 2 * 4**k) for k in range(5)]
    return [tuple(shape._replace(pred=pred) for pred in PREDS) for shape in shapes.get(name, map(Run, dims))]


def values(records, field, **where):
    """A field of the records that agree with `where`: one number a seed."""
    return [record[field] for record in records if where.items() <= record.items()]


def print_table(records):
    """Mean +- standard deviation over seeds of the three errors, a row for each kind of network."""
    print("   D    d  width  skip    pred    loss" + "".join(f"   {metric:19}" for metric in METRICS))
    for run in dict.fromkeys(Run(*(record[field] for field in Run._fields)) for record in records):
        cells = [values(records, metric, **run._asdict()) for metric in METRICS]
        numbers = [f"{mean(cell):12.4f}" + (f" +- {stdev(cell):6.4f}" if len(cell) > 1 else "") for cell in cells]
        print("{:4} {:4} {:6}  {:7} {:7} {:4}".format(*run) + "".join(f"{number:22}" for number in numbers))


def draw_samples(records, planes):
    """Figure 1: the first seed's samples in the plane, and under each panel its errors (mean over seeds)."""
    dims = sorted({run.D for run in planes})
    figure, axes = plt.subplots(5, len(dims), figsize=(2 * len(dims), 11.2), squeeze=False, layout="constrained")
    for ax, run in zip(axes.flat, [Run(D, pred=pred) for pred in PREDS + REFERENCES for D in dims]):
        s = planes[run]
        outside = (s.abs() > 2.5).any(1).float().mean().item()
        frame = 2.5 if outside < 0.5 else s.abs().max().item()  # else the panel would be empty
        ax.plot(*spiral(quantiles(500)).T, color="0.75", linewidth=1)
        ax.scatter(*s.T, s=2, color=COLOUR[run.pred], linewidths=0)
        ax.set(xlim=(-frame, frame), ylim=(-frame, frame), xticks=[], yticks=[], aspect="equal")
        off, w1 = (mean(values(records, metric, D=run.D, pred=run.pred)) for metric in ("off_plane", "sliced_w1"))
        beyond = f"{outside:.1%} beyond ±2.5, axes ±{frame:.3g}" if outside > 0 else ""
        ax.set_xlabel(f"off_plane {round(off, 4):.3g}, sliced_w1 {w1:.2g}\n{beyond}", fontsize=7)
        ax.set_title(f"D = {run.D}" if run.pred == "x" else "")
        ax.set_ylabel(LABEL[run.pred] if run.D == dims[0] else "", color=COLOUR[run.pred], fontsize=12)
    return figure


def draw_lines(ax, records, field, metric, label):
    """A metric against a field of Run: mean over seeds, band from lowest to highest seed; reference levels in grey."""
    above = [record for record in records if record[metric] > 5e-4]  # less is rounding, as off the plane at D = d
    records = above or records
    for pred in PREDS:
        ticks = sorted(set(values(records, field, pred=pred)))
        rows = [values(records, metric, pred=pred, **{field: tick}) for tick in ticks]
        ax.plot(ticks, [mean(row) for row in rows], "o-", color=COLOUR[pred], label=LABEL[pred])
        ax.fill_between(ticks, [min(row) for row in rows], [max(row) for row in rows], color=COLOUR[pred], alpha=0.2)
    for pred, style in zip(REFERENCES, (":", "--")):
        levels = values(records, metric, pred=pred)
        if levels:
            ax.axhline(mean(levels), color=COLOUR[pred], linestyle=style, label=LABEL[pred])
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel=METRICS[metric])
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.legend(fontsize=8)


def draw_dots(ax, records, field, metric, label):
    """A metric for each prediction and each value of a field of Run: one dot a seed, hollow at D = 2."""
    rows = list(dict.fromkeys((record["pred"], record[field]) for record in records if record["pred"] in PREDS))
    for record in (record for record in records if record["pred"] in PREDS):
        colour, height = COLOUR[record["pred"]], rows.index((record["pred"], record[field]))
        ax.plot(record[metric], height, "o", color=colour, markerfacecolor="none" if record["D"] == 2 else colour)
    ax.set_yticks(range(len(rows)), [f"{pred}, {field} {value}" for pred, value in rows])
    ax.set(xscale="log", xlabel=label, ylim=(len(rows) - 0.5, -0.5))


def draw_studies(stored):
    """Figure 2 (error against D) or Figure 3 (why): a panel for each study that has run."""
    panels = [panel for panel in PANELS if panel[0] in stored]
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(8.4, 3.9 * rows), squeeze=False, layout="constrained")
    for ax, (name, plot, field, metric, label) in zip(axes.flat, panels):
        plot(ax, stored[name], field, metric, label)
    axes.flat[-1].set_visible(len(panels) % 2 == 0)
    return figure


PANELS = (
    ("dimension", draw_lines, "D", "off_plane", "dimension D of the space"),
    ("dimension", draw_lines, "D", "sliced_w1", "dimension D of the space"),
    ("width", draw_lines, "width", "off_plane", "(a) hidden width (D = 512)"),
    ("width", draw_lines, "width", "off_curve", "(a) hidden width (D = 512)"),
    ("intrinsic", draw_lines, "d", "off_plane", "(b) dimension d of the data (D = 512)"),
    ("intrinsic", draw_lines, "d", "sliced_w1", "(b) dimension d of the data (D = 512)"),
    ("combos", draw_dots, "loss", "off_curve", "(c) off_curve; hollow: D = 2, full: D = 512"),
    ("skip", draw_dots, "skip", "off_plane", "(d) off_plane (D = 512)"),
)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"toy_manifold.py: {message}\n")
    parser.add_argument("--sweep", choices="samples dimension width intrinsic combos skip".split(), default="samples")
    parser.add_argument("--dims", type=int, nargs="+", help="values of D, for samples and dimension")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default {STEPS})")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for figure and numbers")
    args = parser.parse_args(argv)
    if min(args.dims or [2]) < 2 or min(args.seeds, args.steps, args.seed + 1) < 1:
        parser.error("--dims must be at least 2, --seeds and --steps at least 1, --seed at least 0")
    try:
        torch.zeros(1, device=args.device)
        args.out.mkdir(parents=True, exist_ok=True)
    except (AssertionError, RuntimeError, OSError) as error:
        parser.error(f"--device or --out cannot be used: {error}")
    args.dims = args.dims or [2**k for k in range(1, 10) if args.sweep == "dimension" or k in (1, 3, 4, 9)]
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # small products: more threads gain little, and stall where cores are shared
    jobs = [(runs, args.seed + i) for runs in study(args.sweep, args.dims) for i in range(args.seeds)]
    jobs = [(runs, seed) for runs, seed in jobs if runs[0].width < 1024 or seed == args.seed]  # wide: one seed
    cost = {runs: len(runs) * runs[0].width * (2 * runs[0].D + 3 * runs[0].width) for runs, _ in jobs}
    total = args.steps * sum(cost[runs] for runs, _ in jobs)
    records, planes = [], {}
    with tqdm(total=total, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left") as bar:
        for runs, seed in jobs:
            bar.set_description("{} networks, seed {}: D {}, d {}, width {}".format(len(runs), seed, *runs[0]))
            new, shown = run_bank(runs, seed, args.steps, args.device, lambda: bar.update(cost[runs]))
            records, planes = records + new, shown | planes  # of the planes, the first seed's stay
    print_table(records)
    name = {"samples": "manifold", "dimension": "dimension"}.get(args.sweep, "why")
    path = args.out / f"toy_{name}.json"
    stored = (json.loads(path.read_text()) if path.exists() else {}) | {args.sweep: records}
    path.write_text(json.dumps(stored).replace("}, {", "},\n{") + "\n")
    figure = draw_samples(records, planes) if args.sweep == "samples" else draw_studies(stored)
    figure.savefig(path.with_suffix(".png"), dpi=100)
    print(f"wrote {path.with_suffix('.png')} and {path}")


if __name__ == "__main__":
    main()
