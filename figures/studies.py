"""The studies: what is trained, where it stands in its picture, and the finding. Data only.

figures/run.py trains what is listed here and keeps figures/NAME.json and NAME.npz, figures/draw.py
draws from these two. Nothing here is imported from jit.py: a cell holds the arguments of jit.JiT
(or a class of variants.py), jit.Flow, jit.train and jit.sample_images as plain values, and its
place as coordinates, `at`. What a coordinate is called in a picture stands in draw.py.

Most networks are 192 wide, for patches of 192 numbers: as in the paper's Table 2 (a) the width is
what a patch has, so that the last layer shuts out no direction. The paper sweeps guidance and the
average of the weights for each entry; here both stay.

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
SHOWN = (1, 4, 9, 5, 7, 2)  # of the samples: ring, star, gear, heart, moon, triangle


@dataclass(frozen=True)
class Cell:
    """A network, how to train and sample it, and its coordinates, as dict(pred="x", loss="v").

    What is not given is as in FLOW, TRAIN and SAMPLE. variant: JiT, or a class of variants.py;
    paper: its FID-50K; n: samples that are measured; score_size: the side they are averaged down
    to before; repeat: train once for each of --seeds, else for seed 0 alone; texture: in how many
    directions of its patches an image gets normal noise that is part of the data, of standard
    deviation `strength`.
    """

    at: dict
    net: dict
    flow: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    sample: dict = field(default_factory=dict)
    variant: str = "JiT"
    paper: float = None
    n: int = 300
    score_size: int = None
    repeat: bool = True
    texture: int = 0
    strength: float = 0.5


@dataclass(frozen=True)
class Study:
    """Cells, and the coordinates that run down, across, and from panel to panel of the picture.

    cells: a function that yields them; framed: the paper's own choice; real: whether real images
    stand above.
    """

    title: str
    cells: object
    row: str
    column: str
    panel: str = ""
    framed: dict = None
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
    samples = SAMPLE | cell.sample | dict(n=cell.n, score_size=cell.score_size)
    return network, samples


def digest(*parts):
    """Ten letters that change with any of some plain values."""
    text = json.dumps(parts, sort_keys=True)  # a tuple is written as a list
    return hashlib.sha256(text.encode()).hexdigest()[:10]


# ---- Width of the network / numbers of a patch ----

# Below 1 the last layer, Linear(width, numbers), cannot put out noise; at 1, where the paper's
# Table 2 (a) stands, it can put out every direction; of noise it misses the length (see `length`).
# Images of 32 px have 16 patches of 192 numbers, or 64 of 48.


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


@study("How much of the noise is left that a narrow network cannot put out: one law",
       row="ratio", column="kind")  # fmt: skip
def leftover():
    """x_pred = c_skip z + c_out net, from x-prediction (c_skip = 0) to eps-prediction (1 / t)."""
    for kind in ("x", "linear", "edm", "v", "eps"):
        at, (net, train) = dict(ratio=0.25, kind=kind), of_width(48)
        if kind in PREDS:
            yield Cell(at, net, dict(pred=kind), train)
        else:
            net = net | dict(kind=kind)
            yield Cell(at, net, train=train, variant="Preconditioned")


@study("Nine ways to denoise (Table 2)",
       panel="patch", row="loss", column="pred", real=True,
       framed=dict(patch=8, loss="v", pred="x"))  # fmt: skip
def nine(size=32, patches=(8, 4), channels=3):
    fids = [(10.14, 379.21, 107.55, 10.45, 394.58, 126.88, 8.62, 372.38, 96.53),
            (5.76, 6.20, 6.12, 3.56, 4.02, 3.76, 3.55, 3.63, 3.46)]  # fmt: skip
    for patch, fids_of_patch in zip(patches, fids):
        for (loss, pred), fid in zip(product(PREDS, PREDS), fids_of_patch):
            net = WIDE | dict(size=size, patch=patch, channels=channels)
            flow = dict(pred=pred, loss=loss)
            yield Cell(dict(patch=patch) | flow, net, flow, paper=fid, repeat=loss == "v")


@study("Three predictions on patches of as many numbers as the network is wide, and of a quarter",
       row="patch", column="pred", real=True)  # fmt: skip
def predictions(size=32, patches=(8, 4), channels=3):
    return (cell for cell in nine(size, patches, channels) if cell.at["loss"] == "v")


@study("Slow, or unable? v-prediction at ratio 1 with more steps", row="pred", column="recipe",
       real=True)  # fmt: skip
def slow():
    """Expected of v after 64,000 steps: 90% recognised, noise left .05, v-loss .055: slow.

    After 16,000 at twice the rate: 82%; x after 16,000: 98%, so v still stays behind x.
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

    Expected: 47%, as with depth 4 at width 192 (a trial had 53 and 42%): it is the width.
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
    burden says v leads; v - x of the other six points lies on a line that says x, by .007.
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
    """Expected of eps and v: noise that does not get in cannot come out, so the same law holds.

    Of the noise, 1 - r / numbers does not pass; of it the samples keep what `leftover` says.
    """
    # The paper's 16, 128 and 512 of 768 numbers are 4, 32 and 128 of 192. Of its others, 8.38,
    # 8.15, 7.89 and 7.35, we do not know which is which.
    fids = {4: 9.40, 32: 7.48, 128: None, 0: 8.62}
    for pred, r in product(PREDS, fids):
        yield Cell(dict(pred=pred, r=r), WIDE | dict(bottleneck=r), dict(pred=pred),
                   paper=fids[r] if pred == "x" else None)  # fmt: skip


@study("The network, step by step (Table 4)", row="pred", column="network", real=True)
def ladder():
    """With a bottleneck of a sixth of the numbers, as in the paper. The third is one of Figure 4's.

    Expected: the paper's order by rfd, the largest step with RoPE; recognised 85, 87, 94, 94%.
    """
    bare = WIDE | dict(bottleneck=32, rope=False, qk_norm=False)
    roped = WIDE | dict(bottleneck=32)
    rungs = [("layernorm", "LayerNormGelu", bare, 7.89), ("rmsnorm", "JiT", bare, 7.48),
             ("rope", "JiT", roped, 6.69),
             ("context", "JiT", roped | dict(context_tokens=4), 5.49)]  # fmt: skip
    for network, variant, net, fid in rungs:
        yield Cell(dict(pred="x", network=network), net, variant=variant, paper=fid)


@study("More pixels, the same number of tokens (Table 5)", row="size", column="pred")
def resolution():
    for size, fid in {32: 4.37, 64: 4.64, 128: 4.82}.items():
        flow = dict(noise_scale=size / 64)  # as in the paper, the noise grows with the image
        yield Cell(dict(pred="x", size=size), TI | dict(size=size, patch=size // 4), flow,
                   DEFAULT, LATER, paper=fid, score_size=32)  # fmt: skip


# ---- Sampling, and a question of our own ----


@study("Two solvers", row="solver", column="steps")
def solver():
    for name, steps in [*product(("heun", "euler"), (4, 8, 16, 32, 64)), ("heun", 512)]:
        sample = LATER | dict(solver=name, sampling_steps=steps)
        yield Cell(dict(solver=name, steps=steps), TI | dict(size=64, patch=16), train=DEFAULT,
                   sample=sample, n=50 if steps == 512 else 300)  # fmt: skip


@study("Is it the sampler? x_pred kept within [−1, 1], or begun at t = 0.02",
       row="pred", column="sampler", real=True)  # fmt: skip
def sampler():
    ways = dict(plain={}, limit=dict(limit=1.0), start=dict(start=0.02))
    for pred, way in product(PREDS, ways):
        yield Cell(dict(pred=pred, sampler=way), WIDE, dict(pred=pred), sample=ways[way],
                   repeat=False)  # fmt: skip


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
    variance, 0.0026 at n = 192: nothing for v, but what eps-prediction misses grows 49-fold. Seen
    in networks of `tuned`: patches whose noise was longer than 13.6 burst. Expected: without the
    norm no bursts, eps as at ratio 3/2 (noise left 0.15, recognised 40%); x and v as with it.
    Expected later, of the norm with one learned length a token: noise left .10, recognised 16%, as
    without the norm; so it is the length, and not what else the norm does.
    """
    for variant, pred in product(("JiT", "NoLastNorm"), PREDS):
        yield Cell(dict(variant=variant, pred=pred), WIDE, dict(pred=pred), variant=variant)
    at = dict(variant="LearnedLength", pred="eps")
    yield Cell(at, WIDE, dict(pred="eps"), variant="LearnedLength")


@study("A healthy loss falls fast, then slowly, and is lowest near t = 0.35", row="", column="run")
def health():
    """`python jit.py train` for 1,000 steps, and four runs that are not healthy."""
    runs = dict(healthy=({}, {}), slow=({}, dict(lr=4e-5)), hot=({}, dict(lr=0.1)),
                eps=(dict(pred="eps"), {}), clear=(dict(mu=2.0), {}))  # fmt: skip
    for run, (flow, train) in runs.items():
        net, train = TI | dict(size=64, patch=16), DEFAULT | dict(steps=1000) | train
        yield Cell(dict(run=run), net, flow, train, LATER, repeat=False)


# ---- What was found: the title of a picture, once its numbers bear it ----

FINDINGS = {
    "ratio": "Narrower than a patch, a network cannot put out ε and v; as wide, it does so badly; "
             "x-prediction hardly minds",
    "leftover": "Noise that a narrow network cannot put out stays in the picture: "
                "one law says how much",
    "nine": "As wide as a patch, a network needs x-prediction, whatever the loss; "
            "four times as wide, it draws shapes with all three",
    "dimension": "Texture in more and more dimensions takes away x-prediction's lead, "
                 "and once it is as strong as the noise, v leads",
    "predictions": "The same width, 192, on patches of 768 numbers: x-prediction works, "
                   "of ε and v stays as much noise as the law says",
    "predictions_digits": "Digits, patches of 196 numbers: x-prediction draws them clean, "
                          "v-prediction under noise, ε-prediction not",
    "predictions_photos": "Photographs, patches of 192 numbers: colours and textures by x, the "
                          "same under noise by v, bursts by ε; of 48 numbers: by all three",
    "bottleneck": "Let in 4 of a patch's 192 numbers: x-prediction is recognised no less; "
                  "of v the noise shut out stays, of ε 49 times as much",
    "shift": "No μ mends ε- or v-prediction; x-prediction from μ = 0 to −0.8 alike, "
             "at −1.2, trained mostly on noise, worse",
    "ladder": "RMSNorm with SwiGLU, and then RoPE, raise the share that is recognised; "
              "in-context tokens lower rfd",
    "resolution": "With 16 tokens the shapes are recognised equally often at 32, 64 and 128 px",
    "solver": "8 evaluations draw the same shapes; to come within a grey level of the exact "
              "solution takes 64 and more",
    "guidance": "A little guidance makes shapes clearer, much makes them glaring; begun at t = 0.1 "
                "it stays nearer to the data",
    "sampler": "Another sampler mends neither ε- nor v-prediction at ratio 1",
    "length": "At ratio 1 patches of ε-prediction burst since the last norm forgets their length; "
              "without it none does, and ε still fails: wrong colours under grain",
    "gate": "Let the network subtract a learned multiple g(t) of z, and ε- and v-prediction work, "
            "too; g is near ±1 / (1 − t) up to t = .5",
}  # fmt: skip
