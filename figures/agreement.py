"""How often does a sample show the shape it was asked for? A small convnet, trained on renderings, is asked.

    python figures/agreement.py runs/shapes-Ti-16-x            500 samples, EMA 1, --cfg 2

The convnet is trained the first time, in 3 to 7 CPU-minutes, and kept in runs/. It has an eleventh answer, "none",
trained on noise, flat colour, blends, halves of two shapes, shuffled patches and ghosts under noise, so that a broken
picture is not right by chance in one case out of ten.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import jit  # noqa: E402

WEIGHTS = Path("runs/agreement.pt")
NONE = len(jit.SHAPES)
SIZE = 64


def make_classifier():
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
    if not WEIGHTS.exists():
        WEIGHTS.parent.mkdir(exist_ok=True)
        jit.write_whole(WEIGHTS, lambda path: torch.save(train().state_dict(), path))
    net = make_classifier()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run on shapes")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--weights", default="ema1")
    args = parser.parse_args()
    net = load_classifier()
    report_on_itself(net)
    device = jit.choose_device("auto")
    model, s, names = jit.load_run(args.run, args.weights, device)
    y = jit.pick_classes(args.n, "", s, names).to(device)
    sampling = jit.Sampling(n=args.n, cfg=args.cfg)
    batches = tqdm(jit.sample_images(model, y, s, sampling), "sampling", -(-args.n // sampling.batch_size))
    images = torch.cat([batch.cpu() for batch in batches]).float() / 127.5 - 1
    found = classify(images, net)
    for number, name in enumerate(names):
        mine = found[y.cpu() == number]
        others = [names[i] if i < NONE else "none" for i in mine[mine != number].tolist()]
        print(f"{name:10} {(mine == number).float().mean():.2f}  taken for: {', '.join(sorted(set(others))) or '-'}")
    print(f"agreement of {args.n} samples (cfg {args.cfg:g}, {args.weights}): {(found == y.cpu()).float().mean():.3f}")


if __name__ == "__main__":
    main()
