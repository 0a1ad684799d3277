"""The table and the pictures of toy_manifold.py, from its records: what a network was, its seed, and its errors."""

from statistics import mean, stdev

from matplotlib.figure import Figure  # not pyplot, which needs a backend: these figures are only saved
from matplotlib.lines import Line2D

CONFIG = ("D", "d", "width", "skip", "pred", "loss")
AXES = {"off_plane": "distance from the plane", "off_curve": "distance from the curve"}
COLORS = {"x": "#0072B2", "eps": "#D55E00", "v": "#E69F00"}
GRAY = "#666666"
LABELS = {"x": "x-prediction", "eps": "ε-prediction", "v": "v-prediction",
          "data": "true data", "oracle": "oracle", "noise": "untouched noise"}  # fmt: skip
STYLE = {"fontsize": 11, "loc": "left"}

# Each panel of toy_why.png: study, field of the configuration along the axis, metric, question and answer.
PANELS = (
    ("width", "width", "off_plane", "Do more hidden units help ε and v?\nHardly, even four to a coordinate",
     "hidden units in a layer"),
    ("intrinsic", "d", "off_curve", "Must the data be low-dimensional?\nYes: from d = 32 on x fails too",
     "dimension d of the data"),
    ("combos", "loss", "off_curve", "Is it the loss?\nNo, it is what the network predicts",
     "the quantity that the loss compares"),
    ("skip", "skip", "off_plane", "Does a path for z around the layers help?\nA learned one does; fixed ones ruin x",
     "path for z around the hidden layers"),
)  # fmt: skip
NOTE = """One dot is one seed; D = 512.

Distance from the plane:
1 = the norm of the data.
Distance from the curve, in the plane:
1 = standard deviation of the data.

gate: net(z, t) − g z, where g is one
more output of the network."""


def group(records, *fields):
    """{values of the fields: records that have them}, in order of appearance."""
    groups = {}
    for record in records:
        groups.setdefault(tuple(record[field] for field in fields), []).append(record)
    return groups


def print_table(records, metrics):
    """Mean +- standard deviation over seeds, a row for each network."""
    print("   D    d  width  skip    pred    loss" + "".join(f"   {metric:19}" for metric in metrics))
    for config, rows in group(records, *CONFIG).items():
        line = "{:4} {:4} {:6}  {:7} {:7} {:4}".format(*config)
        for metric in metrics:
            values = [row[metric] for row in rows]
            spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
            line += f"{mean(values):12.4f}{spread:10}"
        print(line)


def draw_plane(ax, points, curve, color):
    """Samples (n, 2) over the true curve, in the same frame everywhere; what lies outside is counted."""
    frame = 2.5
    outside = (abs(points) > frame).any(axis=1).float().mean().item()
    ax.plot(*curve.T, color="0.8", linewidth=1)
    ax.scatter(*points.T, s=1.5, color=color, linewidths=0)
    ax.set(xlim=(-frame, frame), ylim=(-frame, frame), xticks=[], yticks=[], aspect="equal")
    if outside > 0.5:
        ax.text(0, -2.2, f"{outside:.1%} outside", ha="center", fontsize=11)


def draw_samples(records, planes, curve):
    """toy_manifold.png: a row for each prediction, a column for each D; references in a last column."""
    dims = sorted({config.D for config in planes})
    figure = Figure(figsize=(1.62 * (len(dims) + 1) + 0.3, 6), layout="constrained")
    axes = figure.subplots(3, len(dims) + 1, squeeze=False)
    for column, D in enumerate(dims):
        axes[0, column].set_title(f"D = {D}", fontsize=12)
    axes[0, -1].set_title("reference", fontsize=12)
    for config, points in planes.items():
        pred = config.pred
        errors = [record["off_plane"] for record in records if (record["D"], record["pred"]) == (config.D, pred)]
        if pred in COLORS:
            ax = axes[list(COLORS).index(pred), dims.index(config.D)]
            draw_plane(ax, points, curve, COLORS[pred])
            ax.set_xlabel(f"off plane: {mean(errors):.2g}", fontsize=10)
        elif config.D == dims[-1]:
            ax = axes[["data", "oracle", "noise"].index(pred), -1]
            draw_plane(ax, points, curve, GRAY)
            ax.set_xlabel(LABELS[pred], fontsize=10)
    for ax, pred in zip(axes[:, 0], COLORS):
        ax.set_ylabel(LABELS[pred], color=COLORS[pred], fontsize=12)
    figure.suptitle("x-prediction finds the spiral in any dimension; ε and v lose it as D grows", fontsize=13)
    return figure


def means(records, field, metric):
    """{value of the field: mean of the metric over seeds}"""
    return {value: mean(row[metric] for row in rows) for (value,), rows in group(records, field).items()}


def draw_errors(ax, records, field, metric, joined=True):
    """An error against a field of the configuration: one dot a seed, a line through the means."""
    networks = [record for record in records if record["pred"] in COLORS]
    ticks = list(means(networks, field, metric))
    for (pred,), rows in group(networks, "pred").items():
        x = [ticks.index(row[field]) for row in rows]
        ax.plot(x, [row[metric] for row in rows], "o", color=COLORS[pred], markersize=5)
        if joined:
            curve = means(rows, field, metric)
            ax.plot([ticks.index(value) for value in curve], curve.values(), color=COLORS[pred])
    noise = means([record for record in records if record["pred"] == "noise"], field, metric)
    level = [noise.get(tick, max(noise.values())) for tick in ticks] if noise else []
    ax.plot(range(len(level)), level, "--", color=GRAY)
    ax.set(yscale="log", xlim=(-0.4, len(ticks) - 0.6))
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set_ylabel(AXES[metric], fontsize=11)


def draw_gate(ax, records):
    """The learned gate g(t) of each seed over 1 / (1 - t)."""
    times = [i / 100 for i in range(93)]
    ax.plot(times, [1 / (1 - t) for t in times], "--", color=GRAY, linewidth=3)
    for record in records:
        gate = {float(t): abs(g) for t, g in record.get("gate", {}).items()}
        ax.plot(gate.keys(), gate.values(), "o-", color=COLORS.get(record["pred"]), markersize=3)
    ax.set(yscale="log", xlabel="t", yticks=[1, 2, 5, 10], yticklabels=[1, 2, 5, 10])
    ax.minorticks_off()
    ax.set_ylabel("|g|", fontsize=11)
    ax.set_title("What does the learned path do?\ng = 1/(1 − t) (dashed): v = (x − z)/(1 − t)", **STYLE)


def keys():
    """What colors and lines mean, for a legend."""
    colored = [Line2D([], [], marker="o", color=COLORS[pred], label=LABELS[pred]) for pred in COLORS]
    return [*colored, Line2D([], [], linestyle="--", color=GRAY, label=LABELS["noise"])]


def draw_dimension(stored):
    """toy_dimension.png: distance from the plane against D."""
    records = [record for record in stored["dimension"] if record["D"] > record["d"]]
    figure = Figure(figsize=(8.2, 4.6), layout="constrained")
    ax = figure.subplots()
    draw_errors(ax, [record for record in records if record["pred"] in (*COLORS, "noise")], "D", "off_plane")
    dims = sorted({record["D"] for record in records})
    if 256 in dims:
        ax.axvline(dims.index(256), color="0.8", zorder=0)
        ax.text(dims.index(256) - 0.05, 0.1, "as many dimensions\nas hidden units", ha="right", fontsize=10)
    ax.set_xlabel("dimension D of the space", fontsize=11)
    figure.legend(handles=keys(), loc="outside lower center", ncols=4, fontsize=11)
    figure.suptitle("As the space grows, ε- and v-prediction leave the plane; x-prediction stays near it", fontsize=13)
    return figure


def draw_why(stored):
    """toy_why.png: a question and its answer over each panel; a panel is empty until its study has run."""
    figure = Figure(figsize=(8.3, 10), layout="constrained")
    axes = figure.subplots(3, 2).flat
    for ax, (study, field, metric, title, label) in zip(axes, PANELS):
        records = [record for record in stored.get(study, []) if record["D"] == 512]
        if records:
            draw_errors(ax, records, field, metric, joined=study in ("width", "intrinsic"))
        ax.set_xlabel(label, fontsize=11)
        ax.set_title(title, **STYLE)
    draw_gate(axes[4], stored.get("skip", []))
    axes[5].set_axis_off()
    axes[5].legend(handles=keys(), loc="upper left", fontsize=11, frameon=False)
    axes[5].text(0.05, 0.0, NOTE, fontsize=10.5)
    figure.suptitle("With D = 512, only a network that predicts x, or can become one, finds the data", fontsize=13)
    return figure
