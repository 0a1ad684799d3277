"""How often does a sample show the shape it was asked for? A small convnet, trained on renderings, is asked.

    python figures/agreement.py runs/shapes-Ti-16-x            500 samples, EMA 1, --cfg 2

The convnet is trained the first time, in 3 to 7 CPU-minutes, and kept in runs/. It has an eleventh answer, "none",
trained on noise, flat colour, blends, halves of two shapes, shuffled patches and ghosts under noise, so that a broken
picture is not right by chance in one case out of ten.
"""

import sys

import common
import torch
import torch.nn.functional as F
from common import ROOT, jit
from torch import nn
from tqdm import tqdm

NONE = len(jit.SHAPES)
SIZE = 64


def weights_path():
    """Where the classifier is kept; one that has learned other shapes is not found there."""
    return ROOT / "runs" / f"agreement-{common.version_of_shapes()}.pt"


def make_classifier():
    """Four convolutions, each halves the side, and a linear layer: (B, 3, 64, 64) to scores (B, 11)."""
    layers, widths = [], [3, 24, 48, 96, 128]
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, NONE + 1))


def draw(n, widen, labels=None):
    """Renderings (n, 3, 64, 64) and labels (n,), every factor in a range `widen` times as wide as the data set's."""
    low, high = torch.tensor(list(jit.FACTORS.values())).unbind(1)
    factors = (low + high) / 2 + widen * (jit.random_factors(n) - (low + high) / 2)
    labels = torch.randint(NONE, (n,)) if labels is None else labels
    return jit.render_shapes(labels, factors, SIZE), labels


def imperfect(images):
    """What a sample may suffer and still be right: bent outlines, blur, less or more contrast, a little noise."""
    n = len(images)
    bend = 0.08 * torch.rand(n, 1, 1, 1) * F.interpolate(torch.randn(n, 2, 4, 4), size=SIZE, mode="bicubic")
    straight = F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), (n, 3, SIZE, SIZE), align_corners=False)
    images = F.grid_sample(images, straight + bend.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    images = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1)) * (0.7 + 0.5 * torch.rand(n, 1, 1, 1))
    return images + 0.2 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)


def broken(n):
    """What must not count as any shape: eight kinds, one after the other."""
    a, labels = draw(n, 1.3)
    b, _ = draw(n, 1.3, (labels + torch.randint(1, NONE, (n,))) % NONE)  # always another class
    a, b = a.tensor_split(8), b.tensor_split(8)
    noise = torch.randn_like(a[0])
    patches = F.unfold(a[4], 16, stride=16)[:, :, torch.randperm(16)]
    left = torch.arange(SIZE) < SIZE // 2
    kinds = [
        noise * torch.rand(len(noise), 1, 1, 1),
        a[1].mean((2, 3), keepdim=True) + 0.1 * torch.rand(len(a[1]), 1, 1, 1) * torch.randn_like(a[1]),
        torch.lerp(a[2], b[2], 0.4 + 0.2 * torch.rand(len(a[2]), 1, 1, 1)),
        torch.where(left, a[3], b[3]),
        F.fold(patches, SIZE, 16, stride=16),
        0.25 * a[5] + (0.5 + 0.5 * torch.rand(len(a[5]), 1, 1, 1)) * torch.randn_like(a[5]),
        F.interpolate(torch.rand(len(a[6]), 3, 4, 4) * 2 - 1, size=SIZE, mode="bicubic"),
        a[7] + (0.7 + 0.5 * torch.rand(len(a[7]), 1, 1, 1)) * torch.randn_like(a[7]),
    ]
    return torch.cat(kinds)


def train(steps=1200, n=64, seed=0):
    """A classifier, trained on n good pictures a step, and half as many broken ones."""
    torch.manual_seed(seed)
    net = make_classifier()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in tqdm(range(steps), "training the classifier"):
        good, labels = draw(n, 1.5)
        bad = broken(n // 2)
        images = torch.cat([imperfect(good), bad]).clamp(-1, 1)
        labels = torch.cat([labels, torch.full((len(bad),), NONE)])
        loss = F.cross_entropy(net(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def load_classifier():
    """The classifier of an earlier call, else a new one."""
    path = weights_path()
    if not path.exists():
        jit.make_folder(path.parent)
        state = train().state_dict()
        jit.write_whole(path, lambda path: torch.save(state, path))
    net = make_classifier()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


@torch.no_grad()
def classify(images, net):
    """The class of each image (B, 3, S, S) in [-1, 1], 0 to 9, or 10 for none of them; S is averaged to 64."""
    images = F.interpolate(images.float().cpu().clamp(-1, 1), size=SIZE, mode="bilinear", antialias=True)
    return torch.cat([net(chunk).argmax(1) for chunk in images.split(256)])


def report_on_itself(net):
    """What the classifier makes of pictures that it has not seen: renderings, damaged ones, and broken ones."""
    torch.manual_seed(1)
    for name, images, labels in (("renderings", *draw(2000, 1.0)), ("wider factors", *draw(2000, 1.5))):
        print(f"held-out {name}: {(classify(images, net) == labels).float().mean():.3f} right")
    print(f"held-out broken pictures: {(classify(broken(2000), net) == NONE).float().mean():.3f} none")


def report(found, y, names):
    """A line for each class: the share of its samples that are right, and what the others are taken for."""
    for number, name in enumerate(names):
        mine = found[y == number]
        others = {[*names, "none"][i] for i in mine[mine != number].tolist()}
        print(f"{name:10} {(mine == number).float().mean():.2f}  taken for: {', '.join(sorted(others)) or '-'}")


def measure(args):
    """Draw, ask, report."""
    device = jit.choose_device("auto")
    net, flow, config = jit.load_run(args.run, args.weights, device)  # a mistake shows before minutes of training
    jit.check(config["names"] == jit.SHAPES, f"{args.run} is no run on the built-in shapes.")
    classifier = load_classifier()
    report_on_itself(classifier)
    y, _ = jit.pick_classes(args.n, net.classes)
    batches = jit.sample_images(net, y.to(device), flow, net.shape, cfg=args.cfg)
    images = torch.cat([batch.cpu() for batch in tqdm(batches, "sampling", -(-args.n // 50))]).float() / 127.5 - 1
    found = classify(images, classifier)
    report(found, y, jit.SHAPES)
    print(f"agreement of {args.n} samples (cfg {args.cfg:g}, {args.weights}): {(found == y).float().mean():.3f}")


def main(words=None):
    parser = common.Parser(__doc__, prog="agreement.py")
    parser.add_argument("run", help="a run on shapes")
    parser.add_argument("--n", type=int, default=500, help="number of samples (default: 500)")
    parser.add_argument("--cfg", type=float, default=2.0, help="weight of guidance (default: 2)")
    parser.add_argument("--weights", default="ema1", choices=jit.WEIGHTS, help="(default: ema1)")
    args = parser.parse_args(words)
    if args.n < 1:
        parser.error("--n must be 1 at least")
    return common.exit_code("agreement.py", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
