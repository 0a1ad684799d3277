"""The studies: what is trained, where it stands in its picture, and the finding. Data only.

figures/run.py trains what is listed here and keeps results/NAME.json and NAME.npz, figures/draw.py
draws from these two. Nothing here is imported from jit.py: a cell holds the arguments of jit.JiT
(or a class of variants.py), jit.Flow, jit.train and jit.sample_images as plain values, and its
place as coordinates, `at`. What a coordinate is called in a picture stands in draw.py.

Most networks are 192 wide, for patches of 192 numbers: as in the paper's Table 2 (a) the width is
what a patch has, so that no direction is out of reach of the last layer. The paper sweeps guidance
and the average of the weights for each entry; here both stay.

To add a study: a generator of Cells under @study, and a row in figures/README.md. Cells that need
the same network share it, across studies too.
"""

import hashlib
import json
from dataclasses import dataclass, field
from itertools import product

PREDS = ("x", "eps", "v")
TI = dict(depth=4, width=128, heads=4, bottleneck=32, context_tokens=4, context_start=1,
          dropout=0.0, rope=True, qk_norm=True, channels=3)  # fmt: skip
WIDE = dict(size=32, patch=8, depth=4, width=192, heads=6, bottleneck=0, context_tokens=0,
            context_start=1, dropout=0.0, rope=True, qk_norm=True, channels=3)  # fmt: skip
FLOW = dict(pred="x", loss="v", mu=-0.8, sigma=0.8, noise_scale=1.0, label_drop=0.1, t_clip=0.05)
TRAIN = dict(steps=4000, batch_size=16, lr=2e-3 * 128 / 192, warmup=100, cooldown=1.0)
DEFAULT = dict(steps=5000, batch_size=16, lr=4e-3, cooldown=0.5)  # of `python jit.py train`
SAMPLE = dict(solver="heun", cfg=2.0, sampling_steps=25, batch_size=50, interval=(0.0, 1.0))
LATER = dict(interval=(0.1, 1.0))
TIMES = [(i + 0.5) / 20 for i in range(20)]  # where the loss over t, and the gate, are measured
SHOWN = (4, 5, 7, 9, 1, 2, 8, 6, 3, 0)  # of the samples, one of each class: star, heart, moon ...


@dataclass(frozen=True)
class Cell:
    """A network, how to train and sample it, and its coordinates, as dict(pred="x", loss="v").

    What is not given is as in FLOW, TRAIN and SAMPLE. variant: JiT, or a class of variants.py;
    paper: its FID-50K; n: samples that are measured; repeat: train once for each of --seeds, else
    for seed 0 alone; texture: in how many directions of its patches an image gets normal noise that
    is part of the data, of standard deviation `strength`.
    """

    at: dict
    net: dict
    flow: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    sample: dict = field(default_factory=dict)
    variant: str = "JiT"
    paper: float = None
    n: int = 300
    repeat: bool = True
    texture: int = 0
    strength: float = 0.5


@dataclass(frozen=True)
class Study:
    """A function that yields cells, and the coordinates that run down and across the picture.

    real: whether real images stand above.
    """

    title: str
    cells: object
    row: str
    column: str
    real: bool = False


STUDIES = {}


def study(title, **look):
    """Registers a function that yields cells as the study of its name."""

    def register(cells):
        STUDIES[cells.__name__] = Study(title, cells, **look)
        return cells

    return register


def settings(cell):
    """All that was chosen for the network of a cell, and for its samples, as two plain dicts."""
    network = dict(variant=cell.variant, net=cell.net, flow=FLOW | cell.flow)
    network |= dict(train=TRAIN | cell.train)
    if cell.texture:
        network["texture"] = cell.texture
    if cell.strength != Cell.strength:
        network["strength"] = cell.strength
    return network, SAMPLE | cell.sample | dict(n=cell.n)


def digest(*parts):
    """Ten letters that change with any of some plain values."""
    text = json.dumps(parts, sort_keys=True)  # a tuple is written as a list
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def numbers_of(cell):
    """How many numbers a patch of its images has."""
    return cell.net["channels"] * cell.net["patch"] ** 2


# ---- Width of the network / numbers of a patch ----

# Below 1 noise is out of reach of the last layer, Linear(width, numbers); at 1, where the paper's
# Table 2 (a) stands, no direction is. Images of 32 px have 16 patches of 192 numbers, or 64 of 48.


def of_width(width):
    """The network and the learning rate of a width."""
    net = WIDE | dict(width=width, heads=max(1, round(width / 32)))
    return net, dict(lr=2e-3 * 128 / width)


@study("Three predictions, and the width of the network as a share of the numbers of a patch",
       row="ratio", column="pred", real=True)  # fmt: skip
def ratio():
    sizes = [(48, 8), (96, 8), (144, 8), (192, 8), (288, 8), (384, 8), (192, 4)]
    for (width, patch), pred in product(sizes, PREDS):
        share = width / (3 * patch**2)
        net, train = of_width(width)
        yield Cell(dict(ratio=share, pred=pred), net | dict(patch=patch), dict(pred=pred), train,
                   repeat=share in (0.25, 1, 4))  # fmt: skip


@study("How much of the noise is left, out of reach and in reach", row="way", column="kind")
def reach():
    """x_pred = c_skip z + c_out net, from x-prediction (c_skip = 0) to eps-prediction (1 / t).

    Out of reach is noise that the last layer cannot put out, or that a bottleneck does not let in.
    Expected in reach, from the totals: v .09 at 1/2, .06 at 3/4, .14 by patches and at r = 32, .07
    at r = 128; eps 2.2, 1.9, 1.8, .11, .14: behind a bottleneck no length is out of reach.
    """
    net, train = of_width(48)
    yield Cell(dict(way="1/4", kind="x"), net, train=train)
    for kind in ("linear", "edm"):
        at, preconditioned = dict(way="1/4", kind=kind), net | dict(kind=kind)
        yield Cell(at, preconditioned, train=train, variant="Preconditioned")
    widths = {"1/4": 48, "1/2": 96, "3/4": 144, "1": 192}
    for (way, width), kind in product(widths.items(), ("v", "eps")):
        net, train = of_width(width)
        yield Cell(dict(way=way, kind=kind), net, dict(pred=kind), train,
                   repeat=way in ("1/4", "1"))  # fmt: skip
    changes = {"patches": dict(patch=16), "r = 32": dict(bottleneck=32),
               "r = 128": dict(bottleneck=128)}  # fmt: skip
    for (way, change), kind in product(changes.items(), ("v", "eps")):
        yield Cell(dict(way=way, kind=kind), WIDE | change, dict(pred=kind),
                   repeat=way != "patches")  # fmt: skip


@study("Nine ways to denoise, as wide as a patch (Table 2 (a))",
       row="loss", column="pred", real=True)  # fmt: skip
def nine():
    fids = (10.14, 379.21, 107.55, 10.45, 394.58, 126.88, 8.62, 372.38, 96.53)
    for (loss, pred), fid in zip(product(PREDS, PREDS), fids):
        flow = dict(pred=pred, loss=loss)
        yield Cell(flow, WIDE, flow, paper=fid, repeat=loss == "v")


@study("Three predictions on pictures of your own", row="patch", column="pred", real=True)
def predictions(size=32, patches=(8, 4), channels=3):
    for patch, pred in product(patches, PREDS):
        net = WIDE | dict(size=size, patch=patch, channels=channels)
        yield Cell(dict(patch=patch, pred=pred), net, dict(pred=pred))


@study("Slow, or unable? v-prediction at ratio 1 with more steps", row="pred", column="recipe",
       real=True)  # fmt: skip
def slow():
    """Expected of v after 64,000 steps: 90% recognised, noise left .05, v-loss .055: slow.

    After 16,000 at twice the rate: 82%; x after 16,000: 98%, so v still stays behind x. Expected of
    two more seeds of v after 16,000, which had 78%: 75 to 82%.
    """
    recipes = dict(ours={}, fast=dict(lr=2 * TRAIN["lr"]), long=dict(steps=16000))
    for pred, recipe in product(("x", "v"), recipes):
        yield Cell(dict(pred=pred, recipe=recipe), WIDE, dict(pred=pred), recipes[recipe])
    further = dict(both=recipes["fast"] | recipes["long"], longest=dict(steps=64000))
    for recipe, train in further.items():
        yield Cell(dict(pred="v", recipe=recipe), WIDE, dict(pred="v"), train, repeat=False)


@study("Width, or size? v-prediction in networks of as many weights", row="pred", column="form")
def form():
    """Depth 9 at width 192 has the weights of depth 4 at width 288, which reaches 87%.

    Expected: 47%, as with depth 4 at width 192 (a trial had 53 and 42%): it is the width. Expected
    of two more seeds of width 288: 84 to 90%.
    """
    forms = dict(plain=(192, 4), deep=(192, 9), wide=(288, 4))
    for name, (width, depth) in forms.items():
        net, train = of_width(width)
        yield Cell(dict(pred="v", form=name), net | dict(depth=depth), dict(pred="v"), train)


@study("Data of more and more dimensions: shapes with normal noise in k directions of each patch",
       row="pred", column="k")  # fmt: skip
def dimension():
    """First expected: x holds while k is small, and joins v, or falls behind it, as k comes to 192.

    It comes nearer and stays ahead. So then: what counts is how much of z a prediction has to hold
    (draw.burden), for texture of half the noise's strength less for x than for v, for texture as
    strong as the noise more. Expected there: x falls behind. Expected later, at strength 0.7: the
    burden says v leads; v - x of the other six points lies on a line that says x, by .007. Expected
    of a second seed: the same three orders, each lead within .003 of the first seed's.
    """
    for pred in ("x", "v"):
        for k in (0, 16, 48, 96, 192):
            yield Cell(dict(pred=pred, k=k), WIDE, dict(pred=pred), texture=k,
                       repeat=k in (0, 192))  # fmt: skip
        for k, strength in dict(stronger=0.7, strong=1.0).items():
            yield Cell(dict(pred=pred, k=k), WIDE, dict(pred=pred), texture=192,
                       strength=strength)  # fmt: skip


# ---- The paper's tables ----


@study("Which noise levels to train at: logit t ~ N(μ, 0.8²) (Table 3)",
       row="pred", column="mu", real=True)  # fmt: skip
def shift():
    """Expected of eps and v: as with x no mu helps much. v recognised 40, 45, 46, 35%, eps 10%.

    eps-prediction bursts for its last norm (`length`), whatever mu is.
    """
    fids = (14.44, 9.79, 8.62, 8.99, 464.25, 372.91, 372.36, 355.25, 120.03, 109.93, 96.53, 106.85)
    for (pred, mu), fid in zip(product(PREDS, (0.0, -0.4, -0.8, -1.2)), fids):
        yield Cell(dict(pred=pred, mu=mu), WIDE, dict(pred=pred, mu=mu), paper=fid)


@study("A bottleneck of r numbers in the patch embedding (Figure 4)",
       row="pred", column="r", real=True)  # fmt: skip
def bottleneck():
    """Expected of eps and v: what noise does not get in cannot come out; it stays as in `reach`."""
    # The paper's 16, 128 and 512 of 768 numbers are 4, 32 and 128 of 192. Of its others, 8.38,
    # 8.15, 7.89 and 7.35, we do not know which is which.
    fids = {4: 9.40, 32: 7.48, 128: None, 0: 8.62}
    for pred, r in product(PREDS, fids):
        yield Cell(dict(pred=pred, r=r), WIDE | dict(bottleneck=r), dict(pred=pred),
                   paper=fids[r] if pred == "x" else None)  # fmt: skip


@study("The network, step by step (Table 4)", row="pred", column="network", real=True)
def ladder():
    """With a bottleneck of a sixth of the numbers, as in the paper. The third is one of Figure 4's.

    Expected: recognised 85, 87, 94, 94%.
    """
    bare = WIDE | dict(bottleneck=32, rope=False, qk_norm=False)
    roped = WIDE | dict(bottleneck=32)
    rungs = [("layernorm", "LayerNormGelu", bare, 7.89), ("rmsnorm", "JiT", bare, 7.48),
             ("rope", "JiT", roped, 6.69),
             ("context", "JiT", roped | dict(context_tokens=4), 5.49)]  # fmt: skip
    for network, variant, net, fid in rungs:
        yield Cell(dict(pred="x", network=network), net, variant=variant, paper=fid)


# ---- Sampling, and questions of our own ----


@study("Two solvers, and their distance to 512 steps of Heun", row="solver", column="steps")
def solver():
    for name, steps in product(("heun", "euler"), (4, 8, 16, 32, 64)):
        sample = LATER | dict(solver=name, sampling_steps=steps)
        yield Cell(dict(solver=name, steps=steps), TI | dict(size=64, patch=16), train=DEFAULT,
                   sample=sample)  # fmt: skip


@study("Classifier-free guidance", row="low", column="w")
def guidance():
    for low, w in product((0.0, 0.1), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)):
        yield Cell(dict(low=low, w=w), TI | dict(size=64, patch=16), train=DEFAULT,
                   sample=dict(interval=(low, 1.0), cfg=w))  # fmt: skip


@study("A way around the network for the noise: one learned number g(t)",
       row="variant", column="pred", real=True)  # fmt: skip
def gate():
    for variant, pred in [*product(("JiT",), PREDS), ("Gated", "eps"), ("Gated", "v")]:
        yield Cell(dict(variant=variant, pred=pred), WIDE, dict(pred=pred), variant=variant)


@study("Why does ε-prediction burst at ratio 1? The network without its last norm",
       row="variant", column="pred", real=True)  # fmt: skip
def length():
    """The RMSNorm before the last linear layer keeps of a token its direction, not its length.

    So for one t and class all that the network can put out for a patch lies on the surface of an
    ellipsoid. Noise of n numbers is √n ± 0.7 long; what a sphere misses is 1 / (2 n) of its
    variance, 0.0026 at n = 192: nothing for v, but what eps-prediction misses grows 49-fold.
    Expected: without the norm no bursts, eps as at ratio 3/2 (noise left .15, recognised 40%); x
    and v as with it. Expected later, of the norm with one learned length a token: noise left .10,
    recognised 16%, as without the norm; so it is the length, and not what else the norm does.
    """
    for variant, pred in product(("JiT", "NoLastNorm"), PREDS):
        yield Cell(dict(variant=variant, pred=pred), WIDE, dict(pred=pred), variant=variant)
    at = dict(variant="LearnedLength", pred="eps")
    yield Cell(at, WIDE, dict(pred="eps"), variant="LearnedLength")


# ---- What was found: the title of a picture, once its numbers bear it ----

FINDINGS = {
    "ratio": "Narrower than a patch, a network cannot put out ε and v; as wide, it does so badly; "
             "x-prediction hardly minds",
    "slow": "Sixteen times the steps bring v-prediction to what x-prediction has after 4,000",
    "form": "As many weights in depth help v-prediction less than in width",
    "reach": "Out of reach the sampler alone decides how much noise stays; "
             "in reach training does",
    "nine": "As wide as a patch, x-prediction leads, whatever the loss",
    "dimension": "Texture in more and more dimensions takes away x-prediction's lead; "
                 "as strong as the noise, it leaves none",
    "predictions_digits": "Digits, patches of 196 numbers: x-prediction draws them clean, "
                          "v-prediction under noise, ε-prediction not",
    "predictions_photos": "Photographs, patches of 192 numbers: colours and textures by x, the "
                          "same under noise by v, bursts by ε",
    "bottleneck": "Let in 4 of a patch's 192 numbers: x-prediction is recognised no less; "
                  "of ε and v the noise that is shut out stays",
    "guidance": "A little guidance makes shapes clearer, much makes them glaring",
    "length": "At ratio 1 patches of ε-prediction burst because the last norm forgets their "
              "length; with one learned length a token none does, and ε still fails",
    "gate": "Let the network subtract a learned multiple g(t) of z, and ε- and v-prediction work, "
            "too; g is near ±1 / (1 − t) up to t = .5",
}  # fmt: skip
