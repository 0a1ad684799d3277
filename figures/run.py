"""Train, sample and measure what of a study is not there yet; stopped, the same command goes on.

    python figures/run.py ratio                          seed 0 of every cell
    python figures/run.py ratio --seeds 3                and two more, where a claim needs them
    python figures/run.py predictions --data digits --size 28 --patches 14 7 --channels 1
                                                         the same on your pictures, digits/CLASS/*

Networks lie in runs/studies. Leaves OUT/NAME.json, a record a cell and seed, and OUT/NAME.npz, six
samples of each: figures/draw.py needs no more. OUT is runs/figures unless --out says otherwise, so
that a first try does not write over the committed results.

Of each cell: recognised, the share of samples that the judge takes for their class (judge.py);
noise_left, what is left of the starting noise; grain, the fine texture; rfd (rfd.py); loss_over_t,
the v-loss of fixed images and noise at studies.TIMES. Beside them the same of real images.
"""

import functools
import inspect
import json
import math
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import judge
import numpy as np
import torch
import torch.nn.functional as F
import variants
from common import ROOT, finish, jit, real_images, version_of
from loss import mean_by_t, read_log
from rfd import feature_moments
from studies import FLOW, SAMPLE, SHOWN, STUDIES, TIMES, TRAIN, digest, settings
from style import script_to_out
from tqdm import tqdm

# ---- What is measured ----


def noise_left(samples, noise):
    """Slope of samples on the noise that each started from: 0 none is left, 1 all of it.

    samples, noise: (n, C, S, S), in the units of z, not clipped. A clean image has about 0.03, as
    what it shows depends on the noise.
    """
    noise = (noise - noise.mean(0)).double()  # the mean over images: what all samples share
    return ((samples.double() * noise).sum() / noise.square().sum()).item()


def left_by_length(samples, noise, patch):
    """[(length, noise left)] of patches in ten equal parts, from the shortest noise to the longest.

    length: of a patch's noise, over the square root of its numbers.
    """
    samples, noise = (F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)
                      for images in (samples, noise))  # fmt: skip
    found = []
    for rows in noise.norm(dim=1).argsort().chunk(10):
        power = noise[rows].square()
        left = (samples[rows] * noise[rows]).sum() / power.sum()
        found.append((round(power.mean().sqrt().item(), 4), round(left.item(), 4)))
    return found


def grain(images):
    """Standard deviation of images (n, C, S, S) in [-1, 1] minus their 3 x 3 means."""
    return (images - F.avg_pool2d(images, 3, 1, 1))[..., 1:-1, 1:-1].double().std().item()


def clipped_velocity(velocity, start, limit):
    """The same way, begun at t = start instead of 0, with x_pred kept within -limit and limit."""

    def changed(z, t):
        t = start + (1 - start) * t
        x = z + (1 - t) * velocity(z, t)
        return (1 - start) * (x.clamp(-limit, limit) - z) / (1 - t)

    return changed


def follow(velocity_of, noise, y, solver, sampling_steps, batch_size):
    """Where the way from noise (n, C, S, S) ends; velocity_of: from classes to a velocity."""
    samples = []
    for labels, z in zip(y.split(batch_size), noise.split(batch_size)):
        for _, z, _ in jit.integrate(velocity_of(labels), z, sampling_steps, solver):
            pass  # only the last z is kept
        samples.append(z)
    return torch.cat(samples)


@torch.no_grad()
def draw_samples(net, flow, y, solver, cfg, sampling_steps, batch_size, interval, start=0.0,
                 limit=math.inf):  # fmt: skip
    """As jit.sample_images at seed 0, but floats, not clipped; and the noise they started from.

    start, limit: of clipped_velocity. Returns two tensors (n, C, S, S).
    """
    cfg = jit.guidance_weight(cfg, net, flow)
    noise = flow.noise_scale * jit.image_noise(net.shape, 0, range(len(y)))

    def velocity_of(labels):
        velocity = jit.guided_velocity(net, labels, flow, cfg, interval)
        if start > 0 or limit < math.inf:
            velocity = clipped_velocity(velocity, start, limit)
        return velocity

    return follow(velocity_of, noise, y, solver, sampling_steps, batch_size), noise


@torch.no_grad()
def loss_over_t(net, flow, data, texture=0, strength=0.0):
    """v-loss at TIMES, of 100 fixed images and noise. New shapes; of a folder, trained ones."""
    pixels, y = real_images(data, 100, seed=7)
    x = pixels.float() / 127.5 - 1
    x = variants.add_texture(x, net.patch, texture, strength) if texture else x
    eps = flow.noise_scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    losses = []
    for t in TIMES:
        t = torch.full((len(x),), t)
        output = net(jit.interpolate(x, eps, t), t, y)
        loss = jit.flow_loss(output, x, eps, t, flow.pred, "v", flow.t_clip)
        losses.append(loss.mean().item())
    return losses


def shrink(pixels, side):
    """uint8 images averaged down to this side; None: as they are."""
    side = side or pixels.shape[-1]
    return F.avg_pool2d(pixels.float(), pixels.shape[-1] // side).round().to(torch.uint8)


# ---- What is kept of it ----


def shape_of(cell):
    return cell.net["channels"], cell.net["size"], cell.net["size"]


def real_key(cell, data):
    return digest("real", shape_of(cell), cell.net["patch"], cell.score_size, cell.n,
                  version_of(data))  # fmt: skip


def network_key(cell, seed, data, flip):
    """Changes with whatever changes the weights: the folder of the network."""
    return digest(settings(cell)[0], seed, flip, version_of(data))


def record_key(cell, seed, data, flip):
    """Changes with whatever changes a number of a record."""
    return digest(*settings(cell), seed, flip, version_of(data))


def real_tiles(pixels, y):
    """Three sets of six real images, of the classes that the tiles of a cell show."""
    y = y if y.max() >= 0 else torch.arange(len(y)) % 10  # without classes: any
    sets = [(y == label % (y.max() + 1)).nonzero()[:, 0].tolist() or [0] for label in SHOWN]
    return pixels[[rows[k % len(rows)] for k in range(3) for rows in sets]].numpy()


def measure_real(cell, data, judge_net, runs):
    """A record of real images like those of a cell, its tiles, and the moments of their features.

    Moments: of ten times n images; the numbers: of n others (of a folder: of what it has).
    """
    pixels, y = real_images(jit.open_data(data, shape_of(cell)), 11 * cell.n, seed=2511)
    n = min(cell.n, len(pixels) // 2)
    jit.check(n > 1, f"{data} needs four images or more.")
    real = feature_moments(shrink(pixels[n:], cell.score_size).split(100))
    others = feature_moments(shrink(pixels[:n], cell.score_size).split(100))
    key, size, patch = real_key(cell, data), cell.net["size"], cell.net["patch"]
    record = dict(key=key, size=size, patch=patch, grain=grain(pixels[:n] / 127.5 - 1),
                  rfd=jit.frechet_distance(*others, *real))  # fmt: skip
    if judge_net:
        held_out = judge.held_out_images(data, size)
        record["recognised"] = judge.recognised(*held_out, judge_net)
    save = functools.partial(np.savez, mean=real[0], covariance=real[1])
    jit.write_whole(runs / f"real-{key}.npz", save)
    return record, real_tiles(pixels, y)


def measure_cell(cell, net, flow, data, judge_net, runs):
    """The numbers of a cell, and the tiles that its picture shows, uint8 (6, C, S, S)."""
    y, _ = jit.pick_classes(cell.n, net.classes)
    samples, noise = draw_samples(net, flow, y, **SAMPLE | cell.sample)
    pixels = jit.to_uint8(samples)
    with np.load(runs / f"real-{real_key(cell, data)}.npz") as real:
        moments = feature_moments(shrink(pixels, cell.score_size).split(100))
        distance = jit.frechet_distance(*moments, real["mean"], real["covariance"])
    found = dict(noise_left=noise_left(samples, noise), grain=grain(samples), rfd=distance,
                 left_by_length=left_by_length(samples, noise, net.patch))  # fmt: skip
    if judge_net:
        found["recognised"] = judge.recognised(pixels, y, judge_net)
    return found, pixels[[i % cell.n for i in SHOWN]].numpy()


def facts(net, flow, data, out, cell):
    """What is known of a trained network, whatever is drawn from it."""
    log = read_log(out)
    late = mean_by_t(log[-len(log) * 3 // 10 :]).round(5).tolist()  # None where no t fell
    losses = loss_over_t(net, flow, data, cell.texture, cell.strength)
    known = dict(loss_over_t=losses, late_loss_by_t=late)
    every = math.ceil(len(log) / 100)
    known["log"] = [(line["step"], round(line["loss"], 5)) for line in log[::every]]
    known["images_per_s"] = round(np.median([line["images_per_s"] for line in log]), 1)
    if hasattr(net, "g"):
        known["gate"] = net.g(torch.tensor(TIMES)).tolist()
    return known


def versions():
    """What it ran on, and with."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    hardware = f"{[*models, platform.machine()][0]}, one core"
    return dict(hardware=hardware, torch=torch.__version__, commit=commit)


def work(cells, seed, data, flip, runs, judge_net):
    """Train a network, or go on with it; sample and measure its cells. -> [(record, tiles)]

    It runs in a process of its own, on one thread.
    """
    torch.set_num_threads(1)
    cell, start = cells[0], time.time()
    out = runs / network_key(cell, seed, data, flip)
    images = jit.open_data(data, shape_of(cell))
    variant = getattr(variants, cell.variant, jit.JiT)
    torch.manual_seed(seed)
    net = variant(**cell.net, classes=len(images.names))
    recipe = TRAIN | cell.train | dict(flip=flip, seed=seed, sample_every=10**9)
    if cell.texture:
        texture = (cell.net["patch"], cell.texture, cell.strength)
        recipe["loss_function"] = variants.textured_loss(*texture)
    with open(f"{out}.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
        jit.train(net, jit.Flow(**FLOW | cell.flow), images, out, **recipe)
    net, flow, _ = jit.load_run(out, "ema1", "cpu", variant)
    known, found = facts(net, flow, images, out, cell) | versions(), []
    for cell in cells:
        numbers, tiles = measure_cell(cell, net, flow, data, judge_net, runs)
        record = dict(key=record_key(cell, seed, data, flip), at=cell.at, seed=seed,
                      settings=digest(*settings(cell)), real=real_key(cell, data))  # fmt: skip
        found.append((record | numbers | known, tiles))
    found[0][0]["seconds"] = round(time.time() - start)  # of this call: all cells of a network
    return found


def work_or_end(*job):
    """After Ctrl-C the pool would go on with the next network: the process ends instead."""
    try:
        return work(*job)
    except KeyboardInterrupt:
        os._exit(130)


# ---- The command ----


def read_results(path):
    """What NAME.json and NAME.npz hold: (header, real records, records, tiles), the last by key."""
    if not path.exists():
        return {}, {}, {}, {}
    kept = json.loads(path.read_text())
    real, records = ({r["key"]: r for r in kept.pop(part)} for part in ("real", "records"))
    with np.load(path.with_suffix(".npz")) as tiles:
        return kept, real, records, dict(tiles)


def place_of(record):
    return [record.get(part) for part in ("at", "seed", "size", "patch")]


def keep(path, header, real, records):
    """Add some (record, tiles) to NAME.json and NAME.npz, instead of others at the same place."""
    _, old_real, old_records, tiles = read_results(path)
    for old, new in ((old_real, real), (old_records, records)):
        for record, pictures in new:
            for key in [key for key in old if place_of(old[key]) == place_of(record)]:
                del old[key], tiles[key]
            old[record["key"]], tiles[record["key"]] = record, pictures
    lines = [f'"{key}": {json.dumps(value)}' for key, value in header.items()]
    for name, part in (("real", old_real), ("records", old_records)):
        part = ",\n".join(json.dumps(record, ensure_ascii=False) for record in part.values())
        lines.append(f'"{name}": [\n{part}\n]')
    text = "{" + ",\n".join(lines) + "}\n"
    jit.write_whole(path.with_suffix(".npz"), functools.partial(np.savez_compressed, **tiles))
    jit.write_whole(path, lambda part: part.write_text(text))


def tiny(cell):
    """A cell that takes a second: to see that everything works."""
    net = cell.net | dict(depth=2, width=32, heads=2)
    train = cell.train | dict(steps=2, batch_size=2)
    steps = (SAMPLE | cell.sample)["sampling_steps"].bit_length()  # 512 remain the finest
    sample = cell.sample | dict(sampling_steps=steps)
    return replace(cell, net=net, train=train, n=10, sample=sample)


def missing(cells, seeds, known, data, flip):
    """[(cells without a record, of one network; seed)]: seed by seed, the longest first."""
    jobs = {}
    for seed in range(seeds):
        for cell in cells if seed == 0 else [cell for cell in cells if cell.repeat]:
            if record_key(cell, seed, data, flip) not in known:
                key = network_key(cell, seed, data, flip)
                jobs.setdefault(key, ([], seed))[0].append(cell)
    return sorted(jobs.values(), key=lambda job: (job[1], -(TRAIN | job[0][0].train)["steps"]))


def run(name, args):
    """What is missing, args.jobs networks at a time; records are kept as soon as they are there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that train
    for folder in (args.out, args.runs):
        jit.check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
    study = STUDIES[name]
    own = dict(size=args.size, patches=args.patches, channels=args.channels)
    own = {size: value for size, value in own.items() if value}
    takes = inspect.signature(study.cells).parameters
    jit.check(own.keys() <= takes.keys(), f"{name} has its own sizes: leave out --size.")
    cells = [tiny(cell) if args.tiny else cell for cell in study.cells(**own)]
    divides = all(cell.net["size"] % cell.net["patch"] == 0 for cell in cells)
    jit.check(divides, "--patches must divide --size.")
    data, flip = args.data, args.flip
    name += f"_{Path(data).name}" if data != "shapes" else ""
    path, runs = args.out / f"{name}.json", args.runs
    header = dict(study=args.study, command=args.command, data=data, arguments=own, tiny=args.tiny)
    judge_net = judge.load_judge(data, 1 if args.tiny else 1200, runs)
    _, real, records, _ = read_results(path)
    for cell in {real_key(cell, data): cell for cell in cells}.values():
        moments = runs / f"real-{real_key(cell, data)}.npz"
        if real_key(cell, data) not in real or not moments.exists():
            keep(path, header, [measure_real(cell, data, judge_net, runs)], [])
    jobs = missing(cells, args.seeds, records, data, flip)
    train_all(name, jobs, args.jobs, (data, flip, runs, judge_net),
              lambda found: keep(path, header, [], found))
    print(f"{path}: python figures/draw.py {name} --out {args.out}")


def train_all(name, jobs, processes, shared, keep_found):
    """Each job, (cells, seed), in a process; a failure is told, and does not end the others."""
    pool, failed = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")), []
    try:
        started = [pool.submit(work_or_end, *job, *shared) for job in jobs]
        for done in tqdm(as_completed(started), name, len(started), unit="network"):
            if done.exception():
                failed.append(done.exception())
                tqdm.write(f"a network failed: {failed[-1]!r}", file=sys.stderr)
            else:
                keep_found(done.result())
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C: what waits is not begun
    if failed:
        raise failed[0]


def main(words=None):
    parser = script_to_out(__doc__)
    add = parser.add_argument
    add("study", choices=STUDIES)
    add("--seeds", type=jit.positive_int, default=1, help="trainings of the cells that repeat")
    add("--jobs", type=jit.positive_int, default=os.cpu_count(), help="networks at a time")
    add("--data", default="shapes", help="or a folder of images")
    add("--size", type=jit.positive_int, help="side of the images")
    add("--patches", type=jit.positive_int, nargs=2, help="side of large and of small patches")
    add("--channels", type=int, choices=(1, 3), help="1: grey images")
    add("--flip", action="store_true", help="mirror half of the images")
    add("--tiny", action="store_true", help="two steps of small networks, to try")
    add("--runs", type=Path, default=ROOT / "runs" / "studies", help="folder of the networks")
    args = parser.parse_args(words)
    args.command = shlex.join(["python", "figures/run.py", *(words or sys.argv[1:])])
    return finish(lambda: run(args.study, args))


if __name__ == "__main__":
    sys.exit(main())
