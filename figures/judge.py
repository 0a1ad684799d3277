"""How often does a sample show what it was asked for? A small convnet that knows the data judges.

    python figures/judge.py runs/shapes-Ti-16-x       500 samples, EMA 1, guidance 2
    python figures/judge.py runs/digits-Ti-14-x       of a run on a folder with classes

It is trained the first time, in 3 to 7 CPU-minutes, and kept in runs/: one for the built-in shapes,
one for each content of a folder. It learns from renderings of the shapes; or from the images of the
folder, moved a little but not mirrored, without every tenth of a class, which is held out. It has
one more answer, "none", trained on broken pictures: noise, blends, halves, shuffled patches. For
`recognised` it has to choose between the classes (chance: one in as many as there are).
"""

import functools
import sys

import torch
import torch.nn.functional as F
from common import ROOT, finish, jit, real_images, unselected_samples, version_of
from style import script
from torch import nn
from tqdm import tqdm

SIZE = 64
LIMIT = 50_000  # images of a folder; a training draws fewer than three times as many


def build(classes):
    """Four convolutions that halve the side each, then (B, 3, 64, 64) to (B, classes + 1)."""
    layers, widths = [], [3, 24, 48, 96, 128]
    for before, after in zip(widths, widths[1:]):
        conv = nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, classes + 1))


def draw_shapes(n, widen, labels=None):
    """n renderings (n, 3, 64, 64), every factor in a range `widen` times that of the data."""
    low, high = torch.tensor(list(jit.FACTORS.values())).unbind(1)
    factors = (low + high) / 2 + widen * (jit.random_factors(n) - (low + high) / 2)
    labels = torch.randint(len(jit.SHAPES), (n,)) if labels is None else labels
    return jit.render_shapes(labels, factors, SIZE), labels


def names_of(data):
    """The classes of shapes or a folder; none where they cannot be told apart and tested."""
    if data == "shapes":
        return jit.SHAPES
    images = jit.open_data(data, (3, SIZE, SIZE))
    return images.names if len(images.names) > 1 and min(images.counts) > 1 else []


def read_folder(data, size, held_out):
    """Every tenth image of a class, or the others: uint8 (n, 3, size, size) and labels (n,)."""
    images = jit.open_data(data, (3, size, size))
    rank = torch.empty_like(images.labels)  # 0, 1, 2 ... in each class
    for label in range(len(images.names)):
        rank[images.labels == label] = torch.arange((images.labels == label).sum())
    chosen = ((rank % 10 == 1) == held_out) & (rank < LIMIT // len(images.names))
    paths = [images.paths[i] for i in chosen.nonzero()[:, 0]]
    part = jit.Images(images.names, images.labels[chosen], paths, images.shape)
    return part.batch(range(len(paths)))


@functools.cache
def held_out_images(data, size):
    """Images that the judge has not seen: uint8 (n, 3, size, size) and labels (n,)."""
    if data == "shapes":
        return real_images(jit.Shapes(size), 500, seed=3)
    return read_folder(data, size, held_out=True)


def drawer(pixels, classes):
    """As draw_shapes, of images, uint8 (N, 3, 64, 64), of these classes (N,): moved a little."""
    members = [(classes == label).nonzero()[:, 0] for label in range(classes.max() + 1)]

    def draw(n, widen, labels=None):
        labels = torch.randint(len(members), (n,)) if labels is None else labels
        chosen = [members[i][torch.randint(len(members[i]), ())] for i in labels]
        ranges = widen * torch.tensor([0.06, 0.06, 0.1, 0.07])
        x, y, angle, scale = (ranges * (2 * torch.rand(n, 4) - 1)).unbind(1)
        cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
        move = torch.stack([cos, -sin, x, sin, cos, y], 1).view(n, 2, 3)
        return warp(pixels[torch.stack(chosen)].float() / 127.5 - 1, move), labels

    return draw


def warp(images, move, bend=0):
    """Images seen through an affine map (n, 2, 3), each place shifted by bend (n, S, S, 2)."""
    grid = F.affine_grid(move, images.shape, align_corners=False) + bend
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def imperfect(images):
    """What a sample may suffer and still be right: bent, blurred, of other contrast, noisy."""
    n = len(images)
    amount = torch.rand(4, n, 1, 1, 1)
    bend = F.interpolate(torch.randn(n, 2, 4, 4), size=SIZE, mode="bicubic").permute(0, 2, 3, 1)
    images = warp(images, torch.eye(2, 3).expand(n, -1, -1), 0.08 * amount[0] * bend)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    images = torch.lerp(images, blurred, amount[1]) * (0.7 + 0.5 * amount[2])
    return images + 0.2 * amount[3] * torch.randn_like(images)


def broken(n, draw, classes):
    """What must not count as any class: eight kinds, one after the other."""
    a, labels = draw(n, 1.3)
    b, _ = draw(n, 1.3, (labels + torch.randint(1, classes, (n,))) % classes)  # another class
    amounts = torch.rand(n, 1, 1, 1).tensor_split(8)
    noises = torch.randn_like(a).tensor_split(8)
    a, b = a.tensor_split(8), b.tensor_split(8)
    patches = F.unfold(a[4], 16, stride=16)[:, :, torch.randperm(16)]
    left = torch.arange(SIZE) < SIZE // 2
    colours = torch.rand(len(a[6]), 3, 4, 4) * 2 - 1
    return torch.cat([
        noises[0] * amounts[0],
        a[1].mean((2, 3), keepdim=True) + 0.1 * amounts[1] * noises[1],  # flat colour
        torch.lerp(a[2], b[2], 0.4 + 0.2 * amounts[2]),  # blends
        torch.where(left, a[3], b[3]),  # halves
        F.fold(patches, SIZE, 16, stride=16),  # shuffled patches
        0.25 * a[5] + (0.5 + 0.5 * amounts[5]) * noises[5],  # ghosts under noise
        F.interpolate(colours, size=SIZE, mode="bicubic"),
        a[7] + (0.7 + 0.5 * amounts[7]) * noises[7],
    ])  # fmt: skip


def fit(draw, classes, steps, n=64, seed=0):
    """A judge, trained on n good pictures a step, as draw(n, widen), and n / 2 broken ones."""
    torch.manual_seed(seed)
    net = build(classes)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, max(steps, 2))
    for _ in tqdm(range(steps), "training the judge"):
        good, labels = draw(n, 1.5)
        bad = broken(n // 2, draw, classes)
        images = torch.cat([imperfect(good), bad]).clamp(-1, 1)
        labels = torch.cat([labels, torch.full((len(bad),), classes)])
        loss = F.cross_entropy(net(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def load_judge(data, steps=1200, folder=ROOT / "runs", seed=0):
    """The judge of shapes or a folder, from an earlier call, else a new one; None: no classes."""
    names = names_of(data)
    if not names:
        return None
    path = folder / f"judge-{version_of(data)}-{steps}{f'-{seed}' if seed else ''}.pt"
    if not path.exists():
        draw = draw_shapes if data == "shapes" else drawer(*read_folder(data, SIZE, False))
        state = fit(draw, len(names), steps, seed=seed).state_dict()
        jit.write_whole(path, functools.partial(torch.save, state))
    net = build(len(names))
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def load_judges(data, steps=1200, folder=ROOT / "runs"):
    """{score: judge}: the judge, and one of another seed, to see how much depends on it."""
    names = ("recognised", "second_judge")
    judges = {name: load_judge(data, steps, folder, seed) for seed, name in enumerate(names)}
    return {name: net for name, net in judges.items() if net}


@torch.no_grad()
def scores(images, net):
    """Of uint8 images (B, 1 or 3, S, S), S averaged to 64: (B, classes + 1), the last for none."""
    found = []
    for part in images.split(250):
        part = part.expand(-1, 3, -1, -1).float() / 127.5 - 1
        found.append(net(F.interpolate(part, size=SIZE, mode="bilinear", antialias=True)))
    return torch.cat(found)


def recognised(images, y, net):
    """Share of uint8 images taken for their class y (B,) by a judge without its answer none."""
    return (scores(images, net)[:, :-1].argmax(1) == y).double().mean().item()


def report(run):
    """How good the judge is, a line a class, and the share of all samples."""
    net, flow, config = jit.load_run(run, "ema1", jit.choose_device("auto"))
    data, names = config["data"], config["names"]
    jit.check(names and names == names_of(data), f"{data} has other classes than {run}.")
    judge = load_judge(data)
    print(f"held-out images: recognised {recognised(*held_out_images(data, SIZE), judge):.3f}")
    images, y = unselected_samples(net, flow, 500)
    found = scores(images, judge).argmax(1)
    for label, name in enumerate(names):
        mine = found[y == label]
        others = sorted({[*names, "none"][i] for i in mine[mine != label].tolist()})
        share = (mine == label).double().mean()
        print(f"{name:10} {share:.2f}  taken for: {', '.join(others) or '-'}")
    print(f"recognised {recognised(images, y, judge):.3f}")


def main(words=None):
    parser = script(__doc__)
    parser.add_argument("run", help="a run on shapes, or on a folder with classes")
    args = parser.parse_args(words)
    return finish(lambda: report(args.run))


if __name__ == "__main__":
    sys.exit(main())
