"""A network can predict clean data in D dimensions where it cannot predict noise (paper Figure 2).

    python toy_manifold.py                     12 small networks, under a minute on one CPU core
    python toy_manifold.py --sweep dimension   a study; others: width, intrinsic, combos, skip

A spiral in a plane is put into R^D; a small perceptron learns to denoise it: predict x, eps or v.
Loss, conversions and sampler come from jit.py: what trains the image Transformer is tested here.
As there, t = 0 is noise, t = 1 is data, z = t x + (1 - t) eps, v = x - eps; B is the batch size.
figures/toy.md tells what the studies found, and why what the paper leaves open was chosen so.
"""

import json
import math
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from figures.toy_figures import draw, print_table
from jit import convert, flow_loss, integrate, interpolate, write_whole

PREDS = ("x", "eps", "v")  # what a network can predict
REFERENCES = ("data", "oracle", "noise")  # new data, best possible denoiser, noise as it is
METRICS = ("off_plane", "off_curve", "sliced_w1")
STEPS, BATCH, LR = 600, 128, 4e-3
SAMPLES, SOLVER_STEPS = 1000, 20
T_CLIP = 0.05  # divide by max(1 - t, T_CLIP); the last call of 20 solver steps is at t = 0.95


class Config(NamedTuple):
    """One network of a study."""

    D: int  # dimension of the space
    d: int = 2  # dimension of the data
    width: int = 256  # hidden units in each layer
    skip: str = "none"  # path for z around the hidden layers
    pred: str = "x"  # what the network predicts; one of REFERENCES: no network
    loss: str = "v"  # the quantity that the loss compares


# ---- Data ----------------------------------------------------------------------------------------
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


def draw_data(n, P):
    """n points x = P s, an independent spiral in each pair of coordinates of s. -> (n, D)"""
    s = spiral(torch.rand(n, P.shape[1] // 2)).flatten(1)  # (n, d/2, 2) -> (n, d)
    return s @ P.T


# ---- Network -------------------------------------------------------------------------------------
class Perceptron(nn.Module):
    """Five linear layers with ReLU between them; t is one more input."""

    def __init__(self, D, width=256, skip="none"):
        super().__init__()
        self.skip = skip
        self.layers = nn.Sequential(
            nn.Linear(D + 1, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, D + 1 if skip == "gate" else D),  # the gate is one more output
        )  # fmt: skip

    def forward(self, z, t):
        t = t[:, None]
        out = self.layers(torch.cat([z, t], dim=1))  # (B, D + 1) -> (B, D)
        return add_skip(self.skip, out, z, t)


def add_skip(kind, out, z, t):
    """Let z pass around the layers, by a fixed rule (paper Table 10, for x) or a learned gate."""
    if kind == "linear":
        return t * z + (1 - t) * out
    if kind == "EDM":  # for data of standard deviation 0.5, as the paper has it
        total = 0.25 * t**2 + (1 - t) ** 2
        return 0.25 * t / total * z + 0.5 * (1 - t) / total.sqrt() * out
    if kind == "gate":
        return out[:, :-1] - out[:, -1:] * z  # g (B, 1): one number for all D coordinates
    return out


# ---- Training and sampling -----------------------------------------------------------------------
def sample_t(n):
    """n training times, logit(t) ~ N(0.5, 1.5^2), one from each n-th part of that law."""
    u = (torch.arange(n) + torch.rand(n)) / n
    normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))  # uniform -> N(0, 1), and never infinite
    return torch.sigmoid(0.5 + 1.5 * normal)  # images: -0.8, 0.8, but a curve is finer


def learning_rate(step, steps, width=256):
    """50 steps of warm-up; from half-way on, linearly to 0. Lower for wide layers, as they need."""
    return LR * min(1, 256 / width) * min(1, (step + 1) / 50, 2 * (steps - step) / steps)


def train(config, P, steps=STEPS, title=""):
    """Train one network on fresh data (paper Algorithm 1)."""
    net = Perceptron(config.D, config.width, config.skip)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in tqdm(range(steps), title, leave=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, config.width)
        x, eps, t = draw_data(BATCH, P), torch.randn(BATCH, config.D), sample_t(BATCH)
        out = net(interpolate(x, eps, t), t)
        loss = flow_loss(out, x, eps, t, config.pred, config.loss, T_CLIP).mean()
        optimizer.zero_grad()  # here the freed memory goes straight to the new gradients: faster
        loss.backward()
        optimizer.step()
    return net


@torch.no_grad()
def sample(net, pred, noise):
    """Follow dz/dt = v from noise (n, D) at t = 0 to samples at t = 1 (paper Algorithm 2)."""

    def velocity(z, t):
        t = torch.full((len(z),), t)
        return convert(net(z, t), z, t, pred, T_CLIP)["v"]

    for _, z, _ in integrate(velocity, noise, SOLVER_STEPS, "heun"):
        pass  # the last z
    return z


def posterior_mean(z, t, P, points):
    """The oracle, E[x | z] for x one of points (K, 2) in the plane: no x-prediction is better."""
    # P^T z is all z tells of x. Point c is as likely as the noise that leads from t c to P^T z.
    t = t[:, None]  # (B, 1)
    distance = ((z @ P)[:, None] - t[:, None] * points).norm(dim=-1)  # (B, K)
    probability = (-(distance**2) / (2 * (1 - t) ** 2)).softmax(dim=1)
    return probability @ points @ P.T  # (B, D)


# ---- Measuring -----------------------------------------------------------------------------------
def measure(x, P):
    """How far samples x (n, D) lie from the plane, and their shadow in it from the spiral."""
    s = x @ P
    off_plane = (x - s @ P.T).norm(dim=1).mean() / math.sqrt(P.shape[1])  # 1 = norm of the data
    planes = s.unflatten(1, (-1, 2)).transpose(0, 1)  # (n, d) -> (d/2, n, 2)
    curve = spiral(quantiles(2048))
    off_curve = mean(torch.cdist(plane, curve).amin(dim=1).mean().item() for plane in planes)
    return {"off_plane": off_plane.item(), "off_curve": off_curve, "sliced_w1": sliced_w1(planes)}


def sliced_w1(planes):
    """Wasserstein-1 distance from points (..., n, 2) to the spiral, mean over 32 projections."""
    angle = math.pi * quantiles(32)
    directions = torch.stack([angle.cos(), angle.sin()])  # (2, 32)
    target = spiral(quantiles(planes.shape[-2])) @ directions  # (n, 32)
    # On a line, the best transport takes the k-th point to the k-th.
    difference = (planes @ directions).sort(dim=-2).values - target.sort(dim=0).values
    return difference.abs().mean().item()


@torch.no_grad()
def gate_curve(net, P):
    """What the gate has learned: {t: mean of g over noisy data at t}."""
    x, curve = draw_data(SAMPLES, P), {}
    for time in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        t = torch.full((SAMPLES, 1), time)
        z = interpolate(x, torch.randn_like(x), t[:, 0])
        curve[time] = net.layers(torch.cat([z, t], dim=1))[:, -1].mean().item()
    return curve


# ---- Studies -------------------------------------------------------------------------------------
def study_configs(name, dims):
    """All networks of a study, and the references to hold them against."""
    if name == "combos":
        pairs = [*((pred, loss) for loss in PREDS for pred in PREDS), ("noise", "v")]
        return [Config(D, pred=pred, loss=loss) for D in (2, 512) for pred, loss in pairs]
    if name == "skip":
        ways = {"none": (*PREDS, "noise"), "linear": ["x"], "EDM": ["x"], "gate": ["eps", "v"]}
        return [Config(512, skip=skip, pred=pred) for skip in ways for pred in ways[skip]]
    if name == "width":
        shapes = [Config(512, width=width) for width in (64, 128, 256, 512, 1024, 2048)]
    elif name == "intrinsic":
        shapes = [Config(512, d=d) for d in (2, 8, 32, 128, 512)]
    else:
        shapes = [Config(D) for D in dims]
    references = REFERENCES if name in ("samples", "dimension") else ("noise",)
    return [shape._replace(pred=pred) for shape in shapes for pred in PREDS + references]


def run(config, seed, steps=STEPS, title=""):
    """Train, sample and measure one network. -> its record, its samples in the plane (n, d)"""
    torch.manual_seed(seed)
    P = random_plane(config.D, config.d)
    record = config._asdict() | {"seed": seed}
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
        net = train(config, P, steps, title)
        samples = sample(net, config.pred, noise)
        if config.skip == "gate":
            record["gate"] = gate_curve(net, P)
    return record | measure(samples, P), samples @ P


# ---- Files and command line ----------------------------------------------------------------------
def load(path):
    """The studies in a file, {name: records}. TypeError or ValueError: the file is damaged."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    records = [dict(record) for study in dict(stored).values() for record in study]
    if not all({*Config._fields, *METRICS, "seed"} <= record.keys() for record in records):
        raise ValueError("a field is missing")
    return stored


def parse(argv):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"toy_manifold.py: {message}\n")
    studies = ("samples", "dimension", "width", "intrinsic", "combos", "skip")
    parser.add_argument("--sweep", choices=studies, default="samples", help="the study to run")
    parser.add_argument("--dims", type=int, nargs="+", help="values of D in samples and dimension")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default 600)")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder for the results")
    args = parser.parse_args(argv)
    dims = [2, 8, 16, 512] if args.sweep == "samples" else [2**k for k in range(1, 10)]
    args.dims = sorted(set(args.dims or dims))
    file = {"samples": "toy_manifold", "dimension": "toy_dimension"}.get(args.sweep, "toy_why")
    args.numbers = args.out / f"{file}.json"
    if not all(2 <= D <= 2**14 for D in args.dims) or min(args.seeds, args.steps) < 1:
        parser.error("--dims must lie in 2 ... 16384, --seeds and --steps be 1 or more")
    if not 0 <= args.seed <= args.seed + args.seeds <= 2**32:
        parser.error("--seed must be 0 or more, and the last seed less than 2^32")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()  # can we write there?
        args.stored = load(args.numbers)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be written to: {error}")
    except (TypeError, ValueError):
        parser.error(f"{args.numbers} is damaged: move it away, or choose another --out")
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # such small products gain nothing from more
    seeds = range(args.seed, args.seed + args.seeds)
    jobs = [(config, seed) for config in study_configs(args.sweep, args.dims) for seed in seeds]
    jobs = [job for job in jobs if job[0].width < 1024 or job[1] == args.seed]  # slow: one seed
    records, planes = [], {}
    for number, (config, seed) in enumerate(jobs, start=1):
        record, plane = run(config, seed, args.steps, title=f"network {number} of {len(jobs)}")
        records.append(record)
        planes.setdefault((config.D, config.pred), plane)  # the picture shows the first seed
    print_table(records, METRICS)
    args.stored[args.sweep] = records
    text = json.dumps(args.stored).replace("}, {", "},\n{") + "\n"  # one record a line
    write_whole(args.numbers, lambda path: path.write_text(text))  # first: they took the time
    figure = draw(args.sweep, args.stored, planes, spiral(quantiles(500)))
    write_whole(args.numbers.with_suffix(".png"), lambda path: figure.savefig(path, dpi=120))
    print(f"wrote {args.numbers} and the picture beside it")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130)
    except OSError as error:  # such as a full disk
        raise SystemExit(f"toy_manifold.py: {error}")
