"""architecture.png: the network, as high as a token has numbers, and a block (paper Figure 3)."""

from common import hearts, jit, noise_like
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from style import GREEN, GREY, INK, PALE, PINK, X, arrow, canvas, draw_to, line, new_figure, show

PALE_GREEN, PALE_SKY, PALE_PINK = "#DDF1EB", "#DDF0FA", "#F5E3EE"
HIGH = 2.3 / 768  # inches for each number of a token
MIDDLE = 4.0  # the height, in inches, of the line on which tokens travel
INSIDE = 1.5  # the same for the inside of a block


def box(ax, left, middle, width, height, text="", colour="white", edge=INK):
    """A box around the height `middle`, with a word in it."""
    corner, style = (left, middle - height / 2), dict(facecolor=colour, edgecolor=edge)
    ax.add_patch(Rectangle(corner, width, height, **style))
    ax.text(left + width / 2, middle, text, ha="center", va="center", fontsize=10, linespacing=1.15)


def token(ax, left, numbers, shift=0.0):
    """A bar as high as a token has numbers, and how many these are."""
    height = numbers * HIGH
    box(ax, left, MIDDLE, 0.12, height, colour=GREY)
    text = dict(ha="center", va="bottom", fontsize=11, fontweight="bold")
    ax.text(left + 0.06 + shift, MIDDLE + height / 2 + 0.05, numbers, **text)


def linear(ax, left, right, before, after):
    """A linear map, drawn as what it does to the height of a token."""
    low, high = before * HIGH / 2, after * HIGH / 2
    corners = [(left, MIDDLE - low), (left, MIDDLE + low)]
    corners += [(right, MIDDLE + high), (right, MIDDLE - high)]
    ax.add_patch(Polygon(corners, facecolor=PALE, edgecolor=GREY, linewidth=0.8))


def draw_ends(ax, patch, bottleneck, width):
    """What happens to a token before the blocks and after them."""
    x = hearts(5, 64)[1]
    below = dict(fontsize=10, ha="center", va="top", linespacing=1.25)
    inside = dict(fontsize=10, ha="center", va="center", linespacing=1.15)
    show(ax, 0.5 * (x + noise_like(x)), 0.12, MIDDLE - 0.375, 0.75)
    for cut in (-0.1875, 0, 0.1875):  # into 4 x 4 patches, as 64 pixels by 16
        line(ax, (0.495 + cut, MIDDLE - 0.375), (0.495 + cut, MIDDLE + 0.375), colour="white")
        line(ax, (0.12, MIDDLE + cut), (0.87, MIDDLE + cut), colour="white")
    ax.text(0.5, MIDDLE - 0.43, "z, cut into\npatches", **below)
    arrow(ax, (0.9, MIDDLE), (1.15, MIDDLE))
    token(ax, 1.15, patch)
    linear(ax, 1.27, 1.9, patch, bottleneck)
    ax.text(1.53, MIDDLE, "linear", **inside)
    token(ax, 1.9, bottleneck, 0.04)
    linear(ax, 2.02, 2.4, bottleneck, width)
    token(ax, 2.4, width)
    ax.text(2.22, MIDDLE - 0.3, "bottleneck,\n+ position", **below)
    token(ax, 6.2, width, -0.12)
    linear(ax, 6.32, 7.0, width, patch)
    ax.text(6.75, MIDDLE, "norm,\nscale,\nshift,\nlinear", **inside)
    token(ax, 7.0, patch)
    arrow(ax, (7.12, MIDDLE), (7.4, MIDDLE))
    show(ax, x, 7.43, MIDDLE - 0.375, 0.75, X, 2.5)
    ax.text(7.8, MIDDLE - 0.43, "x_pred", color=X, **below)


def draw_blocks(ax, width, depth, context_tokens, context_start):
    """The blocks, an arrow from c above each, and the in-context tokens that join and leave."""
    step, gap, top = 3.42 / depth, 0.2, MIDDLE + width * HIGH / 2
    for i in range(depth):
        left = 2.74 + step * i
        arrow(ax, (left - gap, MIDDLE), (left, MIDDLE))
        edge = GREEN if i >= context_start else INK
        box(ax, left, MIDDLE, step - gap, width * HIGH, f"block {i}", PALE_SKY, edge)
        arrow(ax, (left + (step - gap) / 2, 4.8), (left + (step - gap) / 2, top), PINK)
    arrow(ax, (5.96, MIDDLE), (6.2, MIDDLE))
    joins = 2.74 + step * context_start - gap / 2
    text = f"{context_tokens} in-context tokens\njoin: class + position"
    box(ax, joins - 0.85, 3.1, 1.7, 0.42, text, PALE_GREEN, GREEN)
    arrow(ax, (joins, 3.31), (joins, MIDDLE - 0.02), GREEN)
    arrow(ax, (6.04, MIDDLE - 0.02), (6.04, 3.33), GREEN)
    ax.text(6.04, 3.1, "and leave\nagain", fontsize=10, ha="center", va="center", color=INK)


def draw_condition(ax):
    """Time and class, which become c, which goes to every block and to the last layer."""
    box(ax, 2.9, 5.3, 1.5, 0.42, "time t: 256 waves,\ntwo linear maps", PALE_PINK, PINK)
    box(ax, 4.8, 5.3, 1.5, 0.42, "class y: a row\nof a table", PALE_PINK, PINK)
    ax.text(4.6, 5.3, "+", ha="center", va="center", fontsize=14)
    arrow(ax, (4.6, 5.17), (4.6, 4.8), PINK)
    ax.text(4.7, 4.97, "c", color=PINK, fontsize=12, fontweight="bold", va="center")
    line(ax, (3.05, 4.8), (6.5, 4.8), colour=PINK)
    arrow(ax, (6.5, 4.8), (6.5, MIDDLE + 0.45), PINK)


def draw_half(ax, left, name, name_width):
    """Half a block, x + gate * f(scale, shift (norm x)), from `left` on; returns where it ends."""
    start = left + 0.08
    steps = {"norm": 0.55, "scale,\nshift": 0.62, name: name_width, "× gate": 0.6}
    for text, width in steps.items():
        from_c = text in ("scale,\nshift", "× gate")
        arrow(ax, (left, INSIDE), (left + 0.2, INSIDE))
        box(ax, left + 0.2, INSIDE, width, 0.62, text, *((PALE_PINK, PINK) if from_c else ()))
        left += 0.2 + width
        if from_c:
            arrow(ax, (left - width / 2, 0.8), (left - width / 2, INSIDE - 0.31), PINK)
    arrow(ax, (left, INSIDE), (left + 0.2, INSIDE))
    ax.add_patch(Circle((left + 0.3, INSIDE), 0.1, facecolor="white", edgecolor=INK, zorder=3))
    ax.text(left + 0.3, INSIDE - 0.01, "+", ha="center", va="center", fontsize=12, zorder=4)
    line(ax, (start, INSIDE), (start, INSIDE + 0.5), (left + 0.3, INSIDE + 0.5))
    arrow(ax, (left + 0.3, INSIDE + 0.5), (left + 0.3, INSIDE + 0.1))
    return left + 0.4


def draw_block(ax):
    """The inside of a block."""
    style = dict(boxstyle="round,pad=0.05", facecolor=PALE_SKY, edgecolor=INK)
    ax.add_patch(FancyBboxPatch((0.2, 0.17), 7.9, 2.38, **style))
    ax.text(0.3, 2.36, "The inside of every block", fontsize=11, fontweight="bold", va="center")
    end = draw_half(ax, 0.27, "attention:\nq, k normed,\nrotated", 1.02)
    end = draw_half(ax, end, "SwiGLU", 0.74)
    arrow(ax, (end, INSIDE), (8.08, INSIDE))
    line(ax, (0.5, 0.8), (7.27, 0.8), colour=PINK)
    ax.text(0.36, 0.8, "c", color=PINK, fontsize=12, fontweight="bold", va="center")
    note = ("From c, SiLU and a linear map make scale, shift and gate, for each half its own.\n"
            "The gates start at 0, so that at first a block changes nothing.")  # fmt: skip
    ax.text(4.15, 0.42, note, fontsize=10, ha="center", va="center")


def draw_architecture():
    """The network to scale, and the inside of a block."""
    model, patch = jit.MODELS["Ti"], 16 * 16 * 3
    bottleneck, width = model["bottleneck"], model["width"]
    title = (f"An hourglass: {patch} noisy numbers enter through {bottleneck}, "
             f"and {patch} clean ones leave")  # fmt: skip
    large = jit.MODELS["B"]  # its patches have 768 numbers, too
    chain = "768 → {bottleneck} → {width} → {depth} blocks of {width} → 768".format(**large)
    joined = "{context_tokens} in-context tokens join before block {context_start}".format(**large)
    note = ("Heights to scale: numbers in a token. "
            "Here Ti/16, for patches of 16 × 16 pixels in 3 colours.\n"
            f"The paper's B/16: {chain}; {joined}.")  # fmt: skip
    figure = new_figure(6.6, title, note)
    ax = canvas(figure)
    draw_ends(ax, patch, bottleneck, width)
    draw_blocks(ax, width, model["depth"], model["context_tokens"], model["context_start"])
    draw_condition(ax)
    draw_block(ax)
    return figure


if __name__ == "__main__":
    draw_to(__doc__, "architecture", draw_architecture)
