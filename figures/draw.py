"""Draw studies from the numbers and tiles that figures/run.py has kept: seconds, no torch.

    python figures/draw.py ratio                  runs/figures/ratio.json, .npz -> ratio.png, .md
    python figures/draw.py ratio --out figures    the committed ones
    python figures/draw.py predictions_digits --out figures

The .md gets its table between two marks; what is written by hand around it stays. Bars are standard
deviations over training seeds. To change a label, change LABELS: nothing else depends on it.
"""

import json
import re
import sys

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import chi
from studies import FINDINGS, FLOW, SAMPLE, STUDIES, TIMES, TRAIN, digest, settings
from style import COLOURS, GREEN, GREY, INK, PINK, save, script_to_out, wrap

PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")
LABELS = dict(
    pred=PREDICTION,
    loss=dict(x="x-loss", eps="ε-loss", v="v-loss"),
    kind=PREDICTION | dict(linear="linear\nt z + (1 − t) net", edm="EDM\nc_skip z + c_out net"),
    network=dict(layernorm="LayerNorm, GELU", rmsnorm="RMSNorm, SwiGLU", rope="+ RoPE, qk-norm",
                 context="+ in-context\ntokens"),
    variant=dict(JiT="network", Gated="network − g(t) z", NoLastNorm="without its\nlast norm"),
    solver=dict(heun="Heun", euler="Euler"),
    sampler=dict(plain="as ever", limit="x_pred in [−1, 1]", start="from t = 0.02"),
    low={0.0: "guidance at all t", 0.1: "for t > 0.1"},
    patch="patches of {numbers} numbers", mu="μ = {}", w="w = {:g}", steps="{} steps",
    k={k: f"k = {k}" for k in (0, 16, 48, 96, 192)} | dict(strong="k = 192, strong"),
    r={0: "none"} | {r: f"r = {r}" for r in (4, 32, 128)}, size="{} px, patch {patch}",
    rate={0.25: "rate / 4", 0.5: "rate / 2", 1: "our rate", 2: "rate × 2", "long": "4 × steps"},
    ratio={0.25: "ratio 1/4", 0.5: "ratio 1/2", 0.75: "ratio 3/4", 1: "ratio 1", 1.5: "ratio 3/2",
           2: "ratio 2", 4: "ratio 4"},
    run=dict(healthy="healthy\nthe defaults", slow="learning rate\ntoo low: 4e-5",
             hot="learning rate\ntoo high: 0.1", eps="predicts\nthe noise",
             clear="trained at little\nnoise only: μ = 2"),
)  # fmt: skip
T_CLIP = FLOW["t_clip"]
DPI = 100  # all pictures of the repository together stay below 6 MB
SCORES = ("recognised", "noise_left", "grain", "rfd")
COLOUR_OF = COLOURS | dict(linear=GREEN, edm=PINK)  # of a prediction, or a kind of one


def numbers_of(cell):
    """How many numbers a patch of its images has."""
    return cell.net["channels"] * cell.net["patch"] ** 2


def label(coordinate, value, cell=None):
    """What a value of a coordinate is called."""
    words = LABELS.get(coordinate, "{}")
    if isinstance(words, dict):
        return words.get(value, str(value))
    patch, numbers = (cell.net["patch"], numbers_of(cell)) if cell else (0, 0)
    return words.format(value, patch=patch, numbers=numbers).replace("-", "−")


def distinct(cells, coordinate):
    return list(dict.fromkeys(cell.at.get(coordinate) for cell in cells))


def spread(values):
    """Standard deviation over the seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def in_words(score, values):
    """A score of one seed, or mean ± deviation: two digits are what 300 samples are good for."""
    scale, unit = (100, "%") if score == "recognised" else (1, "")
    mean = scale * np.mean(values)
    decimals = 0 if unit or mean >= 10 else 1 if mean >= 1 else 2
    text = f"{score} {mean:.{decimals}f}".replace("_", " ").replace("-", "−")
    return text + (f" ± {scale * spread(values):.{decimals}f}" if len(values) > 1 else "") + unit


class Results:
    """A study and its records, found by the coordinates of a cell."""

    def __init__(self, name, folder):
        kept = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz") as tiles:
            self.tiles = dict(tiles)
        self.folder, self.header, self.records = folder, kept, kept["records"]
        self.real = {record["key"]: record for record in kept["real"]}
        self.study = STUDIES[kept["study"]]
        # Data that must not be passed on are taken out of the .npz file, and not shown.
        self.shows_real = self.study.real and self.real.keys() <= self.tiles.keys()
        cells = list(self.study.cells(**kept["arguments"]))
        shown = {self.row_of(cell) for cell in cells if self.of(cell)}  # with results
        self.cells = [cell for cell in cells if self.row_of(cell) in shown]
        seeds = [len(self.of(cell)) for cell in self.cells if cell.repeat] or [1]
        self.title = FINDINGS.get(name, self.study.title)
        if min(seeds) < 2:
            self.title += " (one seed)" if max(seeds) < 2 else " (one seed where no ± stands)"
        # Beside other pictures and patches the paper's FID would say nothing.
        self.has_paper = kept["data"] == "shapes" and not kept["arguments"]

    def row_of(self, cell):
        return cell.at.get(self.study.panel), cell.at.get(self.study.row)

    def of(self, cell):
        """The records of a cell, by seed; not those of other settings than studies.py has now."""
        is_now = digest(*settings(cell))
        found = [r for r in self.records if r["at"] == cell.at]
        found = [r for r in found if self.header["tiny"] or r["settings"] == is_now]
        return sorted(found, key=lambda record: record["seed"])

    def values(self, cell, score):
        return [record[score] for record in self.of(cell) if score in record]


# ---- Tiles ----


def mosaic(images):
    """uint8 (n, C, S, S) as one picture (H, W, 3), with white gaps; more than three in two rows."""
    images = images // 6 * 6  # fewer colours than an eye tells apart here: smaller files
    rows = 2 if len(images) > 3 else 1
    gap = max(1, images.shape[-1] // 16)
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)
    tiles = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.vstack([np.hstack(row) for row in np.split(tiles, rows)])[:-gap, :-gap]


def below(cell, results):
    """Under a picture: its scores, what the paper has, and what sampling costs."""
    known = [(score, results.values(cell, score)) for score in ("recognised", "noise_left")]
    lines = [in_words(score, values) for score, values in known if values]
    if cell.paper and results.has_paper:
        lines.append(f"paper: FID {cell.paper:.{2 if cell.paper < 100 else 0}f}")
    if "steps" in cell.at:
        lines.append(f"{evaluations(cell)} evaluations")
    return "\n".join(lines)


def evaluations(cell):
    """How often sampling asks the network: twice for a step of Heun, but for the last."""
    sample = SAMPLE | cell.sample
    steps = sample["sampling_steps"]
    return steps if sample["solver"] == "euler" else 2 * steps - 1


def draw_cell(ax, results, cell, shown):
    """Tiles of a cell, of its first seed, in the colour of its prediction; its numbers below."""
    records = results.of(cell)
    if records:
        ax.imshow(mosaic(results.tiles[records[0]["key"]][shown]), interpolation="nearest")
    else:
        ax.text(0.5, 0.5, "not run here", color=GREY, ha="center", transform=ax.transAxes)
    if "pred" in cell.at:
        thick = 6 if cell.at == results.study.framed else 2
        ax.spines[:].set(visible=True, color=COLOURS[cell.at["pred"]], linewidth=thick)
    ax.set_xlabel(below(cell, results), fontsize=9.5)


def draw_real(axes, results, cells, shown):
    """Three sets of real images in a row; of several panels each shows other classes."""
    known = next(cell for cell in cells if results.of(cell))
    real = results.real[results.of(known)[0]["real"]]
    panel = results.study.panel
    place = distinct(results.cells, panel).index(known.at.get(panel))
    for ax, images in zip(axes, np.split(results.tiles[real["key"]], 3)):
        ax.imshow(mosaic(images[[(i + place) % 6 for i in shown]]), interpolation="nearest")
    score = [in_words("recognised", [real["recognised"]])] if "recognised" in real else []
    # In further panels it is there unseen, so that all are laid out alike.
    axes[0].set_ylabel("\n".join(["real images", *score]), fontsize=9.5, alpha=place == 0)


def draw_grid(figure, results, cells, shown):
    """The tiles of every cell in its row and column, and real images in a row above their names."""
    study = results.study
    rows, columns = distinct(cells, study.row), distinct(cells, study.column)
    axes = figure.subplots(len(rows) + results.shows_real, len(columns), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for cell in cells:
        row, column = cell.at.get(study.row), cell.at.get(study.column)
        i, j = rows.index(row) + results.shows_real, columns.index(column)
        draw_cell(axes[i, j], results, cell, shown)
        if i == results.shows_real:
            name = label(study.column, column, cell)
            axes[i, j].set_title(name, color=COLOUR_OF.get(column, INK))
        if study.row:
            axes[i, 0].set_ylabel(label(study.row, row, cell), color=COLOUR_OF.get(row, INK))
    if results.shows_real:
        draw_real(axes[0], results, cells, shown)
    return axes


# ---- Plots ----


def plot_lines(ax, results, coordinate, x, values):
    """A line for each value of a coordinate: values(cell), their mean and spread, at x(cell)."""
    others = iter((INK, GREEN, GREY))
    for value in distinct(results.cells, coordinate):
        cells = [cell for cell in results.cells if cell.at.get(coordinate) == value]
        found = {x(cell): values(cell) for cell in cells if values(cell)}
        means, bars = map(np.mean, found.values()), map(spread, found.values())
        style = dict(color=COLOURS.get(value) or next(others), label=label(coordinate, value))
        ax.errorbar(list(found), list(means), list(bars), marker="o", **style)


def plot_columns(ax, results, values, title):
    """Values of cells against the columns of the study, a line a row."""
    study = results.study
    columns = distinct(results.cells, study.column)
    plot_lines(ax, results, study.row, lambda cell: columns.index(cell.at[study.column]), values)
    names = [label(study.column, column).replace(", ", ",\n") for column in columns]
    ax.set_xticks(range(len(columns)), names)
    ax.set(xlim=(-0.4, len(columns) - 0.6), title=title)


def plot_recognised(ax, results):
    plot_columns(ax, results, lambda cell: results.values(cell, "recognised"), "recognised")
    for real in results.real.values():
        ax.axhline(real.get("recognised", np.nan), color=GREY, linestyle=":", label="real images")
    ax.set_ylim(0, 1.1)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.legend()


def plot_rfd(ax, results):
    plot_columns(ax, results, lambda cell: results.values(cell, "rfd"), "rfd")
    ax.set_ylim(bottom=0)


def plot_distance(ax, results):
    """Distance of six images to the finest solution from the same noise, against evaluations."""
    finest = max(results.cells, key=evaluations)
    exact = {record["seed"]: results.tiles[record["key"]] / 127.5 for record in results.of(finest)}

    def distances(cell):
        records = [r for r in results.of(cell) if cell is not finest and r["seed"] in exact]
        errors = [results.tiles[r["key"]] / 127.5 - exact[r["seed"]] for r in records]
        return [np.sqrt(np.square(error).mean()) for error in errors]

    plot_lines(ax, results, "solver", evaluations, distances)
    cost = np.array([4, 8, 16, 32, 64, 128])
    for order, colour in ((1, GREEN), (2, INK)):
        law = 0.1 * (cost[0] / cost) ** order
        ax.plot(cost, law, ":", color=colour, linewidth=1, label=f"order {order}")
    ax.axhline(1 / 127.5, color=GREY, linewidth=1, label="one of 256 grey levels")
    ax.set(xlabel="evaluations of the network", xscale="log", xlim=(3.5, 150), yscale="log")
    ax.set_ylabel("distance to 512 steps of Heun")
    ax.set_xticks(cost, cost)
    ax.minorticks_off()
    ax.legend()


def density(t, mu=FLOW["mu"], sigma=FLOW["sigma"]):
    """Where training draws t: the normal density of logit t, times 1 / (t (1 - t))."""
    logit = np.log(t / (1 - t))
    normal = np.exp(-(((logit - mu) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
    return normal / (t * (1 - t))


def mean_loss(losses):
    """A loss at TIMES, averaged as training draws t."""
    return float(np.average(losses, weights=density(np.array(TIMES))))


def shade_training(ax):
    """Where training draws t, as a pale hill along the axis."""
    t = np.linspace(0.005, 0.995, 199)
    hill = ax.inset_axes([0, 0, 1, 0.35], zorder=-1)
    hill.fill_between(t, density(t) / density(t).max(), color="#E4E4E4", linewidth=0)
    hill.set(xlim=(0, 1), ylim=(0, 1.02))
    hill.axis("off")
    ax.set_facecolor("none")
    ax.set(xlabel="t (0 noise, 1 data); grey: where training draws it", xlim=(0, 1))


def plot_loss_over_t(ax, results):
    """The v-loss of finished networks: a colour a column, a style a row, a line a seed."""
    study = results.study
    rows = distinct(results.cells, study.row)
    for cell in results.cells:
        style = ("-", "--")[rows.index(cell.at[study.row])]
        for losses in results.values(cell, "loss_over_t"):
            colour = COLOUR_OF[cell.at[study.column]]
            ax.plot(TIMES, losses, style, color=colour, linewidth=1.3)
    ax.set(yscale="log", ylabel="v-loss")
    shade_training(ax)


def plot_gates(ax, results):
    """The learned gates over 1 / (1 - t). That of eps = (z - t x) / (1 - t) has another sign."""
    t = np.linspace(0, 0.98, 99)
    ax.plot(t, 1 / (1 - t), "--", color=INK, label="1 / (1 − t)")
    for cell in results.cells:
        pred = cell.at["pred"]
        for i, gates in enumerate(results.values(cell, "gate")):
            sign, name = (-1, "−g(t)") if pred == "eps" else (1, "g(t)")
            style = dict(color=COLOURS[pred], label=None if i else f"{name}, {PREDICTION[pred]}")
            ax.plot(TIMES, sign * np.array(gates), **style)
    ax.set(ylim=(0, 12), ylabel="gate")
    shade_training(ax)
    ax.legend(loc="upper left")


def plot_excess(ax, results):
    """v-loss beyond what the texture costs the best network.

    Of u ~ N(0, s^2) in k of n directions, z = t u + (1 - t) eps leaves v = u - eps a variance of
    s^2 / (t^2 s^2 + (1 - t)^2).
    """
    t, numbers = np.array(TIMES), numbers_of(results.cells[0])

    def excess(cell):
        s = cell.strength
        cost = cell.texture / numbers * s**2 / ((t * s) ** 2 + (1 - t) ** 2)
        return [mean_loss(losses - cost) for losses in results.values(cell, "loss_over_t")]

    plot_columns(ax, results, excess, "v-loss beyond the cost of texture")
    ax.set_ylim(bottom=0)
    ax.legend()


def burden(cell):
    """How much of z the best prediction of texture holds: the mean square of its factor, as v.

    In k directions E[u | z] = t s^2 z / (t^2 s^2 + (1 - t)^2), of which x-prediction's v is
    1 / (1 - t) times as much; in the others v-prediction still holds -z / (1 - t).
    """
    t, s = np.array(TIMES), cell.strength
    share = cell.texture / numbers_of(cell)
    both = (t * s) ** 2 + (1 - t) ** 2
    if cell.at["pred"] == "x":
        return mean_loss(share * (t * s**2 / both / np.maximum(1 - t, T_CLIP)) ** 2)
    return mean_loss(share * ((t * s**2 - (1 - t)) / both) ** 2 + (1 - share) / (1 - t) ** 2)


def plot_burden(ax, results):
    plot_columns(ax, results, lambda cell: [burden(cell)], "how much of z the output holds")
    ax.set_ylim(bottom=0)


# ---- Plots of the ratio of width and numbers, and of the law of what is left ----

# width / numbers of a patch: at 1,024, 512, 512, 256 and 64 px
PAPER_RATIOS = {"B/64": 1 / 16, "B/32": 1 / 4, "L/32": 1 / 3, "B/16": 1, "B/4": 16}
TOY_STEPS = 20  # of toy_manifold.py's solver


def skip(kind, t):
    """c_skip of x_pred = c_skip z + c_out net, with the clip: paper Table 10, and v and eps."""
    edm = 0.25 * t / (0.25 * t**2 + (1 - t) ** 2)
    return dict(x=0 * t, linear=t, edm=edm, v=1 + 0 * t, eps=1 / np.maximum(t, T_CLIP))[kind]


def noise_kept(kind, steps):
    """Factor by which steps of Heun change noise that a network cannot put out; 1: it stays.

    There x_pred = c_skip z, so dz/dt = -(1 - c_skip) / (1 - t) z; the last step is Euler's.
    """

    def slope(z, t):
        if kind == "eps":  # the same, but for the clip: v = (z - eps) / t
            return z / max(t, T_CLIP)
        return (skip(kind, t) - 1) / max(1 - t, T_CLIP) * z

    z = 1.0
    for i in range(steps):
        v = slope(z, i / steps)
        if i < steps - 1:
            v = (v + slope(z + v / steps, (i + 1) / steps)) / 2
        z = z + v / steps
    return z


LEFT = {kind: noise_kept(kind, SAMPLE["sampling_steps"]) for kind in COLOUR_OF}


def kept_by_sphere(length):
    """Noise left in a patch whose noise is this long, over √numbers, if ε_pred has length 1 always.

    Where ε_pred = z the velocity is 0, so a length of 1 stays; what it is more or less grows as
    all that is missed does; where it comes to 0 the image takes over (figures/length.md).
    """
    return np.maximum(1 + LEFT["eps"] * (length - 1), 0) / length


def predicted_left(kind, ratio, numbers):
    """Noise left in patches of so many numbers: in directions that a network of this ratio cannot
    put out, and, for ε, in the others, of which its last norm forgets the length (`length`)."""
    left = (1 - ratio) * LEFT[kind]
    if kind == "eps":
        inside = ratio * numbers
        length = chi.ppf((np.arange(500) + 0.5) / 500, inside) / inside**0.5
        left += ratio * (kept_by_sphere(length) * length**2).mean()
    return left


def bound(kind, ratio, t):
    """The v-loss at t that a network of this ratio has at least: the noise it cannot put out."""
    return max(0, 1 - ratio) * skip(kind, t) ** 2 * ((1 - t) / np.maximum(1 - t, T_CLIP)) ** 2


def plot_ratio(ax, results, values, law, name):
    """values(cell) against the ratio; dashed law(pred, ratio), which is called `name`."""
    plot_lines(ax, results, "pred", lambda cell: cell.at["ratio"], values)
    fine = np.geomspace(0.05, 0.999, 100)
    for pred in ("eps", "v"):
        ax.plot(fine, [law(pred, ratio) for ratio in fine], "--", color=COLOURS[pred])
    ax.plot([], "--", color=GREY, label=name)
    ax.set(xscale="log", yscale="log", xlim=(0.05, 20))
    ax.set_xlabel("width of the network / numbers of a patch")
    ax.set_xticks([1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16], ["1/16", "1/4", "1/2", "1", "2", "4", "16"])
    ax.minorticks_off()
    for model, ratio in PAPER_RATIOS.items():
        ax.axvline(ratio, color="0.85", zorder=0)
        style = dict(transform=ax.get_xaxis_transform(), fontsize=9, color=GREY)
        ax.text(ratio, 1.01, model, rotation=90, ha="center", va="bottom", **style)
    ax.legend(loc="upper right", fontsize=8.5, handlelength=1)


def plot_noise_left(ax, results):
    numbers = numbers_of(results.cells[0])
    plot_ratio(ax, results, lambda cell: results.values(cell, "noise_left"),
               lambda pred, ratio: predicted_left(pred, ratio, numbers), "the law of what is left")
    ax.set(ylim=(0.01, None), ylabel="noise left in the samples")


def plot_v_loss(ax, results):
    plot_ratio(ax, results, lambda cell: list(map(mean_loss, results.values(cell, "loss_over_t"))),
               lambda pred, ratio: mean_loss(bound(pred, ratio, np.array(TIMES))),
               "no training can get below")  # fmt: skip
    ax.set(ylim=(0.03, None), ylabel="v-loss of new images")


def plot_shut_out(ax, results):
    """Noise left against the bottleneck; dashed the law, of noise that does not get in."""
    plot_columns(ax, results, lambda cell: results.values(cell, "noise_left"),
                 "noise left; dashed: the law")  # fmt: skip
    numbers, sizes = numbers_of(results.cells[0]), distinct(results.cells, "r")
    passes = np.array([r or numbers for r in sizes])  # 0: there is no bottleneck
    for pred in ("eps", "v"):
        law = (1 - passes / numbers) * LEFT[pred]
        ax.plot(range(len(sizes)), np.where(law > 0, law, np.nan), "--", color=COLOURS[pred])
    ax.set_yscale("log")


def plot_left_by_length(ax, results):
    """Noise left in patches against the length of their noise; dashed: with ε on a sphere."""
    for cell in results.cells:
        line = "o-" if cell.at["variant"] == "JiT" else "s:"
        size = 10 if cell.at["pred"] == "eps" else 6  # v's markers lie on those of ε
        style = dict(color=COLOURS[cell.at["pred"]], markersize=size)
        name = " ".join(label(part, cell.at[part]) for part in ("pred", "variant"))
        name = name.replace("\n", " ").replace("-prediction", ",")
        for i, found in enumerate(results.values(cell, "left_by_length")):
            ax.plot(*zip(*found), line, label=None if i else name, **style)
    length = np.linspace(0.9, 1.1, 201)
    ax.plot(length, kept_by_sphere(length), "--", color=INK, label="the law, of ε on a sphere")
    ax.set(xlabel="length of a patch's noise / √numbers", ylabel="noise left in the patch")
    ax.set_xticks([0.9, 0.95, 1, 1.05, 1.1])
    ax.legend(fontsize=8.5)


def toy_left(folder):
    """{kind: [noise left of a seed]}: the same of the toy's perceptron, from toy_why.json.

    There the noise left is the distance of samples from the plane, over that of untouched noise.
    """
    path, found = folder / "toy_why.json", {}
    records = json.loads(path.read_text())["skip"] if path.exists() else []
    start = {r["seed"]: r["off_plane"] for r in records if r["pred"] == "noise"}
    for record in records:
        kind = record["skip"] if record["skip"] != "none" else record["pred"]
        if kind in LEFT:
            found.setdefault(kind, []).append(record["off_plane"] / start[record["seed"]])
    return found


def plot_law(ax, results):
    """Noise left as measured, against what the law says."""
    toy = toy_left(results.folder)
    ax.plot([0.001, 100], [0.001, 100], color="0.8", zorder=0)
    for cell in results.cells:
        kind, values = cell.at["kind"], results.values(cell, "noise_left")
        predicted = predicted_left(kind, cell.at["ratio"], numbers_of(cell))
        style = dict(color=COLOUR_OF[kind], markersize=9)
        name = label("kind", kind).partition("\n")[0]
        ax.plot([predicted] * len(values), values, "o", label=name, **style)
        values = toy.get(kind, [])
        predicted = max(0.001, noise_kept(kind, TOY_STEPS))  # x: 0, which has no place here
        ax.plot([predicted] * len(values), values, "D", fillstyle="none", **style)
    ax.axhline(0.024, color=GREY, linestyle=":", linewidth=1, label="clean images")
    ax.plot([], "D", color=GREY, fillstyle="none", label="the toy, if all is left")
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="noise left: predicted", ylabel="noise left: measured")
    ax.legend(fontsize=9, loc="upper left")


def plot_loss_and_bound(ax, results):
    plot_loss_over_t(ax, results)
    for cell in results.cells:
        losses = bound(cell.at["kind"], cell.at["ratio"], np.array(TIMES))
        ax.plot(TIMES, losses, "--", color=COLOUR_OF[cell.at["kind"]])
    ax.set(ylim=(1e-3, 500), ylabel="v-loss; dashed: what is out of reach")


# ---- Figures ----

PLOTS = dict(
    ratio=(plot_noise_left, plot_v_loss), leftover=(plot_law, plot_loss_and_bound),
    bottleneck=(plot_recognised, plot_shut_out), ladder=(plot_recognised, plot_rfd),
    guidance=(plot_recognised, plot_rfd), solver=(plot_distance,),
    gate=(plot_gates, plot_loss_over_t), length=(plot_left_by_length, plot_loss_over_t),
    dimension=(plot_burden, plot_excess),
)  # fmt: skip
ROWS = dict(ratio=(0.25, 1, 4))  # of the tiles, where they are not all of the plots


def new_figure(results, width, height):
    """A figure under the title of the study."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(wrap(results.title, width))
    return figure


def draw_study(results):
    """The usual figure: title, plots, tiles."""
    study, name = results.study, results.header["study"]
    plots, rows = PLOTS.get(name, ()), ROWS.get(name) or distinct(results.cells, study.row)
    cells = [cell for cell in results.cells if cell.at[study.row] in rows]
    panels = distinct(cells, study.panel)
    columns = len(panels) * len(distinct(cells, study.column))
    if columns > 5:
        shown, side, high = [1, 4], 9.4 / columns, 1 / 2
    elif columns > 3:
        shown, side, high = [0, 1, 3, 4], 1.75, 1
    elif plots:
        shown, side, high = [0, 3, 4], 2.7, 1 / 3  # in a line, to leave room for the plots
    else:
        shown, side, high = [0, 1, 2, 3, 4, 5], 2.4, 2 / 3
    under = 0.12 + 0.15 * max(below(cell, results).count("\n") + 1 for cell in cells)
    heights = [(len(rows) + results.shows_real) * (side * high + under) + 0.3]
    heights = [3.2, *heights] if plots else heights
    width = max(0.8 + side * columns, 9 if plots else 7)
    figure = new_figure(results, width, sum(heights) + 0.7)
    parts = np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights))
    for i, plot in enumerate(plots):
        plot(parts[0].add_subplot(1, len(plots), i + 1), results)
    for part, panel in zip(np.ravel(parts[-1].subfigures(1, len(panels))), panels):
        here = [cell for cell in cells if cell.at.get(study.panel) == panel]
        if study.panel:
            part.suptitle(label(study.panel, panel, here[0]), fontsize=10.5)
        draw_grid(part, results, here, shown)
    return figure


def draw_sizes(results):
    """Four samples of each size in a line, a pixel as large in all, with the borders of patches."""
    cells = [cell for cell in results.cells if results.of(cell)]
    sizes = [cell.net["size"] for cell in cells]
    figure = new_figure(results, 9, 6)
    axes = np.ravel(figure.subplots(len(sizes), 1, height_ratios=sizes))
    for ax, cell, size in zip(axes, cells, sizes):
        patch = cell.net["patch"]
        tiles = results.tiles[results.of(cell)[0]["key"]][[0, 1, 3, 4]]
        ax.imshow(np.hstack(tiles.transpose(0, 2, 3, 1)), interpolation="nearest")
        for place in range(patch, 4 * size, patch):
            ax.axvline(place - 0.5, color="white", linewidth=2 if place % size == 0 else 0.5)
        for place in range(patch, size, patch):
            ax.axhline(place - 0.5, color="white", linewidth=0.5)
        ax.set_axis_off()
        ax.set(xlim=(-0.5, 4 * max(sizes) - 0.5), anchor="W")
        title = f"{label('size', size, cell)}: {numbers_of(cell):,} numbers a patch"
        score = in_words("recognised", results.values(cell, "recognised"))
        ax.set_title(f"{title}, {score}; paper at {8 * size} px: FID {cell.paper}", loc="left")
    return figure


HEALTH_NOTES = dict(
    healthy=("falls fast,\nthen slowly", "lowest near\nt = 0.35"),
    slow=("late", "a bowl,\nbut higher"),
    hot=("leaps, sticks", "no bowl: ignores\nwhat it sees"),
    eps=("flat from\nthe start", "worst at small t:\nv = (z − ε) / t"),
    clear=("not comparable:\nother t drawn", "never saw\nt < 0.2"),
)


def draw_health(results):
    """A column a run: its tiles, its loss, its loss over t; the healthy one in grey beside it."""
    figure = new_figure(results, 9, 6.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2))
    draw_grid(top, results, results.cells, [0, 1, 3, 4])
    axes = bottom.subplots(2, len(results.cells), sharex="row", sharey="row")
    for cell, by_step, by_t in zip(results.cells, *axes):
        run = cell.at["run"]
        own = COLOURS["eps" if run == "eps" else "x"]
        for other, colour in ((results.cells[0], GREY), (cell, own)):
            for record in results.of(other):
                by_step.plot(*zip(*record["log"]), color=colour)
                late = np.array(record["late_loss_by_t"], dtype=float)  # None: nan
                by_t.plot(np.arange(0.05, 1, 0.1), late, color=colour)
        by_step.set(yscale="log", ylim=(0.02, 400), xlabel="step")
        by_t.set(yscale="log", ylim=(0.02, 400), xlim=(0, 1), xlabel="t (0 noise, 1 data)")
        for ax, note in zip((by_step, by_t), HEALTH_NOTES[run]):
            ax.text(0.95, 0.95, note, transform=ax.transAxes, ha="right", va="top", fontsize=9)
    axes[0, 0].set_ylabel("v-loss (grey: healthy)")
    axes[1, 0].set_ylabel("v-loss, last 30%")
    return figure


FIGURES = dict(resolution=draw_sizes, health=draw_health)

# ---- The table ----

MARKS = "<!-- table: figures/draw.py writes it -->", "<!-- end of the table -->"


def table(results):
    """The lines of the .md between the marks: all scores, and how they came about."""
    study, lines = results.study, []
    for panel in distinct(results.cells, study.panel):
        cells = [cell for cell in results.cells if cell.at.get(study.panel) == panel]
        lines += [f"### {label(study.panel, panel, cells[0])}", ""] if study.panel else []
        columns = distinct(cells, study.column)
        names = [label(study.column, column).replace("\n", ": ") for column in columns]
        lines += [f"| | {' | '.join(names)} |", "|---" * (len(columns) + 1) + "|"]
        for row in distinct(cells, study.row):
            here = {c.at.get(study.column): c for c in cells if c.at.get(study.row) == row}
            texts = [table_words(here[c], results) if c in here else "" for c in columns]
            name = label(study.row, row, next(iter(here.values()))) if study.row else ""
            name = name.replace("\n", " ")
            lines.append(f"| {name} | {' | '.join(texts)} |")
        lines.append("")
    for real in results.real.values():
        known = [in_words(score, [real[score]]) for score in SCORES if score in real]
        lines += [f"Real images, {real['size']} px, patch {real['patch']}: {', '.join(known)}.", ""]
    return [*lines, *footnotes(results)]


def table_words(cell, results):
    known = [(score, results.values(cell, score)) for score in SCORES]
    words = ", ".join(in_words(score, values) for score, values in known if values) or "not run"
    return words + (f" (paper: FID {cell.paper:g})" if cell.paper and results.has_paper else "")


def footnotes(results):
    """How the numbers came about."""
    cell, records = results.cells[0], results.records
    listed = {"numbers": cell.net, "flow": FLOW | cell.flow, "train": TRAIN | cell.train}
    chosen = ", ".join(f"{key} {value}" for part in listed.values() for key, value in part.items())
    sampled = ", ".join(f"{key} {value}" for key, value in (SAMPLE | cell.sample).items())
    seconds = sum(record.get("seconds", 0) for record in records)
    ran = sorted({f"{r['hardware']}; PyTorch {r['torch']}; commit {r['commit']}" for r in records})
    return [
        f"{cell.n} samples a cell; mean ± standard deviation over training seeds where ± stands.",
        "",
        f"- Command: `{results.header['command']}`",
        f"- The first cell: {chosen}; the others differ in what the table says.",
        f"- Its sampling: {sampled}, weights ema1, seed 0.",
        f"- Time: {seconds / 60:.0f} minutes for {len(records)} records, one after the other.",
        f"- Hardware: {' / '.join(ran)}.",
    ]


def write_table(results, path):
    """Put the table between its marks, or into a new file; the rest stays."""
    text = path.read_text() if path.exists() else f"# {results.study.title}\n\n" + "\n".join(MARKS)
    begin, end = map(re.escape, MARKS)
    inside = "\n".join((MARKS[0], "", *table(results), "", MARKS[1]))
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: inside, text.strip(), flags=re.S) + "\n")


def draw(name, folder):
    """NAME.png and the table of NAME.md, from NAME.json and NAME.npz."""
    results = Results(name, folder)
    figure = FIGURES.get(results.header["study"], draw_study)(results)
    command = f"{results.header['command']}; python figures/draw.py {name}"
    save(figure, folder / f"{name}.png", command, DPI)
    write_table(results, folder / f"{name}.md")


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("names", nargs="+", help="of studies, or of the files that run.py wrote")
    args = parser.parse_args(words)
    for name in args.names:
        if not (args.out / f"{name}.json").exists():
            sys.exit(f"{args.out} holds no {name}.json: python figures/run.py makes it.")
        draw(name, args.out)


if __name__ == "__main__":
    main()
