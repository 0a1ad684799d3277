"""Questions to the toy in 512 dimensions: width, dimension of the data, loss, paths for z.

    python figures/toy_why.py --seeds 3             all four: 20 minutes
    python figures/toy_why.py skip --seeds 3        one: width, intrinsic, combos or skip
    python figures/toy_why.py --draw                the picture again, from the numbers

The studies share toy_why.json: one that is run again replaces its own records only.
"""

import json
from statistics import mean

import torch
from common import jit
from matplotlib.figure import Figure
from style import COLOURS, save, script
from toy_dimension import draw_errors, legend_lines, open_results
from variants import coefficients

import toy_manifold as toy

# The panels: study, horizontal axis (a field, its label), vertical axis, question and finding.
PANELS = (
    ("width", "width", "hidden units in a layer", "off_plane",
     "Do more hidden units help ε and v?\nLittle: with 2,048, v keeps half the noise"),
    ("intrinsic", "d", "dimension d of the data", "missed",
     "Must the data be low-dimensional?\nYes: from d = 128 on v misses less than x"),
    ("combos", "loss", "what the loss compares", "off_curve",
     "Is it the loss?\nNo, it is what the network predicts"),
    ("skip", "skip", "path for z around the hidden layers", "off_plane",
     "Does a path around the layers help?\nA learned gate does; fixed paths ruin x"),
)  # fmt: skip
GATE_TITLE = "What does the learned gate do?\nIt finds 1 / (1 − t), the wide gray curve"
NOTE = """One dot: one network, one seed; D = 512.

Distance from the plane, 1 = norm of
the data; in the plane from the curve,
1 = standard deviation. v missed: from
the best v there is, 1 = all the noise.

linear, EDM: a fixed multiple of z is
added to the output (paper Table 10).
gate: net(z, t) − g z, where g is one
more output of the network."""


class Fixed(toy.Perceptron):
    """x_pred = c_skip z + c_out net: z passes around the layers by a fixed rule (Table 10)."""

    def __init__(self, D, width, kind):
        super().__init__(D, width)
        self.kind = kind

    def forward(self, z, t):
        c_skip, c_out = coefficients(t[:, None], self.kind)
        return c_skip * z + c_out * super().forward(z, t)


class Gated(toy.Perceptron):
    """net - g z, with g (B, 1) one more output: one number for all D coordinates."""

    def __init__(self, D, width):
        super().__init__(D, width, D + 1)

    def forward(self, z, t):
        output = super().forward(z, t)
        return output[:, :-1] - output[:, -1:] * z

    @torch.no_grad()
    def facts(self, P):
        """What the gate has learned: {t: mean of g over noisy data at t}."""
        x, gate = toy.draw_data(toy.SAMPLES, P), {}
        for time in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            t = torch.full((len(x),), time)
            z = jit.interpolate(x, torch.randn_like(x), t)
            gate[time] = super().forward(z, t)[:, -1].mean().item()
        return dict(gate=gate)


def build(config):
    """The perceptron of a Config, with its path for z."""
    if config.skip == "none":
        return toy.plain(config)
    if config.skip == "gate":
        return Gated(config.D, config.width)
    return Fixed(config.D, config.width, config.skip)


def configs_of(study):
    """All networks of a study, and untouched noise to hold them against."""
    preds = (*toy.PREDS, "noise")
    if study == "combos":
        pairs = [*((pred, loss) for loss in toy.PREDS for pred in toy.PREDS), ("noise", "v")]
        return [toy.Config(D, pred=pred, loss=loss) for D in (2, 512) for pred, loss in pairs]
    if study == "skip":
        ways = dict(none=preds, linear=("x",), edm=("x",), gate=("eps", "v"))
        return [toy.Config(512, skip=skip, pred=pred) for skip in ways for pred in ways[skip]]
    if study == "width":
        widths = (64, 128, 256, 512, 1024, 2048)
        return [toy.Config(512, width=width, pred=pred) for width in widths for pred in preds]
    return [toy.Config(512, d=d, data=data, pred=pred) for d in (2, 8, 32, 128, 512)
            for data in ("gaussian", "spirals") for pred in ("x", "v")]  # fmt: skip


def best_guess(z, t, P, data):
    """E[x | z], which no network can better: of normal numbers, or of each spiral by itself."""
    if data == "gaussian":
        return z @ P @ P.T * (t / (t**2 + (1 - t) ** 2))[:, None]
    points = toy.spiral(toy.quantiles(256))
    planes = P.unflatten(1, (-1, 2)).unbind(1)  # of (D, 2)
    return sum(toy.posterior_mean(z, t, plane, points) for plane in planes)


@torch.no_grad()
def missed(net, config, P, n=1000):
    """Mean square distance of v from the best possible one: 1 if all of the noise is missed."""
    x, t = toy.draw_data(n, P, config.data), toy.draw_times(n)
    z = jit.interpolate(x, torch.randn(n, config.D), t)
    best = jit.convert(best_guess(z, t, P, config.data), z, t, "x")["v"]
    return (jit.convert(net(z, t), z, t, config.pred)["v"] - best).square().mean().item()


def run_missed(configs, seeds, steps):
    """Networks on data of d dimensions with and without shape, and what they miss. -> records"""
    records = []
    for config in configs:
        for seed in seeds:
            torch.manual_seed(seed)
            P, net = toy.random_plane(config.D, config.d), toy.plain(config)
            toy.train_network(net, config, P, steps)
            records.append(config._asdict() | dict(seed=seed, missed=missed(net, config, P)))
            print(records[-1], flush=True)
    return records


def draw_missed(ax, records):
    """Lines: normal numbers; crosses: spirals. One dot a seed."""
    kinds = toy.group(records, "data")
    draw_errors(ax, kinds["gaussian",], "d", "missed")
    draw_errors(ax, kinds["spirals",], "d", "missed", joined=False, marker="x", size=7)
    ax.plot([], [], "o-", color="0.4", label="normal numbers")
    ax.plot([], [], "x", color="0.4", label="spirals")
    ax.legend(loc="lower right")


def draw_why(stored):
    """A question and its answer over each panel; a panel stays empty until its study has run."""
    figure = Figure(figsize=(8.3, 10.5), layout="constrained")
    axes = figure.subplots(3, 2).flat
    for ax, (study, field, label, error, finding) in zip(axes, PANELS):
        records = [record for record in stored.get(study, []) if record["D"] == 512]
        if study == "intrinsic" and records:
            draw_missed(ax, records)
        elif records:
            draw_errors(ax, records, field, error, joined=study == "width")
        ax.set_xlabel(label, fontsize=11)
        ax.set_title(finding, fontsize=10, loc="left")
    draw_gates(axes[4], [record for record in stored.get("skip", []) if "gate" in record])
    axes[5].axis("off")
    axes[5].legend(handles=legend_lines(), loc="upper left", fontsize=11)
    axes[5].text(0.03, 0.56, NOTE, fontsize=10.5, va="top", transform=axes[5].transAxes)
    figure.suptitle("In 512 dimensions x-prediction works; ε and v need a learned path for z")
    return figure


def draw_gates(ax, records):
    """The learned gate g(t) of each network over 1 / (1 - t), of the other sign for eps."""
    times = [i / 100 for i in range(93)]
    ax.plot(times, [1 / (1 - t) for t in times], color="0.8", linewidth=8)
    for record in records:
        sign = dict(v=1, eps=-1)[record["pred"]]
        gates = {float(t): sign * gate for t, gate in record["gate"].items()}
        style = dict(color=COLOURS[record["pred"]], markersize=3, linewidth=1)
        ax.plot(gates.keys(), gates.values(), "o-", **style)
    ax.set(xlabel="t", ylim=(0, 12))
    ax.set_ylabel("g for v,  −g for ε", fontsize=11)
    ax.set_title(GATE_TITLE, fontsize=10, loc="left")


def main(words=None):
    parser = toy.add_flags(script(__doc__))
    names = [study for study, *_ in PANELS]
    parser.add_argument("study", nargs="?", choices=names, help="none: all four")
    args = parser.parse_args(words)
    path = open_results(args.out, "toy_why")
    stored = json.loads(path.read_text()) if path.exists() else {}
    for study in [] if args.draw else [args.study] if args.study else names:
        seeds = range(args.seed, args.seed + args.seeds)
        if study == "intrinsic":
            stored[study] = run_missed(configs_of(study), seeds, args.steps)
        else:
            stored[study] = toy.run_networks(configs_of(study), seeds, args.steps, build)[0]
        toy.save_records(path, stored)
    save(draw_why(stored), path.with_suffix(".png"), "python figures/toy_why.py --seeds 3", dpi=120)


if __name__ == "__main__":
    main()
