"""How often does a sample show what it was asked for? A small convnet that knows the data is asked.

    python figures/agreement.py runs/shapes-Ti-16-x            500 samples, EMA 1, --cfg 2
    python figures/agreement.py runs/digits-Ti-14-x            of a run on a folder with classes, FOLDER/CLASS/*.png

The convnet is trained the first time, in 3 to 7 CPU-minutes, and kept in runs/: one for the built-in shapes, one for
each folder. It learns from renderings of the shapes; or from the images of the folder, shifted, rotated and scaled a
little, but not mirrored, without every tenth of a class, which are held out to see how good it is. It has one more
answer, "none", trained on noise, flat colour, blends, halves of two classes, shuffled patches and ghosts under noise,
so that a broken picture is not right by chance in one case out of ten.
"""

import functools
import sys

import common
import torch
import torch.nn.functional as F
from common import ROOT, jit
from torch import nn
from tqdm import tqdm

SIZE = 64
LIMIT = 50_000  # of images of a folder, or memory would not hold them; a training draws fewer than three times as many


def weights_path(data):
    """Where the classifier of these data is kept; one that has learned other shapes is not found there."""
    return ROOT / "runs" / f"agreement-{common.version_of(data)}.pt"


def make_classifier(classes):
    """Four convolutions, each halves the side, and a linear layer: (B, 3, 64, 64) to scores (B, classes + 1)."""
    layers, widths = [], [3, 24, 48, 96, 128]
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, classes + 1))


def classes_of(net):
    """The number of classes that a classifier knows; it is also its answer "none"."""
    return net[-1].out_features - 1


def draw_shapes(n, widen, labels=None):
    """Renderings (n, 3, 64, 64) and labels (n,), every factor in a range `widen` times as wide as the data set's."""
    low, high = torch.tensor(list(jit.FACTORS.values())).unbind(1)
    factors = (low + high) / 2 + widen * (jit.random_factors(n) - (low + high) / 2)
    labels = torch.randint(len(jit.SHAPES), (n,)) if labels is None else labels
    return jit.render_shapes(labels, factors, SIZE), labels


@functools.cache
def list_images(data):
    """jit.Images of a folder, none of which is read yet."""
    return jit.find_images(data, (3, SIZE, SIZE))


def names_of(data):
    """The classes of these data, as they are now."""
    return jit.SHAPES if data == "shapes" else list_images(data).names


def can_judge(data):
    """Whether there are classes to be told apart, two or more, each with an image to train on and one to hold out."""
    if data == "shapes":
        return True
    images = list_images(data)
    return len(images.names) > 1 and images.labels.bincount().min().item() > 1


def read_folder(data, size, held_out):
    """Images of a folder, uint8 (n, 3, size, size), and labels (n,): every tenth of a class, or the others."""
    images = list_images(data)
    rank = torch.empty_like(images.labels)  # 0, 1, 2 ... in each class
    for label in range(len(images.names)):
        rank[images.labels == label] = torch.arange((images.labels == label).sum())
    chosen = ((rank % 10 == 1) == held_out) & (rank < LIMIT // len(images.names))
    paths = [images.paths[i] for i in chosen.nonzero()[:, 0]]
    part = jit.Images(images.names, images.labels[chosen], paths, (3, size, size))
    part.load()
    jit.check(len(part.labels.unique()) == len(images.names), f"{data} has a class of which no image can be read.")
    return part.pixels, part.labels


def drawer(pixels, classes):
    """A function like draw_shapes that takes images, uint8 (N, 3, 64, 64) of these classes (N,), and moves them."""
    members = [(classes == label).nonzero()[:, 0] for label in range(classes.max() + 1)]

    def draw(n, widen, labels=None):
        labels = torch.randint(len(members), (n,)) if labels is None else labels
        chosen = torch.stack([members[i][torch.randint(len(members[i]), ())] for i in labels])
        x, y, angle, scale = (widen * torch.tensor([0.06, 0.06, 0.1, 0.07]) * (2 * torch.rand(n, 4) - 1)).unbind(1)
        cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
        move = torch.stack([cos, -sin, x, sin, cos, y], 1).view(n, 2, 3)
        grid = F.affine_grid(move, (n, 3, SIZE, SIZE), align_corners=False)
        images = pixels[chosen].float() / 127.5 - 1
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False), labels

    return draw


def imperfect(images):
    """What a sample may suffer and still be right: bent outlines, blur, less or more contrast, a little noise."""
    n = len(images)
    bend = 0.08 * torch.rand(n, 1, 1, 1) * F.interpolate(torch.randn(n, 2, 4, 4), size=SIZE, mode="bicubic")
    straight = F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), (n, 3, SIZE, SIZE), align_corners=False)
    images = F.grid_sample(images, straight + bend.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    images = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1)) * (0.7 + 0.5 * torch.rand(n, 1, 1, 1))
    return images + 0.2 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)


def broken(n, draw, classes):
    """What must not count as any class: eight kinds, one after the other."""
    a, labels = draw(n, 1.3)
    b, _ = draw(n, 1.3, (labels + torch.randint(1, classes, (n,))) % classes)  # always another class
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


def train(draw, classes, steps=1200, n=64, seed=0):
    """A classifier, trained on n good pictures a step, as draw(n, widen) gives them, and half as many broken ones."""
    torch.manual_seed(seed)
    net = make_classifier(classes)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in tqdm(range(steps), "training the classifier"):
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


def load_classifier(data):
    """The classifier of these data from an earlier call, else a new one."""
    path, classes = weights_path(data), len(names_of(data))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = draw_shapes if data == "shapes" else drawer(*read_folder(data, SIZE, False))
        state = train(draw, classes).state_dict()
        jit.write_whole(path, lambda path: torch.save(state, path))
    state = torch.load(path, weights_only=True)
    known = len(list(state.values())[-1]) - 1  # the last one is the bias of the scores
    jit.check(known == classes, f"{path} knows other classes: delete it.")
    net = make_classifier(classes)
    net.load_state_dict(state)
    return net.eval()


@torch.no_grad()
def classify(images, net):
    """The class of each image (B, 3, S, S) in [-1, 1], or their number for none of them; S is averaged to 64."""
    images = F.interpolate(images.float().cpu().clamp(-1, 1), size=SIZE, mode="bilinear", antialias=True)
    return torch.cat([net(chunk).argmax(1) for chunk in images.split(256)])


@functools.cache
def real_images(data, size):
    """Images to compare samples with, uint8 (n, 3, size, size), and labels (n,); those of a folder are held out."""
    return common.real_images(jit.Shapes(size), 500, 3) if data == "shapes" else read_folder(data, size, True)


def report_on_itself(net, data):
    """What the classifier makes of pictures that it has not seen: good, perhaps damaged ones, and broken ones."""
    torch.manual_seed(1)
    if data == "shapes":
        draw, good = draw_shapes, {"renderings": draw_shapes(2000, 1.0), "wider factors": draw_shapes(2000, 1.5)}
    else:
        pixels, labels = real_images(data, SIZE)
        draw, good = drawer(pixels, labels), {"images": (pixels / 127.5 - 1, labels)}
    for name, (images, labels) in good.items():
        print(f"held-out {name}: {(classify(images, net) == labels).float().mean():.3f} right")
    found = classify(broken(2000, draw, classes_of(net)), net)
    print(f"held-out broken pictures: {(found == classes_of(net)).float().mean():.3f} none")


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
    data, names = config["data"], config["names"]
    jit.check(len(names) > 1, f"{args.run} has no classes: there is nothing that a sample should show.")
    jit.check(can_judge(data), f"{data} has no classes of two images or more.")
    jit.check(names == names_of(data), f"{args.run} has other classes than {data} has now.")
    classifier = load_classifier(data)
    report_on_itself(classifier, data)
    y, _ = jit.pick_classes(args.n, net.classes)
    batches = jit.sample_images(net, y.to(device), flow, net.shape, cfg=args.cfg)
    images = torch.cat([batch.cpu() for batch in tqdm(batches, "sampling", -(-args.n // 50))]).float() / 127.5 - 1
    found = classify(images, classifier)
    report(found, y, names)
    print(f"agreement of {args.n} samples (cfg {args.cfg:g}, {args.weights}): {(found == y).float().mean():.3f}")


def main(words=None):
    parser = common.Parser(__doc__, prog="agreement.py")
    parser.add_argument("run", help="a run on shapes, or on a folder with classes")
    parser.add_argument("--n", type=int, default=500, help="number of samples (default: 500)")
    parser.add_argument("--cfg", type=float, default=2.0, help="weight of guidance (default: 2)")
    parser.add_argument("--weights", default="ema1", choices=jit.WEIGHTS, help="(default: ema1)")
    args = parser.parse_args(words)
    if args.n < 1:
        parser.error("--n must be 1 at least")
    return common.exit_code("agreement.py", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
