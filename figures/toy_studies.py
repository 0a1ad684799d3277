"""Five questions to the toy: more dimensions, more units, data of more dimensions, paths for z.

    python figures/toy_studies.py                      the picture again, from the numbers
    python figures/toy_studies.py width --seeds 3      a study anew: width 10 minutes, others 2 to 6

The studies share OUT/results/toy_studies.json: one that is run again replaces its own records only.
"""

import json
from statistics import mean

import torch
from common import jit
from matplotlib.figure import Figure
from style import COLOURS, GREY, find_results, save, script
from variants import coefficients

import toy_manifold as toy

# Of each study its panel: horizontal axis (a field, its label), vertical axis, question and answer.
PANELS = dict(
    D=("D", "dimension D of the space", "off_plane",
       "Data in a plane of D dimensions?\nx stays near it, ε and v do not"),
    width=("width", "hidden units in a layer, D = 512", "off_plane",
           "Do more hidden units help ε and v?\nLittle: with 2,048, v keeps half the noise"),
    data=("d", "dimension d of the data, D = 512", "missed",
          "Data of more dimensions, as strong as noise?\nFrom d = 128 on v misses less than x"),
    path=("skip", "path for z around the layers, D = 512", "off_plane",
          "Does a path around the layers help?\nA learned gate does; fixed paths ruin x"),
)  # fmt: skip
ERRORS = dict(off_plane="distance from the plane, 1 = data", missed="v missed, 1 = all noise")


# ---- Paths for z around the layers ----


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


# ---- The studies ----


def configs_of(study):
    """All networks of a study, and untouched noise to hold them against."""
    preds = (*toy.PREDS, "noise")
    if study == "D":
        return [toy.Config(2**k, pred=pred) for k in range(2, 10) for pred in preds]
    if study == "width":
        widths = (64, 128, 256, 512, 1024, 2048)
        return [toy.Config(512, width=width, pred=pred) for width in widths for pred in preds]
    if study == "path":
        ways = dict(none=preds, linear=("x",), edm=("x",), gate=("eps", "v"))
        return [toy.Config(512, skip=skip, pred=pred) for skip in ways for pred in ways[skip]]
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
    return records


# ---- The picture ----


def draw_errors(ax, records, field, error, style="o-"):
    """An error against a field of the networks: a dot a seed, a line through the means."""
    values = [value for (value,) in toy.group(records, field)]
    for (pred,), found in toy.group(records, "pred").items():
        means = {values.index(value): mean(record[error] for record in same)
                 for (value,), same in toy.group(found, field).items()}  # fmt: skip
        look = dict(color=COLOURS.get(pred, GREY), label=toy.LABELS[pred])
        if pred == "noise" and len(means) == 1:
            ax.axhline(*means.values(), linestyle="--", **look)
            continue
        ax.plot(means.keys(), means.values(), "--" if pred == "noise" else style[1:], **look)
        if pred != "noise":
            places = [values.index(record[field]) for record in found]
            dots = [record[error] for record in found]
            ax.plot(places, dots, style[0], color=look["color"], markersize=5)
    ax.set(yscale="log", xlim=(-0.4, len(values) - 0.6), ylabel=ERRORS[error])
    ax.set_xticks(range(len(values)), [{"edm": "EDM"}.get(value, value) for value in values])


def draw_panel(ax, study, records):
    """A question and its answer over a panel."""
    field, label, error, title = PANELS[study]
    if study == "data":
        for (data,), found in toy.group(records, "data").items():
            draw_errors(ax, found, field, error, dict(gaussian="o-", spirals="x:")[data])
        ax.text(0.97, 0.05, "dots: normal numbers\ncrosses: spirals", transform=ax.transAxes,
                ha="right", fontsize=9, color=GREY)  # fmt: skip
    else:
        draw_errors(ax, records, field, error, "o " if study == "path" else "o-")
    ax.set_xlabel(label)
    ax.set_title(title, fontsize=10, loc="left")


def draw_gates(ax, records):
    """The learned gate g(t) of each network over 1 / (1 - t), of the other sign for eps."""
    times = [i / 100 for i in range(93)]
    ax.plot(times, [1 / (1 - t) for t in times], color="0.8", linewidth=8)
    for record in records:
        sign = dict(v=1, eps=-1)[record["pred"]]
        gates = {float(t): sign * gate for t, gate in record["gate"].items()}
        ax.plot(gates.keys(), gates.values(), ".-", color=COLOURS[record["pred"]], linewidth=1)
    ax.set(xlabel="t (0 noise, 1 data)", ylim=(0, 12), ylabel="g for v,  −g for ε")
    title = "What does the learned gate do?\nIt finds 1 / (1 − t), the wide grey curve"
    ax.set_title(title, fontsize=10, loc="left")


def draw_studies(stored):
    """A panel a question, and the legend in the sixth; a panel is empty until its study has run."""
    figure = Figure(figsize=(8.3, 9.6), layout="constrained")
    axes = figure.subplots(3, 2).flat
    for ax, study in zip(axes, PANELS):
        if study in stored:
            draw_panel(ax, study, stored[study])
    draw_gates(axes[4], [record for record in stored.get("path", []) if "gate" in record])
    axes[5].axis("off")
    axes[5].legend(*axes[0].get_legend_handles_labels(), loc="center", fontsize=11,
                   title="a dot: one network, one seed")  # fmt: skip
    figure.suptitle("In 600 steps x-prediction learns data in 512 dimensions; ε and v need a path")
    return figure


def main(words=None):
    parser = toy.add_flags(script(__doc__))
    parser.add_argument("study", nargs="?", choices=PANELS, help="none: only the picture")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    path = args.out / "results" / "toy_studies.json"
    if args.study:
        seeds, configs = range(args.seed, args.seed + args.seeds), configs_of(args.study)
        if args.study == "data":
            records = run_missed(configs, seeds, args.steps)
        else:
            records, _ = toy.run_networks(configs, seeds, args.steps, build)
        stored = json.loads(path.read_text()) if path.exists() else {}
        toy.save_records(path, stored | {args.study: records})
    stored = json.loads((find_results(args.out, path.stem) / path.name).read_text())
    picture = args.out / "toy_studies.png"
    save(draw_studies(stored), picture, "python figures/toy_studies.py", dpi=120)


if __name__ == "__main__":
    main()
