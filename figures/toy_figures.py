"""Table and pictures of toy_manifold.py, drawn from its records (networks with seed and errors)."""

import os
from statistics import mean, stdev

# Nothing is shown, only saved. A backend that a notebook has set, but that is not installed here,
# would stop even the import of Figure.
os.environ["MPLBACKEND"] = "agg"

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

CONFIG = ("D", "d", "width", "skip", "pred", "loss")
COLORS = {"x": "#0072B2", "eps": "#D55E00", "v": "#E69F00"}
GRAY = "#666666"
LABELS = {"x": "x-prediction", "eps": "ε-prediction", "v": "v-prediction",
          "data": "true data", "oracle": "oracle", "noise": "untouched noise"}  # fmt: skip
DISTANCES = {"off_plane": "distance from the plane", "off_curve": "distance from the curve",
             "sliced_w1": "distance of the distributions"}  # fmt: skip

# The panels of toy_why.png: study, horizontal axis (a field, its label), vertical axis, finding.
PANELS = (
    ("width", "width", "hidden units in a layer", "off_plane",
     "Do more hidden units help ε and v?\nLittle: with 2,048, v keeps half the noise"),
    ("intrinsic", "d", "dimension d of the data", "sliced_w1",
     "Must the data be low-dimensional?\nYes: from d = 32, x is worse than noise"),
    ("combos", "loss", "what the loss compares", "off_curve",
     "Is it the loss?\nNo, it is what the network predicts"),
    ("skip", "skip", "path for z around the hidden layers", "off_plane",
     "Does a path around the layers help?\nA learned gate does; fixed paths ruin x"),
)  # fmt: skip
GATE_TITLE = "What does the learned gate do?\nIt finds 1 / (1 − t), the wide gray curve"
NOTE = """One dot: one network, one seed; D = 512.

Distance from the plane, 1 = norm of
the data; in the plane from the curve,
and of the distributions (sliced
Wasserstein), 1 = standard deviation.

linear, EDM: a fixed multiple of z is
added to the output (paper Table 10).
gate: net(z, t) − g z, where g is one
more output of the network."""


def group(records, *fields):
    """{values of the fields: the records that have them}, in order of appearance."""
    groups = {}
    for record in records:
        groups.setdefault(tuple(record[field] for field in fields), []).append(record)
    return groups


def print_table(records, metrics):
    """Mean +- standard deviation over seeds, a row for each network."""
    heads = "".join(f"   {metric:19}" for metric in metrics)
    print("   D    d  width  skip    pred    loss" + heads)
    for config, found in group(records, *CONFIG).items():
        line = "{:4} {:4} {:6}  {:7} {:7} {:4}".format(*config)
        for metric in metrics:
            values = [record[metric] for record in found]
            spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
            line += f"{mean(values):12.4f}{spread:10}"
        print(line)


def draw(study, stored, planes, curve):
    """The picture that a study belongs to."""
    if study == "samples":
        return draw_samples(stored["samples"], planes, curve)
    if study == "dimension":
        return draw_dimension(stored["dimension"])
    return draw_why(stored)


# ---- toy_manifold.png ----------------------------------------------------------------------------
def draw_samples(records, planes, curve):
    """A row for each prediction, a column for each D; the last column holds the references."""
    errors = {key: mean(record["off_plane"] for record in found)
              for key, found in group(records, "D", "pred").items()}  # fmt: skip
    dims = sorted({D for D, _ in planes})
    figure = Figure(figsize=(1.6 * len(dims) + 1.9, 6), layout="constrained")
    rows = figure.subplots(3, len(dims) + 1, squeeze=False)
    for row, pred, reference in zip(rows, COLORS, ("data", "oracle", "noise")):
        for ax, D in zip(row, dims):
            draw_plane(ax, planes[D, pred], curve, COLORS[pred])
            ax.set_xlabel(f"off plane: {round(errors[D, pred], 4):.3g}", fontsize=10.5)
        draw_plane(row[-1], planes[dims[-1], reference], curve, GRAY)
        row[-1].set_xlabel(LABELS[reference], fontsize=10.5)
        row[0].set_ylabel(LABELS[pred], color=COLORS[pred], fontsize=12)
    for ax, title in zip(rows[0], [*(f"D = {D}" for D in dims), "reference"]):
        ax.set_title(title, fontsize=12)
    title = "As D grows, ε- and v-prediction lose the spiral; x-prediction keeps it"
    figure.suptitle(title, fontsize=13)
    return figure


def draw_plane(ax, points, curve, color):
    """Points (n, 2) over the true curve, in the same frame everywhere."""
    frame = 2.5
    ax.plot(*curve.T, color="0.8", linewidth=1)
    ax.scatter(*points.T, s=1.5, color=color, linewidths=0)
    ax.set(xlim=(-frame, frame), ylim=(-frame, frame), xticks=[], yticks=[], aspect="equal")
    outside = (points.abs() > frame).any(dim=1).float().mean().item()
    if outside > 0.5:  # else the panel shows it
        ax.text(0, -2.2, f"{outside:.1%} outside", ha="center", fontsize=11)


# ---- toy_dimension.png ---------------------------------------------------------------------------
def draw_dimension(records):
    """Distance from the plane against D."""
    records = [record for record in records if record["D"] > 2]  # at D = 2 there is no way off it
    figure = Figure(figsize=(8.3, 4.8), layout="constrained")
    ax = figure.subplots()
    dims = draw_errors(ax, records, "D", "off_plane")
    if 256 in dims:
        ax.axvline(dims.index(256), color="0.8", zorder=0)
        note = "256 dimensions, \n256 hidden units "
        ax.text(dims.index(256), 0.06, note, ha="right", color=GRAY, fontsize=11)
    ax.set_xlabel("dimension D of the space", fontsize=11)
    figure.legend(handles=legend_lines(), loc="outside lower center", ncols=4, fontsize=11)
    title = "As D grows, ε- and v-prediction leave the plane; x-prediction stays close to it"
    figure.suptitle(title, fontsize=13)
    return figure


def draw_errors(ax, records, field, metric, joined=True):
    """An error against a field of the networks: one dot a seed, a line through the means."""
    values = [value for (value,) in group(records, field)]
    for (pred,), found in group(records, "pred").items():
        if pred in COLORS:
            x = [values.index(record[field]) for record in found]
            ax.plot(x, [record[metric] for record in found], "o", color=COLORS[pred], markersize=5)
        means = {value: mean(record[metric] for record in same)
                 for (value,), same in group(found, field).items()}  # fmt: skip
        x = [values.index(value) for value in means]
        if pred in COLORS and joined:
            ax.plot(x, means.values(), color=COLORS[pred])
        if pred == "noise" and len(means) > 1:
            ax.plot(x, means.values(), "--", color=GRAY)
        elif pred == "noise":
            ax.axhline(*means.values(), linestyle="--", color=GRAY)
    ax.set(yscale="log", xlim=(-0.4, len(values) - 0.6))
    ax.set_xticks(range(len(values)), values)
    ax.set_ylabel(DISTANCES[metric], fontsize=11)
    return values


def legend_lines():
    """What colors and lines mean."""
    dots = {"marker": "o", "markersize": 5}
    lines = [Line2D([], [], color=COLORS[pred], label=LABELS[pred], **dots) for pred in COLORS]
    return [*lines, Line2D([], [], linestyle="--", color=GRAY, label=LABELS["noise"])]


# ---- toy_why.png ---------------------------------------------------------------------------------
def draw_why(stored):
    """A question and its answer over each panel; a panel stays empty until its study has run."""
    figure = Figure(figsize=(8.3, 10.5), layout="constrained")
    axes = figure.subplots(3, 2).flat
    for ax, (study, field, label, metric, finding) in zip(axes, PANELS):
        records = [record for record in stored.get(study, []) if record["D"] == 512]
        if records:
            draw_errors(ax, records, field, metric, joined=study in ("width", "intrinsic"))
        ax.set_xlabel(label, fontsize=11)
        ax.set_title(finding, fontsize=11.5, loc="left")
    draw_gates(axes[4], [record for record in stored.get("skip", []) if "gate" in record])
    axes[5].axis("off")
    axes[5].legend(handles=legend_lines(), loc="upper left", fontsize=11, frameon=False)
    axes[5].text(0.03, 0.56, NOTE, fontsize=10.5, va="top", transform=axes[5].transAxes)
    title = "In 512 dimensions x-prediction works; ε and v need a learned path for z"
    figure.suptitle(title, fontsize=13)
    return figure


def draw_gates(ax, records):
    """The learned gate g(t) of each network over 1 / (1 - t), of the other sign for eps."""
    times = [i / 100 for i in range(93)]
    ax.plot(times, [1 / (1 - t) for t in times], color="0.8", linewidth=8)
    for record in records:
        sign = {"v": 1, "eps": -1}[record["pred"]]
        gates = {float(t): sign * gate for t, gate in record["gate"].items()}
        color = COLORS[record["pred"]]
        ax.plot(gates.keys(), gates.values(), "o-", color=color, markersize=3, linewidth=1)
    ax.set(xlabel="t", ylim=(0, 12))
    ax.set_ylabel("g for v,  −g for ε", fontsize=11)
    ax.set_title(GATE_TITLE, fontsize=11.5, loc="left")
