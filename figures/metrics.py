"""What rfd sees, what a Frechet distance costs, and how exact FID is: the measured numbers of README's "Measuring".

    python figures/metrics.py rfd --data PHOTOS     rfd of damaged photographs, PHOTOS/CLASS/*.jpg, at 64 px
    python figures/metrics.py rfd                   the same damage done to the built-in shapes
    python figures/metrics.py frechet               three ways to compute a Frechet distance: time and error
    python figures/metrics.py inception             beside torch-fidelity: pip install torch-fidelity torchvision

Here is also KID, which is unbiased at any number of images: kid(features, others).
One thread, timed in CPU-seconds, which other programs disturb least. What is compared takes turns; printed are medians.
`inception` downloads no weights: both networks get the random ones of the tests.
"""

import functools
import hashlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # numpy and torch read it while they are imported

import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from common import ROOT, Parser, exit_code, jit  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402
from rfd import random_features, statistics  # noqa: E402

REFERENCE, N = 5000, 1000  # pictures on the two sides of an rfd


def kid(features, others, subsets=100, size=1000):
    """Kernel Inception Distance: MMD^2 with kernel (x.y / d + 1)^3, mean over random subsets. Unbiased at any N."""
    generator, values = np.random.RandomState(2020), []
    m = min(size, len(features), len(others))
    for _ in range(subsets):
        x, y = (f[generator.choice(len(f), m, replace=False)].double() for f in (features, others))
        xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))  # (m, m)
        same = xx.sum() - xx.trace() + yy.sum() - yy.trace()
        values.append((same / (m * (m - 1)) - 2 * xy.mean()).item())
    return float(np.mean(values))


def take_turns(repeats, *works):
    """CPU-seconds (repeats, works) of functions that are called in turn."""
    clock = [[(time.process_time(), work(), time.process_time()) for work in works] for _ in range(repeats)]
    return np.array([[end - start for start, _, end in turn] for turn in clock])


def row(*cells):
    """Print a line of a table."""
    print("|", " | ".join(cells), "|", flush=True)


def load_pictures(data):
    """uint8 (n, 3, 64, 64), class numbers (n,), and how many classes there are."""
    if data == "shapes":
        torch.manual_seed(0)
        labels = torch.arange(12000) % len(jit.SHAPES)
        parts = [jit.to_uint8(jit.render_shapes(y, jit.random_factors(len(y)), 64)) for y in labels.split(100)]
        return torch.cat(parts), labels, len(jit.SHAPES)
    found = jit.open_data(data, (3, 64, 64))
    enough = found.pixels is not None and len(found.pixels) >= REFERENCE + 2 * N and len(found.names) > 3
    jit.check(enough, f"--data {data}: 7,000 images are needed, in four classes or more, that fit into memory.")
    return found.pixels, found.labels, len(found.names)


def noise(x, deviation):
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + deviation * eps).round().clamp(0, 255).to(torch.uint8)


def blur(x, radius):
    blurred = [Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)) for image in x.movedim(1, 3).numpy()]
    return torch.from_numpy(np.stack(blurred)).movedim(3, 1)


def shuffle(x, p):
    patches = F.unfold(x.float(), p, stride=p)  # (n, 3 p p, patches)
    keys = torch.rand(len(x), 1, patches.shape[2], generator=torch.Generator().manual_seed(0))
    return F.fold(patches.gather(2, keys.argsort(2).expand_as(patches)), 64, p, stride=p).to(torch.uint8)


def damages(pixels, labels, classes, order):
    """(what was done, the pictures of each case), row by row of the table."""
    x, rest = pixels[order[REFERENCE : REFERENCE + N]], order[REFERENCE:]

    def without(k):
        return pixels[rest[labels[rest] < classes - k][:N]]

    some, alone = (1, classes // 4, classes // 2, 3 * classes // 4), without(classes - 1)
    sizes = [n for n in (250, 500, 1000, 2000, 5000) if n <= len(rest)]
    yield f"none: {', '.join(map(str, sizes))} others", [pixels[rest[:n]] for n in sizes]
    yield "none: 1,000 more", [pixels[rest[N : 2 * N]]]
    yield "Gaussian noise, sd 2, 4, 8, 16, 32 grey levels", [noise(x, deviation) for deviation in (2, 4, 8, 16, 32)]
    yield "Gaussian blur, radius 0.3, 0.5, 1, 2", [blur(x, radius) for radius in (0.3, 0.5, 1, 2)]
    yield f"{', '.join(map(str, some))} of {classes} classes missing", [without(k) for k in some]
    yield f"{classes - 1} of {classes} classes missing (only {len(alone)} images)", [alone]
    yield "halves swapped left/right, top/bottom", [x.roll(32, 3), x.roll(32, 2)]
    yield "left half of one picture, right half of another", [torch.where(torch.arange(64) < 32, x, x.roll(1, 0))]
    yield "patches of 32, 16, 8 px shuffled", [shuffle(x, p) for p in (32, 16, 8)]
    yield "darkened to 95, 90, 75, 50%", [(x * share).round().to(torch.uint8) for share in (0.95, 0.9, 0.75, 0.5)]
    yield "red and blue exchanged; grey", [x.flip(1), x.float().mean(1, keepdim=True).round().to(torch.uint8)]
    yield "only 500, 100, 20, 5 distinct pictures, repeated", [x[:k].repeat(N // k, 1, 1, 1) for k in (500, 100, 20, 5)]
    yield "upside down", [x.flip(2)]
    yield "mirrored left/right", [x.flip(3)]
    yield "1,000 of the reference's own pictures (memorised)", [pixels[order[:N]]]


def rfd(data):
    pixels, labels, classes = load_pictures(data)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(pixels)))
    reference = statistics([pixels[order[:REFERENCE]]])
    row("damage", "rfd")
    row("---", "---")
    for what, cases in damages(pixels, labels, classes, order):
        distances = (jit.frechet_distance(*statistics([x]), *reference) for x in cases)
        row(what, ", ".join(f"{distance:#.3g}" for distance in distances))
    for size, n in ((32, 500), (64, 200), (256, 20)):
        x = F.interpolate(pixels[:n], size)
        seconds = np.median(take_turns(9, functools.partial(random_features, x)))
        print(f"{size} px: {n / seconds:.3g} images per CPU-second")


def full_rank(generator, d=2048):
    """Two covariances with the same eigenvectors, and the trace of the root of their product."""
    basis, zero = np.linalg.qr(generator.standard_normal((d, d)))[0], np.zeros(d)
    a, b = 10.0 ** generator.uniform(-5, 0, (2, d))  # eigenvalues
    return (zero, basis * a @ basis.T, zero, basis * b @ basis.T), np.sqrt(a * b).sum()


def low_rank(generator, d=2048, n=500):
    """Statistics of n points on either side, and the same trace, from the n x n products of the centred points."""
    x, y = generator.standard_normal((2, n, d)) * 10.0 ** generator.uniform(-2.5, 0, d)
    products = (x - x.mean(0)) @ (y - y.mean(0)).T / (n - 1)
    return (x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)), np.linalg.svd(products, compute_uv=False).sum()


def textbook(trace_of_root):
    """The Frechet distance, with a function that gives the trace of the square root of S1 S2."""
    return lambda mu1, s1, mu2, s2: np.square(mu1 - mu2).sum() + np.trace(s1 + s2) - 2 * trace_of_root(s1 @ s2)


def frechet():
    warnings.simplefilter("ignore")  # scipy says that the root of a singular matrix may be inexact, as the table shows
    methods = {
        "jit.py, symmetric eigendecompositions": jit.frechet_distance,
        "torch-fidelity, eigvals(S1 S2)": textbook(lambda s: np.sqrt(np.linalg.eigvals(s).astype(complex)).real.sum()),
        "scipy.linalg.sqrtm(S1 S2)": textbook(lambda s: np.trace(scipy.linalg.sqrtm(s)).real),
    }
    cells = {name: [name] for name in methods}
    for given, trace in (full_rank(np.random.RandomState(0)), low_rank(np.random.RandomState(0))):
        truth = textbook(lambda s: trace)(*given)  # noqa: B023
        seconds = np.median(take_turns(3, *(lambda m=m: m(*given) for m in methods.values())), 0)  # noqa: B023
        for (name, method), median in zip(methods.items(), seconds):
            cells[name] += [f"{median:.1f} s", f"{abs(method(*given) / truth - 1):.0e}"]
    row("", "full rank", "error", "rank 499", "error")
    row(*["---"] * 5)
    for line in cells.values():
        row(*line)


def compare_networks(theirs, ours, resize):
    """Their resize, features and logits of noise in eight sizes beside ours, and the time that both take."""
    generator = torch.Generator().manual_seed(0)
    row("pixels", "resize, largest difference", "features, relative norm", "logits, relative norm")
    row(*["---"] * 4)
    for size in ((8, 8), (32, 32), (64, 64), (256, 256), (299, 299), (512, 512), (40, 70), (300, 133)):
        x = torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=generator)
        resized = jit.resize_tf1(jit.resize_tf1(x.float(), dim=3), dim=2)
        gap = (resized - resize(x.float(), (299, 299), align_corners=False)).abs().max()
        errors = [(a - b).norm() / b.norm() for a, b in zip(ours(x), theirs(x))]
        row(f"{size[0]} x {size[1]}", f"{gap:g}", *(f"{error:.0e}" for error in errors))
    x = torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8, generator=generator)
    seconds = take_turns(8, lambda: theirs(x), lambda: ours(x))
    speed, ratio = 16 / np.median(seconds, 0), seconds[:, 0] / seconds[:, 1]
    print(
        f"64 px, images per CPU-second: torch-fidelity {speed[0]:.2f}, jit.py {speed[1]:.2f}, "
        f"{np.median(ratio):.2f} times ({ratio.min():.2f} to {ratio.max():.2f} in 8 interleaved pairs)"
    )


def compare_scores(fid, isc, their_kid, dtype, n=4000):
    """FID, Inception Score and KID of the same features and logits, by torch-fidelity's modules and by us."""
    torch.manual_seed(0)
    a, b = torch.randn(n, 2048).relu().to(dtype), 1.2 * torch.randn(n, 2048).relu().to(dtype)
    logits = 2 * torch.randn(n, 1008).to(dtype)
    distance = jit.frechet_distance(*jit.moments([a])[1:], *jit.moments([b])[1:])
    ours = distance, jit.inception_score(logits)[0], kid(a, b, subsets=10)
    theirs = (
        fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (a, b)), verbose=False),
        isc.isc_features_to_metric(logits),
        their_kid.kid_features_to_metric(a, b, kid_subsets=10, verbose=False),
    )
    row(str(dtype), *(f"{abs(x / next(iter(y.values())) - 1):.0e}" for x, y in zip(ours, theirs)))


def inception():
    """The same network with the same weights twice: theirs and ours."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from test_fid import seeded_weights  # the tests too need the names and shapes of all 566 entries
        from torch_fidelity import feature_extractor_inceptionv3 as extractor
        from torch_fidelity import metric_fid, metric_isc, metric_kid
    except ImportError as error:
        sentence = f"{error}: pip install torch-fidelity torchvision, the latter made for your torch."
        raise jit.Stop(sentence) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(seeded_weights(), path)
        theirs = extractor.FeatureExtractorInceptionV3("", ["2048", "logits_unbiased"], str(path))
        ours = jit.load_inception(path, "cpu", hashlib.sha256(path.read_bytes()).hexdigest())
    compare_networks(theirs, ours, extractor.interpolate_bilinear_2d_like_tensorflow1x)
    row("relative difference of the same", "FID", "Inception Score", "KID")
    row(*["---"] * 4)
    for dtype in (torch.float64, torch.float32):
        compare_scores(metric_fid, metric_isc, metric_kid, dtype)


def main(words=None):
    parser = Parser(__doc__, prog="metrics.py")
    parser.add_argument("command", choices=("rfd", "frechet", "inception"))
    parser.add_argument("--data", default="shapes", help="of rfd: a folder of folders, one for each class")
    args = parser.parse_args(words)
    works = {"rfd": functools.partial(rfd, args.data), "frechet": frechet, "inception": inception}
    return exit_code("metrics.py", works[args.command])


if __name__ == "__main__":
    sys.exit(main())
