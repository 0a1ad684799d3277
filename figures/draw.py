"""Draw studies from the numbers and tiles that figures/run.py has kept: seconds, no torch.

    python figures/draw.py gate                   runs/figures/gate.png
    python figures/draw.py gate ratio --out figures        the committed pictures

Numbers come from OUT/results, where run.py has left some, else from the committed figures/results.
All tables of OUT/results go into its README.md. Bars are standard deviations over training seeds.
To change a label, change LABELS: nothing else depends on it.
"""

import json
import sys
from functools import partial
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from studies import FINDINGS, FLOW, SAMPLE, STUDIES, TIMES, TRAIN, digest, numbers_of, settings
from style import COLOURS, GREEN, GREY, INK, PINK, find_results, save, script_to_out, wrap
from theory import LEFT, bound, burden, density, kept_by_sphere, mean_loss, predicted_left

PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")
LABELS = dict(
    pred=PREDICTION,
    loss=dict(x="x-loss", eps="ε-loss", v="v-loss"),
    kind=PREDICTION | dict(linear="linear\nt z + (1 − t) net", edm="EDM\nc_skip z + c_out net"),
    way={way: f"ratio {way}" for way in ("1/4", "1/2", "3/4", "1")}
    | {"patches": "1/4 by larger patches", "r = 32": "bottleneck 32", "r = 128": "bottleneck 128"},
    network=dict(layernorm="LayerNorm, GELU", rmsnorm="RMSNorm, SwiGLU", rope="+ RoPE, qk-norm",
                 context="+ in-context\ntokens"),
    variant=dict(JiT="as it is", Gated="network − g(t) z", NoLastNorm="without its\nlast norm",
                 LearnedLength="one learned\nlength a token"),
    recipe=dict(ours="4,000\nsteps", fast="4,000,\nrate × 2", long="16,000\nsteps",
                both="16,000,\nrate × 2", longest="64,000\nsteps"),
    form=dict(plain="192 wide,\n4 blocks", deep="192 wide,\n9 blocks", wide="288 wide,\n4 blocks"),
    solver=dict(heun="Heun", euler="Euler"),
    low={0.0: "guidance at all t", 0.1: "for t > 0.1"},
    patch="patches of {numbers} numbers", mu="μ = {}", w="w = {:g}", steps="{} steps",
    k={k: f"k = {k}" for k in (0, 16, 48, 96, 192)}
    | dict(stronger="k = 192,\nstrength .7", strong="k = 192,\nstrength 1"),
    r={0: "none"} | {r: f"r = {r}" for r in (4, 32, 128)},
    ratio={0.25: "ratio 1/4", 0.5: "ratio 1/2", 0.75: "ratio 3/4", 1: "ratio 1", 1.5: "ratio 3/2",
           2: "ratio 2", 4: "ratio 4"},
)  # fmt: skip
SCORES = dict(recognised="recognised", second_judge="second judge", noise_left="noise left",
              left_out="out of reach", left_in="in reach", v_loss="v-loss",
              distance="distance")  # fmt: skip
DPI = 100  # all pictures of the repository together stay below 6 MB
COLOUR_OF = COLOURS | dict(linear=GREEN, edm=PINK)  # of a prediction, or a kind of one


def label(coordinate, value, cell=None):
    """What a value of a coordinate is called."""
    words = LABELS.get(coordinate, "{}")
    if isinstance(words, dict):
        return words.get(value, str(value))
    return words.format(value, numbers=cell and numbers_of(cell)).replace("-", "−")


def distinct(cells, coordinate):
    return list(dict.fromkeys(cell.at.get(coordinate) for cell in cells))


def spread(values):
    """Standard deviation over the seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def in_words(score, values):
    """A score of one seed, or mean ± deviation: two digits are what 300 samples are good for."""
    scale, unit = (100, "%") if score in ("recognised", "second_judge") else (1, "")
    mean = scale * np.mean(values)
    decimals = dict(recognised=0, second_judge=0, v_loss=3, distance=4).get(score, 2)
    if mean >= 1:
        decimals = 0 if mean >= 10 else min(decimals, 1)
    text = f"{SCORES[score]} {mean:.{decimals}f}"
    return text + (f" ± {scale * spread(values):.{decimals}f}" if len(values) > 1 else "") + unit


class Results:
    """A study and its records, found by the coordinates of a cell."""

    def __init__(self, name, folder):
        self.header = json.loads((folder / f"{name}.json").read_text())
        self.records, self.study = self.header["records"], STUDIES[self.header["study"]]
        path = folder / f"{name}.npz"
        self.tiles = dict(np.load(path)) if path.exists() else {}
        # Real images that must not be passed on are taken out of the .npz file, and not shown.
        self.shows_real = self.study.real and "real" in self.tiles
        cells = list(self.study.cells(**self.header["arguments"]))
        rows, columns = ({cell.at.get(part) for cell in cells if self.of(cell)}  # with results
                         for part in (self.study.row, self.study.column))  # fmt: skip
        self.cells = [cell for cell in cells if cell.at.get(self.study.row) in rows
                      and cell.at[self.study.column] in columns]  # fmt: skip
        seeds = [len(self.of(cell)) for cell in self.cells if cell.repeat and self.of(cell)] or [1]
        self.title = FINDINGS.get(name, self.study.title)
        if min(seeds) < 2:
            self.title += " (one seed)" if max(seeds) < 2 else " (one seed where no ± stands)"

    def of(self, cell):
        """The records of a cell, by seed; not those of other settings than studies.py has now."""
        is_now = digest(*settings(cell))
        found = [r for r in self.records if r["at"] == cell.at]
        found = [r for r in found if self.header["tiny"] or r["settings"] == is_now]
        return sorted(found, key=lambda record: record["seed"])

    def values(self, cell, score):
        """A number of each seed; v_loss: the mean of loss_over_t, as training draws t."""
        if score == "v_loss":
            return [mean_loss(losses) for losses in self.values(cell, "loss_over_t")]
        return [record[score] for record in self.of(cell) if score in record]


# ---- Tiles ----


def mosaic(images, rows=None):
    """uint8 (n, C, S, S) as one picture (H, W, 3), with white gaps; more than three in two rows."""
    images = images // 6 * 6  # fewer colours than an eye tells apart here: smaller files
    gap = max(1, images.shape[-1] // 16)
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)
    tiles = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows = np.split(tiles, rows or (2 if len(images) > 3 else 1))
    return np.vstack([np.hstack(row) for row in rows])[:-gap, :-gap]


def words_of(cell, results, scores):
    """Those of the scores that are known."""
    known = [(score, results.values(cell, score)) for score in scores]
    return [in_words(score, values) for score, values in known if values]


def below(cell, results):
    """Under a picture: its scores, and what the paper has."""
    lines = words_of(cell, results, ("recognised", "noise_left"))
    paper = [f"paper: FID {cell.paper:.{2 if cell.paper < 100 else 0}f}"] if cell.paper else []
    return "\n".join(lines + paper)


def draw_cell(ax, results, cell, most, size=9.5):
    """Tiles of a cell, of its first seed, in the colour of its prediction; its numbers below, of
    this size."""
    records = results.of(cell)
    if records:
        images = results.tiles[records[0]["key"]][:most]
        ax.imshow(mosaic(images), interpolation="nearest")
    else:
        ax.text(0.5, 0.5, "not run here", color=GREY, ha="center", transform=ax.transAxes)
    if "pred" in cell.at:
        ax.spines[:].set(visible=True, color=COLOURS[cell.at["pred"]], linewidth=2)
    ax.set_xlabel(below(cell, results), fontsize=size)


def draw_real(axes, results, most):
    """Three sets of real images in a row."""
    for ax, images in zip(axes, np.split(results.tiles["real"], 3)):
        ax.imshow(mosaic(images[:most]), interpolation="nearest")
    real = results.header["real"]
    score = [in_words("recognised", [real["recognised"]])] if "recognised" in real else []
    axes[0].set_ylabel("\n".join(["real images", *score]), fontsize=9.5)


def draw_grid(figure, results, cells, most):
    """The tiles of every cell in its row and column, and real images in a row above their names."""
    study = results.study
    rows, columns = distinct(cells, study.row), distinct(cells, study.column)
    size = 9.5 if len(columns) < 7 else 8.5  # numbers of seven cells must fit side by side
    axes = figure.subplots(len(rows) + results.shows_real, len(columns), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for cell in cells:
        row, column = cell.at.get(study.row), cell.at.get(study.column)
        i, j = rows.index(row) + results.shows_real, columns.index(column)
        draw_cell(axes[i, j], results, cell, most, size)
        name = label(study.column, column)
        axes[int(results.shows_real), j].set_title(name, color=COLOUR_OF.get(column, INK))
        axes[i, 0].set_ylabel(label(study.row, row, cell), color=COLOUR_OF.get(row, INK))
    if results.shows_real:
        draw_real(axes[0], results, most)
    figure.supxlabel("Samples are unselected (seed 0).", fontsize=9)
    return axes


# ---- Plots ----


def plot_line(ax, results, cells, x, score, **style):
    """Mean and spread of a score of some cells, at x(cell)."""
    found = {x(cell): results.values(cell, score) for cell in cells if results.of(cell)}
    means, bars = map(np.mean, found.values()), map(spread, found.values())
    ax.errorbar(list(found), list(means), list(bars), marker="o", **style)


def plot_lines(ax, results, coordinate, x, score):
    """A line for each value of a coordinate."""
    others = iter((INK, GREEN, GREY))
    for value in distinct(results.cells, coordinate):
        cells = [cell for cell in results.cells if cell.at.get(coordinate) == value]
        style = dict(color=COLOURS.get(value) or next(others), label=label(coordinate, value))
        plot_line(ax, results, cells, x, score, **style)


def plot_steps(ax, results, score):
    """A score against the steps of training; dashed: at twice the rate."""
    for pred, (rate, line) in product(("x", "v"), {1: "-", 2: "--"}.items()):
        cells = [cell for cell in results.cells if cell.at["pred"] == pred
                 and (TRAIN | cell.train)["lr"] == rate * TRAIN["lr"]]  # fmt: skip
        name = label("pred", pred) + (", rate × 2" if rate == 2 else "")
        plot_line(ax, results, cells, lambda cell: (TRAIN | cell.train)["steps"], score,
                  color=COLOURS[pred], linestyle=line, label=name)  # fmt: skip
    ax.set(xscale="log", xlabel="training steps", title=SCORES[score])
    ax.set_xticks([4000, 16000, 64000], ["4,000", "16,000", "64,000"])
    ax.minorticks_off()
    finish_scores(ax, results, score)


def plot_columns(ax, results, score):
    """A score against the columns of the study, a line a row."""
    study = results.study
    columns = distinct(results.cells, study.column)
    plot_lines(ax, results, study.row, lambda cell: columns.index(cell.at[study.column]), score)
    names = [label(study.column, column) for column in columns]
    ax.set_xticks(range(len(columns)), names, fontsize=9)
    ax.set(xlim=(-0.4, len(columns) - 0.6), title=SCORES[score])
    finish_scores(ax, results, score)


def finish_scores(ax, results, score):
    """The axis of a score, and the legend."""
    if score == "noise_left":
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    if score == "recognised":
        real = results.header["real"]["recognised"]
        ax.axhline(real, color=GREY, linestyle=":", label="real images")
        ax.set_ylim(0, 1.1)
        ax.yaxis.set_major_formatter("{x:.0%}")
    ax.legend()


def plot_gates(ax, results):
    """The learned gates over 1 / (1 - t). That of eps = (z - t x) / (1 - t) has another sign."""
    t = np.linspace(0.005, 0.98, 99)
    ax.plot(t, 1 / (1 - t), "--", color=INK, label="1 / (1 − t)")
    for cell in results.cells:
        pred = cell.at["pred"]
        for i, gates in enumerate(results.values(cell, "gate")):
            sign, name = (-1, "−g(t)") if pred == "eps" else (1, "g(t)")
            text = None if i else f"{name}, {PREDICTION[pred]}"
            ax.plot(TIMES, sign * np.array(gates), color=COLOURS[pred], label=text)
    hill = 3 * density(t) / density(t).max()
    ax.fill_between(t, hill, color="#E4E4E4", linewidth=0, label="where training draws t")
    ax.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), ylim=(0, 12), ylabel="gate")
    ax.legend(loc="upper left")


def plot_lead(ax, results):
    """x-prediction's lead in v-loss against how much more of z the best v-prediction holds."""
    by_place = {tuple(cell.at.values()): cell for cell in results.cells}
    for k in distinct(results.cells, "k"):
        x, v = by_place["x", k], by_place["v", k]
        pairs = zip(results.values(x, "v_loss"), results.values(v, "v_loss"))
        leads = [of_v - of_x for of_x, of_v in pairs]
        place = burden(v) - burden(x)
        ax.plot([place] * len(leads), leads, "o", color=INK)
        ax.annotate(label("k", k).replace("\n", " "), (place, np.mean(leads)), (6, -9),
                    textcoords="offset points", fontsize=8.5)  # fmt: skip
    ax.axhline(0, color=GREY, linewidth=1)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set(xlabel="how much more of z the output holds with v than with x (burden)",
           ylabel="v-loss of v − v-loss of x", title="above 0 x leads, below v")  # fmt: skip
    ax.margins(0.2)


# ---- Plots of what is out of reach ----

# width / numbers of a patch: at 1,024, 512, 512, 256 and 64 px
PAPER_RATIOS = {"B/64": 1 / 16, "B/32": 1 / 4, "L/32": 1 / 3, "B/16": 1, "B/4": 16}


def plot_ratio(ax, results, score, expected, name):
    """A score against the ratio; dashed expected(pred, ratio), which is called `name`."""
    fine = np.geomspace(0.05, 0.999, 100)
    for pred in ("eps", "v"):
        ax.plot(fine, [expected(pred, ratio) for ratio in fine], "--", color=COLOURS[pred])
    ax.plot([], "--", color=GREY, label=name)
    plot_lines(ax, results, "pred", lambda cell: cell.at["ratio"], score)
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
    plot_ratio(ax, results, "noise_left",
               lambda pred, ratio: predicted_left(pred, ratio, numbers), "predicted")
    ax.set(ylim=(0.01, None), ylabel="noise left in the samples")


def plot_v_loss(ax, results):
    plot_ratio(ax, results, "v_loss",
               lambda pred, ratio: mean_loss(bound(pred, ratio, np.array(TIMES))),
               "no training can get below")  # fmt: skip
    ax.set(ylim=(0.03, None), ylabel="v-loss of new images")


def plot_reach(ax, results):
    """A column a cell: noise left out of reach (full), on the bar of what the sampler must leave,
    and in reach (hollow). At ratio 1 all is in reach."""
    kinds = ("x", "linear", "edm", "v", "eps")
    cells = [cell for kind in kinds for cell in results.cells
             if cell.at["kind"] == kind and results.of(cell)]  # fmt: skip
    names, style = [], dict(textcoords="offset points", ha="center", fontsize=8.5)

    def point(i, values, colour, face, above):
        mean = np.mean(values)
        ax.plot(i, mean, "o", color=colour, markerfacecolor=face, markersize=8)
        ax.annotate(f"{mean:.2g}".replace("0.", "."), (i, mean), (0, above), **style)

    for i, cell in enumerate(cells):
        kind, way, colour = cell.at["kind"], cell.at["way"], COLOUR_OF[cell.at["kind"]]
        outside = results.values(cell, "left_out")
        if outside:
            point(i, outside, colour, colour, 6)
            ax.hlines(LEFT[kind], i - 0.45, i + 0.45, color=INK, linewidth=1)
        inside = results.values(cell, "left_in") or results.values(cell, "noise_left")
        point(i, inside, colour, "white", -13)
        way = dict(patches="1/4\nlarge\npatch").get(way, way.replace(" = ", " "))
        names.append(f"{dict(eps='ε', edm='EDM').get(kind, kind)}\n{way}")
    ax.set_xticks(range(len(cells)), names, fontsize=8.5)
    ax.plot([], "o", color=GREY, markersize=8, label="out of reach, measured")
    ax.hlines([], 0, 0, color=INK, linewidth=1, label="out of reach: the sampler must leave it")
    ax.plot([], "o", color=GREY, markerfacecolor="white", markersize=8, label="in reach, measured")
    ax.set(ylabel="noise left", yscale="log", ylim=(0.003, 200), xlim=(-0.7, len(cells) - 0.3))
    ax.set_xlabel("prediction; ratio, or numbers r that a bottleneck lets in", fontsize=8.5)
    ax.legend(loc="lower right", fontsize=8.5, ncols=3)


def plot_left_by_length(ax, results):
    """Noise left in patches against the length of their noise; dashed: with ε on a sphere."""
    markers = dict(JiT="o-", NoLastNorm="s:", LearnedLength="^:")
    for cell in results.cells:
        pred, variant = cell.at["pred"], cell.at["variant"]
        size = 10 if pred == "eps" else 6  # v's markers lie on those of ε
        name = f"{label('pred', pred)} {label('variant', variant)}".replace("\n", " ")
        for i, found in enumerate(results.values(cell, "left_by_length")):
            style = dict(color=COLOURS[pred], markersize=size, label=None if i else name)
            ax.plot(*zip(*found), markers[variant], **style)
    length = np.linspace(0.9, 1.1, 201)
    ax.plot(length, kept_by_sphere(length), "--", color=INK, label="predicted, of ε on a sphere")
    ax.set(xlabel="length of a patch's noise / √numbers", ylabel="noise left in the patch")
    ax.set_xticks([0.9, 0.95, 1, 1.05, 1.1])
    ax.legend(fontsize=8, handlelength=1.2)


# ---- Figures ----

PLOTS = dict(
    ratio=(plot_noise_left, plot_v_loss),
    reach=(plot_reach,),
    bottleneck=(partial(plot_columns, score="recognised"),
                partial(plot_columns, score="noise_left")),
    slow=(partial(plot_steps, score="recognised"), partial(plot_steps, score="v_loss")),
    gate=(plot_gates,), dimension=(plot_lead,),
    length=(plot_left_by_length,),
)  # fmt: skip
# Of the tiles, where they are not all of the plots and the table.
ROWS = dict(ratio=(0.25, 1, 4), reach=("1/4",), bottleneck=("x", "v"))


def draw_study(results):
    """The usual figure: title, plots, tiles."""
    study, name = results.study, results.header["study"]
    plots, rows = PLOTS.get(name, ()), ROWS.get(name, distinct(results.cells, study.row))
    cells = [cell for cell in results.cells if cell.at.get(study.row) in rows]
    columns = len(distinct(cells, study.column))
    side, most = 9.4 / columns, 2
    if columns < 6:
        side, most = 1.75, 4
    if columns < 4:
        side, most = 2.7, 10
    width = max(0.8 + side * columns, 9 if plots else 7)
    first = next(record for cell in cells for record in results.of(cell))
    image = mosaic(results.tiles[first["key"]][:most])
    under = 0.12 + 0.15 * max(below(cell, results).count("\n") + 1 for cell in cells)
    high = side * image.shape[0] / image.shape[1] + under
    above = 0.5 + 0.2 * max(label(study.column, cell.at[study.column]).count("\n")
                            for cell in cells)  # fmt: skip
    heights = [(len(rows) + results.shows_real) * high + above]
    heights = [3.2, *heights] if plots else heights
    title = wrap(results.title, width)
    height = sum(heights) + 0.55 + 0.2 * title.count("\n")
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    parts = np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights))
    for i, plot in enumerate(plots):
        plot(parts[0].add_subplot(1, len(plots), i + 1), results)
    draw_grid(parts[-1], results, cells, most)
    return figure


def draw_three(results):
    """README's first picture, of the study `length`: ten samples by x, v and ε at ratio 1."""
    title = "On large patches: predict the image, and it draws; velocity or noise, and it fails"
    figure = Figure(figsize=(8.3, 3.9), layout="constrained")
    figure.suptitle(title, fontsize=11)
    rows = {"real images": (INK, results.tiles["real"][:10])}
    for pred, name in dict(x="the image, x", v="the velocity, v", eps="the noise, ε").items():
        at = dict(variant="JiT", pred=pred)
        (cell,) = [cell for cell in results.cells if cell.at == at]
        images = results.tiles[results.of(cell)[0]["key"]]
        rows[f"predicts\n{name}"] = COLOURS[pred], images
    for ax, (name, (colour, images)) in zip(figure.subplots(len(rows), 1), rows.items()):
        ax.imshow(mosaic(images, rows=1), interpolation="nearest")
        ax.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, fontsize=9.5)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    figure.supxlabel("The same network, data, training, sampler. Unselected (seed 0).", fontsize=9)
    return figure


# ---- The page of tables ----

PAGE = """# All numbers of the studies

Written by `python figures/draw.py`, nothing by hand; findings.md tells what they say. *recognised*:
share of 300 samples that a judge takes for their class. *noise left*: slope of the samples on the
noise they started from, 0 none, 1 all of it; *out of reach*, *in reach*: in the directions that the
network cannot and can put out. ±: standard deviation over training seeds.
"""


def table(results):
    """All scores of a study, and how they came about, as lines of markdown."""
    study = results.study
    columns = distinct(results.cells, study.column)
    names = [label(study.column, column).replace("\n", " ") for column in columns]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(columns) + 1) + "|"]
    for row in distinct(results.cells, study.row):
        here = {c.at[study.column]: c for c in results.cells if c.at.get(study.row) == row}
        texts = [table_words(here[c], results) if c in here else "" for c in columns]
        name = label(study.row, row, next(iter(here.values())))
        lines.append(f"| {' | '.join([name, *texts])} |".replace("\n", " "))
    return [*lines, "", *footnotes(results)]


def table_words(cell, results):
    paper = f" (paper: FID {cell.paper:g})" if cell.paper else ""
    return (", ".join(words_of(cell, results, SCORES)) or "not run") + paper


def footnotes(results):
    """How the numbers came about."""
    cell, records, real = results.cells[0], results.records, results.header["real"]
    chosen = cell.net | FLOW | cell.flow | TRAIN | cell.train
    sampled = SAMPLE | cell.sample
    first, how = (str(part)[1:-1].replace("'", "").replace(":", "") for part in (chosen, sampled))
    minutes = sum(record.get("seconds", 0) for record in records) / 60
    ran = sorted({f"{r['hardware']}; PyTorch {r['torch']}; commit {r['commit']}" for r in records})
    judged = [real["recognised"]] if "recognised" in real else []
    return [
        *(f"- Real images: {in_words('recognised', [share])}." for share in judged),
        f"- Command: `{results.header['command']}`",
        f"- The first cell: {first}; the others differ in what the table says.",
        f"- Its sampling: {how}, weights ema1, seed 0.",
        f"- Time: {minutes:.0f} minutes for {len(records)} records, one after the other.",
        f"- Hardware: {' / '.join(ran)}.",
    ]


def page(folder):
    """All tables of a folder, in the order of studies.py."""
    names = [path.stem for path in sorted(folder.glob("*.json"))
             if "study" in json.loads(path.read_text())]  # fmt: skip
    found = [(name, Results(name, folder)) for name in names]
    found.sort(key=lambda each: list(STUDIES).index(each[1].header["study"]))
    parts = [f"## {name}\n\n{results.title}\n\n" + "\n".join(table(results)) + "\n"
             for name, results in found]  # fmt: skip
    return "\n".join([PAGE, *parts])


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("names", nargs="*", help="of studies, or three; none: only the tables")
    args = parser.parse_args(words)
    if "three" in args.names:
        args.names.remove("three")
        figure = draw_three(Results("length", find_results(args.out, "length")))
        save(figure, args.out / "three.png", "python figures/draw.py three", 150)
    for name in args.names:
        results = Results(name, find_results(args.out, name))
        if not results.tiles:  # as of the solvers, which differ by less than one sees
            sys.exit(f"{name} has no pictures, only the table in results/README.md.")
        command = f"{results.header['command']}; python figures/draw.py {name}"
        save(draw_study(results), args.out / f"{name}.png", command, DPI)
    folder = args.out / "results"
    if folder.exists():
        (folder / "README.md").write_text(page(folder))


if __name__ == "__main__":
    sys.exit(main())
