"""handover.png: what is wrong with a picture of v-prediction, and who can see it? With controls.

    python figures/run.py slow --seeds 3          trains the networks, among others
    python figures/handover.py --seeds 3
    python figures/handover.py --draw             the picture again, from the numbers that are there

Samples of x- and v-prediction at ratio 1 from the same noise, drawn in fifteen ways. Measured as in
figures/run.py; `distance` is the root mean square to what x-prediction alone draws (both from -1 to
1): a number without a judge. All numbers stand in results/handover.json.
"""

import json
import math
import os
import sys
from pathlib import Path

import judge
import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, classes_in_turn, finish, jit
from draw import DPI, in_words, mosaic
from matplotlib.figure import Figure
from run import in_parts, network_key, noise_left, write_results
from studies import SAMPLE, SHOWN, STUDIES
from style import COLOURS, INK, find_results, save, script_to_out

STEPS = SAMPLE["sampling_steps"]
GUESSES = (0.6, 0.8, 0.92)
ROWS = {  # what a row is about: {way: (its title, the prediction whose colour it has)}
    "v, cleaned without another network": {
        "v": ("v alone", "v"),
        "mean": ("v, then a 3 × 3 mean", "v"),
        "own .6": ("v's own x_pred at t = .6", "v"),
        "own .8": ("at t = .8", "v"),
        "own .92": ("at t = .92", "v"),
    },
    "an x-network looks, too": {
        "then x .5": ("v until t = .5, then x", "x"),
        "then x .9": ("v until .9, then x", "x"),
        "then x .96": ("v, last step by x", "x"),
        "once": ("finished v, one step of x", "x"),
        "x": ("x alone", "x"),
    },
    "fresh noise on the way; x first": {
        "v churn .1": ("v, t back by a tenth", "v"),
        "v churn .2": ("v, t back by a fifth", "v"),
        "x churn .1": ("x, t back by a tenth", "x"),
        "x churn .2": ("x, t back by a fifth", "x"),
        "then v .5": ("x until t = .5, then v", "v"),
    },
}


def hand_over(first, second, at):
    """The velocity of the first for t < at, then of the second."""
    return lambda z, t: (first if t < at else second)(z, t)


def own_guesses(velocity, z):
    """The x_pred of a way from noise z (B, ...) at the times GUESSES: (B, 3, ...)."""
    seen = {}
    jit.integrate(velocity, z, STEPS, watch=lambda t, z, x_pred: seen.update({round(t, 2): x_pred}))
    return torch.stack([seen[t] for t in GUESSES], dim=1)


def one_step(velocity, picture, t):
    """x_pred of a picture that is given fresh noise as at time t."""
    eps = torch.randn(picture.shape, generator=torch.Generator().manual_seed(3))
    z = t * picture + (1 - t) * eps
    return z + (1 - t) * velocity(z, t)


def churned(velocity, z, share, until=0.9):
    """Heun's way, but before each step it goes back from t to (1 - share) t with fresh noise.

    With t0 = (1 - share) t, z t0 / t has noise of deviation (1 - t) t0 / t, and (1 - t0) is due.
    """
    generator = torch.Generator().manual_seed(5)
    for i in range(STEPS):
        t, t_next = i / STEPS, (i + 1) / STEPS
        if 0 < t <= until:
            back = (1 - share) * t
            missing = (1 - back) ** 2 - ((1 - t) * back / t) ** 2
            eps = torch.randn(z.shape, generator=generator)
            z, t = back / t * z + math.sqrt(max(missing, 0)) * eps, back
        v = velocity(z, t)
        if i < STEPS - 1:
            v = (v + velocity(z + (t_next - t) * v, t_next)) / 2
        z = z + (t_next - t) * v
    return z


@torch.no_grad()
def draw_all(networks, y, noise):
    """{way: samples (n, C, S, S), not clipped}; networks: {pred: (net, flow)}."""
    size = SAMPLE["batch_size"]

    def velocity(pred, labels):
        net, flow = networks[pred]
        return jit.guided_velocity(net, labels, flow, SAMPLE["cfg"], SAMPLE["interval"])

    def way(first, second, at):
        def end_of(labels, z):
            both = velocity(first, labels), velocity(second, labels)
            return jit.integrate(hand_over(*both, at), z, STEPS, SAMPLE["solver"])

        return in_parts(end_of, size, y, noise)

    found = {"x": way("x", "x", 1), "v": way("v", "v", 1), "then v .5": way("x", "v", 0.5)}
    found["mean"] = F.avg_pool2d(found["v"], 3, 1, 1, count_include_pad=False)
    for at in (0.5, 0.9, 0.96):
        found[f"then x {at:g}".replace("0.", ".")] = way("v", "x", at)
    guesses = in_parts(lambda y, z: own_guesses(velocity("v", y), z), size, y, noise)
    found |= dict(zip(("own .6", "own .8", "own .92"), guesses.unbind(1)))
    found["once"] = in_parts(lambda y, x: one_step(velocity("x", y), x, 0.8), size, y, found["v"])
    for pred in ("v", "x"):
        for share in (0.1, 0.2):
            name = f"{pred} churn {share:g}".replace("0.", ".")
            found[name] = in_parts(
                lambda y, z: churned(velocity(pred, y), z, share), size, y, noise)  # fmt: skip
    return found


def load_networks(seed, runs):
    """{pred: (net, flow)}: those of ratio 1, as figures/run.py has trained them."""
    networks = {}
    for cell in STUDIES["slow"].cells():
        if cell.at["recipe"] == "ours":
            folder = runs / network_key(cell, seed, "shapes", False)
            jit.check(folder.exists(), f"no network of seed {seed}: python figures/run.py slow "
                      f"--seeds {seed + 1}")  # fmt: skip
            networks[cell.at["pred"]] = jit.load_run(folder, "ema1", "cpu")[:2]
    return networks


def measure(samples, noise, y, judges):
    """A record a way."""
    records = []
    for way, images in samples.items():
        pixels = jit.to_uint8(images)
        found = dict(way=way, noise_left=noise_left(images, noise))
        for name, net in judges.items():
            found[name] = judge.recognised(pixels, y, net)
        found["distance"] = (images - samples["x"]).square().mean().sqrt().item()
        records.append(found)
    return records


def tiles_of(samples):
    """{way: four of its samples, uint8}."""
    return {way: jit.to_uint8(images[[i % len(images) for i in SHOWN[:4]]]).numpy()
            for way, images in samples.items()}  # fmt: skip


def draw_figure(records, tiles):
    """Each way: four samples of seed 0, and its numbers over the seeds."""
    figure = Figure(figsize=(11, 9.2), layout="constrained")
    title = "v's guess is as bad at t = .6 as at the end; an x-network sees it from the same z"
    figure.suptitle(title)
    for (words, ways), axes in zip(ROWS.items(), figure.subplots(len(ROWS), 5)):
        axes[0].set_ylabel(words, fontsize=10)
        for (way, (name, pred)), ax in zip(ways.items(), axes):
            ax.imshow(mosaic(tiles[way]), interpolation="nearest")
            ax.set_title(name, fontsize=9.5, color=COLOURS[pred])
            here = [record for record in records if record["way"] == way]
            lines = [in_words(score, [record[score] for record in here])
                     for score in ("recognised", "noise_left")]  # fmt: skip
            lines.append(f"distance {np.mean([record['distance'] for record in here]):.2f}")
            ax.set_xlabel("\n".join(lines), color=INK)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    return figure


def measure_all(args, folder):
    """handover.json and .npz."""
    torch.set_num_threads(1)
    y, records = classes_in_turn(args.n, 10), []
    judges = judge.load_judges("shapes", 1200, args.runs)
    for seed in reversed(range(args.seeds)):  # the samples of seed 0 come last, and are shown
        networks = load_networks(seed, args.runs)
        noise = jit.image_noise(networks["x"][0].shape, 0, range(args.n))
        samples = draw_all(networks, y, noise)
        records += [dict(seed=seed) | found for found in measure(samples, noise, y, judges)]
    header = dict(command=f"python figures/handover.py --seeds {args.seeds}", n=args.n)
    write_results(folder / "handover.json", header, dict(enumerate(records)), tiles_of(samples))


def draw(args):
    if not args.draw:
        measure_all(args, args.out / "results")
    path = find_results(args.out, "handover") / "handover.json"
    kept = json.loads(path.read_text())
    figure = draw_figure(kept["records"], dict(np.load(path.with_suffix(".npz"))))
    save(figure, args.out / "handover.png", kept["command"], DPI)


def main(words=None):
    os.environ["OMP_NUM_THREADS"] = "1"
    parser = script_to_out(__doc__)
    parser.add_argument("--seeds", type=jit.positive_int, default=1, help="networks of each kind")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--n", type=jit.positive_int, default=300, help="samples of each way")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "studies", help="of run.py")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
