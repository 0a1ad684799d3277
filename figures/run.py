"""Train, sample and measure what of a study is not there yet; stopped, the same command goes on.

    python figures/run.py ratio                          seed 0 of every cell
    python figures/run.py ratio --seeds 3                and two more, where a claim needs them
    python figures/run.py predictions --data digits --size 28 --patches 14 7 --channels 1
                                                         on your pictures, digits/CLASS/*

Networks lie in runs/studies. Leaves OUT/results/NAME.json, a record a cell and seed, and NAME.npz,
ten samples of each cell: figures/draw.py needs no more. OUT is runs/figures unless --out says
otherwise, so that a first try does not write over the committed results.

Of each cell: recognised, the share of samples that the judge takes for their class (judge.py), and
the same by a second judge; noise_left, what is left of the starting noise, also of its parts out of
reach of the network and in reach; loss_over_t, the v-loss of fixed images and noise at TIMES.
"""

import functools
import inspect
import json
import multiprocessing
import os
import platform
import re
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
from common import ROOT, classes_in_turn, finish, jit, real_images, version_of
from studies import FLOW, SAMPLE, SHOWN, STUDIES, TIMES, TRAIN, digest, settings
from style import script_to_out
from tqdm import tqdm

# ---- What is measured ----


def slope(samples, noise):
    """Of samples on noise, for tensors of one shape: 0 no noise is left, 1 all of it."""
    return ((samples * noise).sum() / noise.square().sum()).item()


def centred(noise):
    """Noise (n, ...) without its mean over images, which all samples share; in fp64."""
    return (noise - noise.mean(0)).double()


def noise_left(samples, noise):
    """Slope of samples on the noise that each started from: 0 none is left, 1 all of it.

    samples, noise: (n, C, S, S), in the units of z, not clipped. A clean image has about 0.03, as
    what it shows depends on the noise.
    """
    return slope(samples.double(), centred(noise))


def patches_of(images, patch):
    """Images (n, C, S, S) to patches (n * tokens, numbers), in the order channel, row, column."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)


def reach_of(net):
    """Directions of a patch, as orthonormal columns: (in reach of the network, out of reach).

    In reach is what the last layer can put out; behind a bottleneck narrower than that, what the
    first layer lets in.
    """
    channels, patch, bottleneck = net.shape[0], net.patch, net.arguments["bottleneck"]
    weight = net.final_layer.linear.weight  # (p * p * C, D), in the order row, column, channel
    weight = weight.unflatten(0, (patch, patch, channels)).permute(2, 0, 1, 3).flatten(0, 2)
    if 0 < bottleneck < weight.shape[1]:
        weight = net.x_embedder.proj1.weight.flatten(1).T  # (C * p * p, r)
    directions, _, _ = torch.linalg.svd(weight.detach().double())  # all: (numbers, numbers)
    return directions[:, : weight.shape[1]], directions[:, weight.shape[1] :]


def left_by_reach(samples, noise, net):
    """noise_left in the directions out of reach and in those in reach; {} if all are in reach."""
    inside, outside = reach_of(net)
    if outside.shape[1] == 0:
        return {}
    samples = patches_of(samples.double(), net.patch)
    noise = patches_of(centred(noise), net.patch)
    return dict(left_out=slope(samples @ outside, noise @ outside),
                left_in=slope(samples @ inside, noise @ inside))  # fmt: skip


def left_by_length(samples, noise, patch):
    """[(length, noise left)] of patches in ten equal parts, from the shortest noise to the longest.

    length: of a patch's noise, over the square root of its numbers.
    """
    samples, noise = patches_of(samples, patch), patches_of(noise, patch)
    found = []
    for rows in noise.norm(dim=1).argsort().chunk(10):
        length = noise[rows].square().mean().sqrt().item()
        found.append((round(length, 4), round(slope(samples[rows], noise[rows]), 4)))
    return found


def in_parts(work, size, *tensors):
    """work(a part of each of the tensors) in batches of this size, as one tensor."""
    return torch.cat([work(*parts) for parts in zip(*(each.split(size) for each in tensors))])


@torch.no_grad()
def draw_samples(net, flow, y, solver, cfg, sampling_steps, batch_size, interval):
    """As jit.sample_images at seed 0, but floats, not clipped; and the noise they started from.

    Returns two tensors (n, C, S, S).
    """
    noise = flow.noise_scale * jit.image_noise(net.shape, 0, range(len(y)))

    def end_of(labels, z):
        velocity = jit.guided_velocity(net, labels, flow, cfg, interval)
        return jit.integrate(velocity, z, sampling_steps, solver)

    return in_parts(end_of, batch_size, y, noise), noise


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


# ---- What is kept of it ----


def shape_of(cell):
    return cell.net["channels"], cell.net["size"], cell.net["size"]


def network_key(cell, seed, data, flip):
    """Changes with whatever changes the weights: the folder of the network."""
    return digest(settings(cell)[0], seed, flip, version_of(data))


def record_key(cell, seed, data, flip):
    """Changes with whatever changes a number of a record."""
    return digest(*settings(cell), seed, flip, version_of(data))


def measure_real(cell, data, judges):
    """How many real images the judge recognises; and three sets of ten others, of the classes that
    the tiles of a cell show."""
    pixels, y = real_images(jit.open_data(data, shape_of(cell)), 1000, seed=2511)
    y = y if y.max() >= 0 else torch.arange(len(y)) % 10  # without classes: any
    sets = [(y == label % (y.max() + 1)).nonzero()[:, 0].tolist() or [0] for label in SHOWN]
    tiles = pixels[[rows[k % len(rows)] for k in range(3) for rows in sets]].numpy()
    found = dict(size=cell.net["size"])
    for score, net in judges.items():
        found[score] = judge.recognised(*judge.held_out_images(data, cell.net["size"]), net)
    return found, tiles


def measure_cell(cell, net, flow, judges):
    """The numbers of a cell, and the tiles that its picture shows, uint8 (10, C, S, S)."""
    y, how = classes_in_turn(cell.n, net.classes), SAMPLE | cell.sample
    samples, noise = draw_samples(net, flow, y, **how)
    pixels = jit.to_uint8(samples)
    found = dict(noise_left=noise_left(samples, noise)) | left_by_reach(samples, noise, net)
    found["left_by_length"] = left_by_length(samples, noise, net.patch)
    found |= {score: judge.recognised(pixels, y, each) for score, each in judges.items()}
    tiles = pixels[[i % cell.n for i in SHOWN]]
    if "solver" in cell.at:
        exact, _ = draw_samples(net, flow, y[:10], **how | dict(solver="heun", sampling_steps=512))
        error = (pixels[:10].float() - jit.to_uint8(exact).float()) / 127.5
        found["distance"] = error.square().mean().sqrt().item()
    return found, tiles.numpy()


def versions():
    """What it ran on, and with."""
    path = Path("/proc/cpuinfo")  # of Linux
    text = path.read_text() if path.exists() else f"model name: {platform.processor()}\n"
    hardware = re.search("model name.*?: (.*)", text)[1]
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return dict(hardware=f"{hardware}, one core", torch=torch.__version__, commit=commit)


def work(cells, seed, data, flip, runs, judges):
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
    checkpoint = out / jit.CHECKPOINT
    if not checkpoint.exists() or jit.load_checkpoint(checkpoint)["step"] < recipe["steps"]:
        with open(f"{out}.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
            jit.train(net, jit.Flow(**FLOW | cell.flow), images, out, **recipe)
    net, flow, _ = jit.load_run(out, "ema1", "cpu", variant)
    losses = loss_over_t(net, flow, images, cell.texture, cell.strength)
    known, found = versions() | dict(loss_over_t=losses), []
    if hasattr(net, "g"):
        known["gate"] = net.g(torch.tensor(TIMES)).tolist()
    for cell in cells:
        numbers, tiles = measure_cell(cell, net, flow, judges)
        record = dict(key=record_key(cell, seed, data, flip), at=cell.at, seed=seed,
                      settings=digest(*settings(cell)))  # fmt: skip
        found.append((record | numbers | known, tiles))
    found[0][0]["seconds"] = round(time.time() - start)  # of this call: all cells of a network
    return found


def work_or_end(*job):
    """After Ctrl-C the pool would go on with the next network: the process ends instead."""
    try:
        return work(*job)
    except KeyboardInterrupt:
        os._exit(130)


# ---- Files ----


def read_results(path):
    """What NAME.json and NAME.npz hold: (header, records by key, tiles by key)."""
    if not path.exists():
        return {}, {}, {}
    header, tiles = json.loads(path.read_text()), path.with_suffix(".npz")
    records = {record["key"]: record for record in header.pop("records")}
    return header, records, dict(np.load(tiles)) if tiles.exists() else {}


def write_results(path, header, records, tiles):
    """NAME.npz, and NAME.json with a record a line."""
    lines = [f'"{key}": {json.dumps(value)}' for key, value in header.items()]
    rows = [json.dumps(record, ensure_ascii=False) for record in records.values()]
    text = "{" + ",\n".join([*lines, '"records": [\n' + ",\n".join(rows) + "\n]"]) + "}\n"
    jit.write_whole(path.with_suffix(".npz"), functools.partial(np.savez_compressed, **tiles))
    jit.write_whole(path, lambda part: part.write_text(text))


def keep(path, found):
    """Add some (record, tiles) to the files, instead of others of the same cell and seed.

    Of seed 0, which is drawn, the tiles are kept.
    """
    header, records, tiles = read_results(path)
    for record, pictures in found:
        place = record["at"], record["seed"]
        for key in [key for key, old in records.items() if (old["at"], old["seed"]) == place]:
            del records[key]
            tiles.pop(key, None)
        records[record["key"]] = record
        if record["seed"] == 0:
            tiles[record["key"]] = pictures
    write_results(path, header, records, tiles)


# ---- The command ----


def tiny(cell):
    """A cell that takes a second: to see that everything works."""
    net = cell.net | dict(depth=2, width=32, heads=2)
    train = cell.train | dict(steps=2, batch_size=2)
    steps = (SAMPLE | cell.sample)["sampling_steps"].bit_length()  # 64 remain the finest
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


def cells_of(args):
    """The cells of the study, and its own arguments: the sizes of pictures of your own."""
    study = STUDIES[args.study]
    own = dict(size=args.size, patches=args.patches, channels=args.channels)
    own = {name: value for name, value in own.items() if value}
    takes = inspect.signature(study.cells).parameters
    jit.check(own.keys() <= takes.keys(), f"{args.study} has its own sizes: leave out --size.")
    cells = [tiny(cell) if args.tiny else cell for cell in study.cells(**own)]
    divides = all(cell.net["size"] % cell.net["patch"] == 0 for cell in cells)
    jit.check(divides, "--patches must divide --size.")
    return cells, own


def command_of(args, own):
    """The command of a study, without the places on this machine."""
    words = ["python", "figures/run.py", args.study]
    words += [] if args.data == "shapes" else ["--data", Path(args.data).name]
    for name, value in own.items():
        words += [f"--{name}", *map(str, np.atleast_1d(value))]
    words += ["--seeds", str(args.seeds)] if args.seeds > 1 else []
    return shlex.join(words + ["--flip"] * args.flip + ["--tiny"] * args.tiny)


def run(args):
    """What is missing, args.jobs networks at a time; records are kept as soon as they are there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that train
    cells, own = cells_of(args)
    data, flip, folder = args.data, args.flip, args.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    name = args.study if data == "shapes" else f"{args.study}_{Path(data).name}"
    path = folder / f"{name}.json"
    header, records, tiles = read_results(path)
    header |= dict(study=args.study, command=command_of(args, own), data=Path(data).name,
                   arguments=own, tiny=args.tiny)  # fmt: skip
    judges = judge.load_judges(data, 1 if args.tiny else 1200, args.runs)
    version = digest(version_of(data), shape_of(cells[0]))
    if header.get("version") != version:
        header["real"], tiles["real"] = measure_real(cells[0], data, judges)
        header["version"] = version
    write_results(path, header, records, tiles)
    jobs = missing(cells, args.seeds, records, data, flip)
    train_all(name, jobs, args.jobs, (data, flip, args.runs, judges),
              lambda found: keep(path, found))
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
    add("--seeds", default=1, type=jit.positive_int, help="trainings of the cells that repeat")
    add("--jobs", default=os.cpu_count(), type=jit.positive_int, help="networks at a time")
    add("--data", default="shapes", help="or a folder of images")
    add("--size", type=jit.positive_int, help="side of the images")
    add("--patches", type=jit.positive_int, nargs="+", help="sides of patches, large ones first")
    add("--channels", type=int, choices=(1, 3), help="1: grey images")
    add("--flip", action="store_true", help="mirror half of the images")
    add("--tiny", action="store_true", help="two steps of small networks, to try")
    add("--runs", type=Path, default=ROOT / "runs" / "studies", help="folder of the networks")
    args = parser.parse_args(words)
    return finish(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
