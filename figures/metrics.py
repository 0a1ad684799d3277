"""What rfd sees: the rfd of damaged pictures; and KID, which is unbiased at any number of images.

    python figures/metrics.py --data PHOTOS     damaged photographs, PHOTOS/CLASS/*.jpg, at 64 px
    python figures/metrics.py                   the same damage done to the built-in shapes

Leaves the table of figures/measuring.md, and images per CPU-second on one thread.
"""

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from common import finish, jit
from PIL import Image, ImageFilter
from rfd import feature_moments, random_features
from style import script

REFERENCE, N = 5000, 1000  # pictures on the two sides of an rfd


def kid(features, others, subsets=100, size=1000):
    """Kernel Inception Distance: MMD^2 with kernel (x.y / d + 1)^3, mean over random subsets.

    features, others: (N, d) tensors; unbiased at any N.
    """
    generator, values = np.random.RandomState(2020), []
    m = min(size, len(features), len(others))
    for _ in range(subsets):
        x, y = (f[generator.choice(len(f), m, replace=False)].double() for f in (features, others))
        pairs = ((x, x), (y, y), (x, y))
        xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in pairs)  # (m, m)
        same = xx.sum() - xx.trace() + yy.sum() - yy.trace()
        values.append((same / (m * (m - 1)) - 2 * xy.mean()).item())
    return float(np.mean(values))


def load_pictures(data):
    """uint8 (n, 3, 64, 64), class numbers (n,), and how many classes there are."""
    if data == "shapes":
        torch.manual_seed(0)
        labels = torch.arange(12000) % len(jit.SHAPES)
        parts = [jit.render_shapes(y, jit.random_factors(len(y)), 64) for y in labels.split(100)]
        return jit.to_uint8(torch.cat(parts)), labels, len(jit.SHAPES)
    found = jit.open_data(data, (3, 64, 64))
    fits = REFERENCE + 2 * N <= len(found.paths) <= jit.MEMORY_LIMIT // (3 * 64 * 64)
    words = "7,000 images are needed, in four classes or more, that fit into memory."
    jit.check(fits and len(found.names) > 3, f"--data {data}: {words}")
    return *found.batch(range(len(found.paths))), len(found.names)


def noise(x, deviation):
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + deviation * eps).round().clamp(0, 255).to(torch.uint8)


def blur(x, radius):
    images, blurring = x.movedim(1, 3).numpy(), ImageFilter.GaussianBlur(radius)
    blurred = [Image.fromarray(image).filter(blurring) for image in images]
    return torch.from_numpy(np.stack(blurred)).movedim(3, 1)


def shuffle(x, p):
    patches = F.unfold(x.float(), p, stride=p)  # (n, 3 p p, patches)
    keys = torch.rand(len(x), 1, patches.shape[2], generator=torch.Generator().manual_seed(0))
    patches = patches.gather(2, keys.argsort(2).expand_as(patches))
    return F.fold(patches, 64, p, stride=p).to(torch.uint8)


def damages(pixels, labels, classes, order):
    """(what was done, the pictures of each case), row by row of the table."""
    x, rest = pixels[order[REFERENCE : REFERENCE + N]], order[REFERENCE:]

    def without(k):
        return pixels[rest[labels[rest] < classes - k][:N]]

    some, alone = (1, classes // 4, classes // 2, 3 * classes // 4), without(classes - 1)
    sizes = [n for n in (250, 500, 1000, 2000, 5000) if n <= len(rest)]
    yield f"none: {', '.join(map(str, sizes))} others", [pixels[rest[:n]] for n in sizes]
    yield "none: 1,000 more", [pixels[rest[N : 2 * N]]]
    noisy = [noise(x, deviation) for deviation in (2, 4, 8, 16, 32)]
    yield "Gaussian noise, sd 2, 4, 8, 16, 32 grey levels", noisy
    yield "Gaussian blur, radius 0.3, 0.5, 1, 2", [blur(x, radius) for radius in (0.3, 0.5, 1, 2)]
    yield f"{', '.join(map(str, some))} of {classes} classes missing", [without(k) for k in some]
    yield f"{classes - 1} of {classes} classes missing (only {len(alone)} images)", [alone]
    yield "halves swapped left/right, top/bottom", [x.roll(32, 3), x.roll(32, 2)]
    halves = torch.where(torch.arange(64) < 32, x, x.roll(1, 0))
    yield "left half of one picture, right half of another", [halves]
    yield "patches of 32, 16, 8 px shuffled", [shuffle(x, p) for p in (32, 16, 8)]
    dark = [(x * share).round().to(torch.uint8) for share in (0.95, 0.9, 0.75, 0.5)]
    yield "darkened to 95, 90, 75, 50%", dark
    grey = x.float().mean(1, keepdim=True).round().to(torch.uint8)
    yield "red and blue exchanged; grey", [x.flip(1), grey]
    few = [x[:k].repeat(N // k, 1, 1, 1) for k in (500, 100, 20, 5)]
    yield "only 500, 100, 20, 5 distinct pictures, repeated", few
    yield "upside down", [x.flip(2)]
    yield "mirrored left/right", [x.flip(3)]
    yield "1,000 of the reference's own pictures (memorised)", [pixels[order[:N]]]


def report(data):
    """A row for each kind of damage, and the speed."""
    torch.set_num_threads(1)
    pixels, labels, classes = load_pictures(data)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(pixels)))
    reference = feature_moments([pixels[order[:REFERENCE]]])
    print("| damage | rfd |\n| --- | --- |")
    for what, cases in damages(pixels, labels, classes, order):
        distances = (jit.frechet_distance(*feature_moments([x]), *reference) for x in cases)
        print(f"| {what} | {', '.join(f'{distance:#.3g}' for distance in distances)} |", flush=True)
    for size, n in ((32, 500), (64, 200), (256, 20)):
        x, seconds = F.interpolate(pixels[:n], size), []
        for _ in range(9):
            start = time.process_time()
            random_features(x)
            seconds.append(time.process_time() - start)
        print(f"{size} px: {n / np.median(seconds):.3g} images per CPU-second")


def main():
    parser = script(__doc__)
    parser.add_argument("--data", default="shapes", help="shapes, or FOLDER/CLASS/*.jpg")
    args = parser.parse_args()
    return finish(lambda: report(args.data))


if __name__ == "__main__":
    sys.exit(main())
