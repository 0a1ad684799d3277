"""What figures/ablations.py trains: the studies as lists of cells; and where the results of a cell lie.

A cell is a network to train, how to sample it, and its place in table and figure. Cells that chose the same network
share it, across studies too. Settings: Tables 2, 3, 10 and Figure 4 are, as in the paper, without RoPE, qk-norm,
in-context tokens, guidance interval and (but for Figure 4) bottleneck. The paper sweeps guidance and EMA for each
entry; here both stay.
"""

import dataclasses
import hashlib
import inspect
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import common
import numpy as np
import variants
from common import jit

# ---- The studies -------------------------------------------------------------------------------------------------

# n samples are scored against `reference` real images. Image size and patch: large, small, such that a patch has 768 or
# 48 numbers; whole, for the studies of the whole network; sizes, the same number of tokens. On a CPU `large` is of four
# tokens: without RoPE and bottleneck a small network takes thousands of steps to learn where each of 16 patches stands.
# The recipe is that of jit.train, sampling that of jit.sample_images; recipes says what else the studies need:
# eps-prediction on small patches draws shapes after more steps than the others; `default` is what
# `python jit.py train` does.
USUAL = {name: parameter.default for name, parameter in inspect.signature(jit.train).parameters.items()}
SCALES = {
    "cpu": dict(  # the built-in shapes, network 128 wide
        network=jit.MODELS["Ti"],
        recipe=dict(steps=5000, batch_size=32, lr=2e-3, cooldown=1.0),
        recipes=dict(
            small=dict(steps=6000, batch_size=16),
            small_eps=dict(steps=9000, batch_size=16),
            whole=dict(steps=3000, batch_size=16),
            default={name: USUAL[name] for name in ("steps", "batch_size", "lr", "cooldown")},
        ),
        sampling=dict(cfg=2.0, sampling_steps=25, batch_size=50),
        n=300,
        reference=3000,
        large=(32, 16),
        small=(32, 4),
        whole=(64, 16),
        sizes=[(32, 8), (64, 16), (128, 32)],
    ),
    "gpu": dict(  # photographs, network 384 wide
        network=jit.MODELS["S"],
        recipe=dict(steps=2500, batch_size=128, lr=5e-4, cooldown=1.0),
        recipes=dict(small={}, small_eps={}, whole={}, default={}),
        sampling=dict(cfg=2.0, sampling_steps=25, batch_size=500),
        n=2000,
        reference=20000,
        large=(64, 16),
        small=(64, 4),
        whole=(64, 16),
        sizes=[(64, 16), (128, 32), (256, 64)],
    ),
    "toy": dict(  # seconds, to see that everything works
        network=jit.MODELS["Ti"] | dict(depth=2, width=32, heads=2),
        recipe=dict(steps=6, batch_size=4, lr=2e-3, cooldown=1.0, save_every=2, log_every=1),
        recipes=dict(small={}, small_eps=dict(steps=4), whole={}, default={}),
        sampling=dict(cfg=1.5, sampling_steps=2, batch_size=9),
        n=9,
        reference=30,
        large=(16, 16),
        small=(16, 4),
        whole=(16, 4),
        sizes=[(16, 4), (32, 8)],
    ),
}
BARE = dict(rope=False, qk_norm=False, context_tokens=0)  # the network of Tables 2, 3, 10 and Figure 4, with ...
PLAIN = BARE | dict(bottleneck=0)
TIMES = [(i + 0.5) / 20 for i in range(20)]  # where the loss over t, and the gate, are measured
GUIDED = {"guidance at all t": dict(interval=(0.0, 1.0)), "for t > 0.1": dict(interval=(0.1, 1.0))}
ALWAYS, LATER = GUIDED.values()
PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")
LOSS = dict(x="x-loss", eps="ε-loss", v="v-loss")
PREDS = tuple(PREDICTION)


@dataclass
class Cell:
    """A network, how to sample it, and its place. What is not given here is as the scale has it, or jit.py."""

    row: str
    column: str
    network: dict  # arguments of its class, with size and patch
    flow: dict = field(default_factory=dict)  # arguments of jit.Flow
    recipe: dict = field(default_factory=dict)  # arguments of jit.train
    sampling: dict = field(default_factory=dict)  # arguments of jit.sample_images
    variant: type = jit.JiT  # or a class of variants.py
    panel: str = ""
    paper: float = None  # its FID-50K
    n: int = None  # samples
    score_size: int = None  # the side that images are averaged down to before they are scored
    repeated: bool = True  # trained --seeds times, not once


@dataclass
class Study:
    """Cells in rows and columns."""

    title: str
    columns: str  # what they are
    cells: list
    chosen: tuple = ()  # panel, row and column of the paper's own choice


def at(scale, name, **network):
    """Network arguments at one of the scale's sizes and patches: large, small or whole."""
    size, patch = scale[name]
    return dict(size=size, patch=patch) | network


def predictions(scale):
    """The v-loss row of nine, its panels as rows."""
    cells = [cell for cell in nine(scale).cells if cell.row == "v-loss"]
    cells = [dataclasses.replace(cell, row=cell.panel.partition(",")[0], panel="") for cell in cells]
    return Study("Three predictions on patches of few and of many numbers (Table 2, v-loss)", "prediction", cells)


def nine(scale):
    paper = dict(
        large=dict(x=(10.14, 379.21, 107.55), eps=(10.45, 394.58, 126.88), v=(8.62, 372.38, 96.53)),
        small=dict(x=(5.76, 6.20, 6.12), eps=(3.56, 4.02, 3.76), v=(3.55, 3.63, 3.46)),
    )
    width = scale["network"]["width"]
    cells = []
    for name, letter in dict(large="a", small="b").items():
        panel = f"({letter}) patches of {3 * scale[name][1] ** 2} numbers, network {width} wide"
        for loss in PREDS:
            for pred, fid in zip(PREDS, paper[name][loss]):
                network, flow = at(scale, name, **PLAIN), dict(pred=pred, loss=loss)
                recipe = {} if name == "large" else scale["recipes"]["small_eps" if pred == "eps" else "small"]
                settings = dict(recipe=recipe, sampling=ALWAYS, panel=panel, paper=fid, repeated=loss == "v")
                cells.append(Cell(LOSS[loss], PREDICTION[pred], network, flow, **settings))
    chosen = cells[0].panel, LOSS["v"], PREDICTION["x"]
    return Study("Nine ways to denoise (Table 2)", "prediction", cells, chosen)


def shift(scale):
    paper = {
        0.0: (14.44, 464.25, 120.03),
        -0.4: (9.79, 372.91, 109.93),
        -0.8: (8.62, 372.36, 96.53),
        -1.2: (8.99, 355.25, 106.85),
    }
    cells = []
    for i, pred in enumerate(PREDS):
        for mu, fids in paper.items():
            network, flow = at(scale, "large", **PLAIN), dict(pred=pred, mu=mu)
            cells.append(Cell(PREDICTION[pred], f"μ = {mu}", network, flow, sampling=ALWAYS, paper=fids[i]))
    return Study("Which noise levels to train at: logit t ~ N(μ, 0.8²) (Table 3)", "mean of logit t", cells)


def bottleneck(scale):
    paper = {0: 8.62, 16: 9.40, 128: 7.48}  # of its others, 8.38, 8.15, 7.89 and 7.35, we do not know which is which
    cells = []
    for r in (16, 128, 512, 0):
        network = at(scale, "large", **BARE, bottleneck=r)
        cells.append(Cell("x-prediction", f"{r or 'none'}", network, sampling=ALWAYS, paper=paper.get(r)))
    return Study("A bottleneck of r numbers in the patch embedding (Figure 4)", "r", cells)


def ladder(scale):
    rungs = {
        "LayerNorm, GELU": (variants.LayerNormGelu, BARE, 7.89),
        "RMSNorm, SwiGLU": (jit.JiT, BARE, 7.48),
        "+ RoPE, qk-norm": (jit.JiT, dict(context_tokens=0), 6.69),
        "+ in-context tokens": (jit.JiT, {}, 5.49),
    }
    cells = []
    for rung, (variant, network, fid) in rungs.items():
        settings = dict(recipe=scale["recipes"]["whole"], sampling=ALWAYS, variant=variant, paper=fid)
        cells.append(Cell("x-prediction", rung, at(scale, "whole", **network), **settings))
    return Study("The network, step by step (Table 4)", "network", cells)


def precond(scale):
    paper = dict(none=(10.14, 10.45, 8.62), linear=(39.50, 67.56, 46.25), edm=(28.94, 72.05, 35.49))
    cells = []
    for loss in PREDS:
        for kind, fids in paper.items():
            network, variant = at(scale, "large", **PLAIN), jit.JiT
            if kind != "none":
                network, variant = network | dict(kind=kind), variants.Preconditioned
            fid = fids[PREDS.index(loss)]
            settings = dict(sampling=ALWAYS, variant=variant, paper=fid, repeated=loss == "v")
            cells.append(Cell(LOSS[loss], kind, network, dict(loss=loss), **settings))
    return Study("Pre-conditioned x-prediction, x = c_skip z + c_out net (Table 10)", "pre-conditioning", cells)


def resolution(scale):
    smallest = scale["sizes"][0][0]  # all are scored at this size, or the numbers would not compare
    cells = []
    for (size, patch), fid in zip(scale["sizes"], (4.37, 4.64, 4.82)):
        network = dict(size=size, patch=patch)
        flow = dict(noise_scale=size / 64)  # as in the paper, the noise grows with the image
        settings = dict(recipe=scale["recipes"]["default"], sampling=LATER, paper=fid, score_size=smallest)
        cells.append(Cell("x-prediction", f"{size} px, patch {patch}", network, flow, **settings))
    return Study("More pixels, the same number of tokens (Table 5)", "image", cells)


def solver(scale):
    cells, recipe = [], scale["recipes"]["default"]
    for name in ("heun", "euler"):
        for steps in (4, 8, 16, 32, 64):
            sampling = LATER | dict(solver=name, sampling_steps=steps)
            cells.append(Cell(name, f"{steps}", at(scale, "whole"), recipe=recipe, sampling=sampling))
    cells.append(
        Cell("heun", "512", at(scale, "whole"), recipe=recipe, sampling=LATER | dict(sampling_steps=512), n=50)
    )
    return Study("Two solvers", "steps", cells)


def guidance(scale):
    cells = []
    for name, interval in GUIDED.items():
        for weight in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0):
            settings = dict(recipe=scale["recipes"]["default"], sampling=interval | dict(cfg=weight))
            cells.append(Cell(name, f"{weight:g}", at(scale, "whole"), **settings))
    return Study("Classifier-free guidance", "weight w", cells)


def lossbyt(scale):
    cells = [cell for cell in nine(scale).cells if cell.row == "v-loss"]
    return Study("The v-loss of three predictions (Figure 7)", "prediction", cells)


def gate(scale):
    cells = []
    for row, variant in {"network": jit.JiT, "network − g(t) z": variants.Gated}.items():
        for pred in PREDS if variant is jit.JiT else ("eps", "v"):
            network, flow = at(scale, "large", **PLAIN), dict(pred=pred)
            cells.append(Cell(row, PREDICTION[pred], network, flow, sampling=ALWAYS, variant=variant))
    return Study("A way around the network for the noise: one learned number g(t)", "prediction", cells)


FUNCTIONS = (nine, predictions, shift, bottleneck, ladder, precond, resolution, solver, guidance, lossbyt, gate)
STUDIES = {function.__name__: function for function in FUNCTIONS}

# ---- A network to train, and the folder it lies in ---------------------------------------------------------------


@dataclass
class Run:
    """A network to train, once, whatever cells show it."""

    variant: type
    network: dict
    flow: dict
    recipe: dict
    out: Path

    @property
    def shape(self):
        return 3, self.network["size"], self.network["size"]


def scale_of(args):
    """The scale, with image size and patches of --size and --patches."""
    scale = dict(SCALES[args.scale])
    for name, patch in zip(("large", "small"), args.patches or ()):
        scale[name] = (args.size or scale[name][0], patch)
    return scale


def study_of(name, args):
    """A study at the scale. Beside own pictures the paper's FID, of ImageNet, would say nothing."""
    study = STUDIES[name](scale_of(args))
    if args.data != "shapes":
        study.cells = [dataclasses.replace(cell, paper=None) for cell in study.cells]
    return study


def seeds_of(cell, args):
    """The training seeds of a cell."""
    return range(args.seeds if cell.repeated else 1)


def unusual(function, arguments):
    """The arguments in which a call differs from the plainest one."""
    usual = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    return {name: value for name, value in arguments.items() if name not in usual or value != usual[name]}


def run_of(cell, seed, args):
    """The network of a cell. Its folder is named by what was chosen, so that cells which chose the same share it."""
    scale = scale_of(args)
    network = scale["network"] | cell.network
    recipe = scale["recipe"] | dict(flip=args.flip) | cell.recipe | dict(seed=seed)
    chosen = dict(
        variant=cell.variant.__name__,
        network=unusual(jit.JiT, network),
        flow=unusual(jit.Flow, cell.flow),
        recipe={name: value for name, value in recipe.items() if name not in ("seed", "log_every", "save_every")},
        data=common.version_of(args.data),
    )
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:6]
    flow = jit.Flow(**cell.flow)
    name = f"{network['size']}px-{flow.pred}-{flow.loss}-{digest}-seed{seed}"
    return Run(cell.variant, network, cell.flow, recipe, args.runs / args.scale / name)


def sampling_of(cell, args):
    """Arguments of jit.sample_images: the same noise, that of seed 0, for all cells and training seeds."""
    return dict(solver="heun") | scale_of(args)["sampling"] | cell.sampling


def number_of(cell, args):
    """How many samples are drawn."""
    return cell.n or scale_of(args)["n"]


def key_of(cell, args):
    """Under this name the folder of its network keeps the results of a cell."""
    s = sampling_of(cell, args)
    low, high = s["interval"]
    key = f"{s['solver']}{s['sampling_steps']}-cfg{s['cfg']}-t{low}-{high}-n{number_of(cell, args)}"
    return key + (f"-at{cell.score_size}" if cell.score_size else "")


def runs_of(study, args):
    """{run folder: (Run, its cells)}, each network once; one seed after the other."""
    runs = {}
    cells = study_of(study, args).cells
    for seed in range(args.seeds):
        for cell in cells:
            if seed in seeds_of(cell, args):
                run = run_of(cell, seed, args)
                runs.setdefault(str(run.out), (run, []))[1].append(cell)
    return runs


# ---- What is known of a cell -------------------------------------------------------------------------------------


def save_results(out, results):
    text = json.dumps(results, indent=1)
    jit.write_whole(out / "results.json", lambda path: path.write_text(text))


def read_results(out):
    path = out / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def look_up(cell, args):
    """Of each seed that is there: (run folder, what is known of the cell's network, what is known of the cell)."""
    found = []
    for seed in seeds_of(cell, args):
        out = run_of(cell, seed, args).out
        results = read_results(out)
        if key_of(cell, args) in results:
            found.append((out, results, results[key_of(cell, args)]))
    return found


def scores_of(cell, args):
    """{score: its value for each seed}; empty if nothing is known."""
    results = [result["scores"] for _, _, result in look_up(cell, args)]
    return {name: [scores[name] for scores in results if name in scores] for name in (results[0] if results else [])}


def deviation(values):
    """Standard deviation over the seeds."""
    return np.std(values, ddof=1) if len(values) > 1 else 0.0


def in_words(name, values):
    """A score of one seed, or mean and standard deviation over several; two digits are what they are good for."""
    mean, sd, unit = np.mean(values), deviation(values), ""
    if name == "agreement":
        mean, sd, unit = 100 * mean, 100 * sd, "%"
    decimals = max(0, 1 - math.floor(math.log10(mean))) if 0 < mean < 10 and not unit else 0
    spread = f" ± {sd:.{decimals}f}" if len(values) > 1 else ""
    return f"{name} {mean:.{decimals}f}{spread}{unit}"


def caption(cell, args):
    """The scores of a cell in words."""
    scores = [in_words(*score) for score in scores_of(cell, args).items()]
    return ", ".join(scores + [f"{cell.n} samples"] * bool(cell.n)) if scores else "not run"


def distinct(cells, part):
    """The names of the panels, rows or columns of some cells, in order."""
    return list(dict.fromkeys(getattr(cell, part) for cell in cells))


def panels_of(study):
    return [[cell for cell in study.cells if cell.panel == panel] for panel in distinct(study.cells, "panel")]
