"""Section 7 of jit.py and `eval`: FID and Inception Score, against closed forms and numbers made
with torch-fidelity 0.4.0 on a CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, save, train
from PIL import Image

import jit

pytestmark = pytest.mark.usefixtures("quick_sheets")

# Every layer of torch-fidelity's network: name, out channels, in channels, kernel height, width.
LAYERS = """
Conv2d_: 1a_3x3 32 3 3 3, 2a_3x3 32 32 3 3, 2b_3x3 64 32 3 3, 3b_1x1 80 64 1 1, 4a_3x3 192 80 3 3
Mixed_5b.branch: 1x1 64 192 1 1, 5x5_1 48 192 1 1, 5x5_2 64 48 5 5, 3x3dbl_1 64 192 1 1, 3x3dbl_2
    96 64 3 3, 3x3dbl_3 96 96 3 3, _pool 32 192 1 1
Mixed_5c.branch: 1x1 64 256 1 1, 5x5_1 48 256 1 1, 5x5_2 64 48 5 5, 3x3dbl_1 64 256 1 1, 3x3dbl_2
    96 64 3 3, 3x3dbl_3 96 96 3 3, _pool 64 256 1 1
Mixed_5d.branch: 1x1 64 288 1 1, 5x5_1 48 288 1 1, 5x5_2 64 48 5 5, 3x3dbl_1 64 288 1 1, 3x3dbl_2
    96 64 3 3, 3x3dbl_3 96 96 3 3, _pool 64 288 1 1
Mixed_6a.branch: 3x3 384 288 3 3, 3x3dbl_1 64 288 1 1, 3x3dbl_2 96 64 3 3, 3x3dbl_3 96 96 3 3
Mixed_6b.branch: 1x1 192 768 1 1, 7x7_1 128 768 1 1, 7x7_2 128 128 1 7, 7x7_3 192 128 7 1,
    7x7dbl_1 128 768 1 1, 7x7dbl_2 128 128 7 1, 7x7dbl_3 128 128 1 7, 7x7dbl_4 128 128 7 1,
    7x7dbl_5 192 128 1 7, _pool 192 768 1 1
Mixed_6c.branch: 1x1 192 768 1 1, 7x7_1 160 768 1 1, 7x7_2 160 160 1 7, 7x7_3 192 160 7 1,
    7x7dbl_1 160 768 1 1, 7x7dbl_2 160 160 7 1, 7x7dbl_3 160 160 1 7, 7x7dbl_4 160 160 7 1,
    7x7dbl_5 192 160 1 7, _pool 192 768 1 1
Mixed_6d.branch: 1x1 192 768 1 1, 7x7_1 160 768 1 1, 7x7_2 160 160 1 7, 7x7_3 192 160 7 1,
    7x7dbl_1 160 768 1 1, 7x7dbl_2 160 160 7 1, 7x7dbl_3 160 160 1 7, 7x7dbl_4 160 160 7 1,
    7x7dbl_5 192 160 1 7, _pool 192 768 1 1
Mixed_6e.branch: 1x1 192 768 1 1, 7x7_1 192 768 1 1, 7x7_2 192 192 1 7, 7x7_3 192 192 7 1,
    7x7dbl_1 192 768 1 1, 7x7dbl_2 192 192 7 1, 7x7dbl_3 192 192 1 7, 7x7dbl_4 192 192 7 1,
    7x7dbl_5 192 192 1 7, _pool 192 768 1 1
Mixed_7a.branch: 3x3_1 192 768 1 1, 3x3_2 320 192 3 3, 7x7x3_1 192 768 1 1, 7x7x3_2 192 192 1 7,
    7x7x3_3 192 192 7 1, 7x7x3_4 192 192 3 3
Mixed_7b.branch: 1x1 320 1280 1 1, 3x3_1 384 1280 1 1, 3x3_2a 384 384 1 3, 3x3_2b 384 384 3 1,
    3x3dbl_1 448 1280 1 1, 3x3dbl_2 384 448 3 3, 3x3dbl_3a 384 384 1 3, 3x3dbl_3b 384 384 3 1,
    _pool 192 1280 1 1
Mixed_7c.branch: 1x1 320 2048 1 1, 3x3_1 384 2048 1 1, 3x3_2a 384 384 1 3, 3x3_2b 384 384 3 1,
    3x3dbl_1 448 2048 1 1, 3x3dbl_2 384 448 3 3, 3x3dbl_3a 384 384 1 3, 3x3dbl_3b 384 384 3 1,
    _pool 192 2048 1 1
"""


def seeded_weights():
    """A state dict of all 566 entries: He weights and varied batch norm, so that activations
    neither die nor explode."""
    rng, state = np.random.RandomState(0), {}
    lines = (line.split(": ") for line in LAYERS.replace("\n    ", " ").strip().splitlines())
    for name, *shape in ((prefix + part).split() for prefix, rest in lines
                         for part in rest.split(", ")):  # fmt: skip
        shape = [int(side) for side in shape]
        values = {
            "conv.weight": rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5,
            "bn.weight": rng.uniform(0.8, 1.4, shape[0]),
            "bn.bias": rng.standard_normal(shape[0]) * 0.2,
            "bn.running_mean": rng.standard_normal(shape[0]) * 0.2,
            "bn.running_var": rng.uniform(0.5, 1.5, shape[0]),
        }
        state |= {f"{name}.{part}": torch.tensor(value).float() for part, value in values.items()}
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = torch.tensor(rng.standard_normal((1008, 2048)) * 0.05).float()
    state["fc.bias"] = torch.tensor(rng.standard_normal(1008)).float()
    assert len(state) == 566
    return state


def blocks(n, height, width, seed=0):
    """Pictures of 4 x 4 plain colours, uint8 (n, 3, height, width)."""
    colours = np.random.RandomState(seed).randint(0, 256, (n, 3, 4, 4))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return torch.tensor(colours[:, :, rows][:, :, :, columns], dtype=torch.uint8)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(seeded_weights(), path)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    return jit.load_inception(weights_file, "cpu")


# The network


# Every 500th feature and 300th logit of two pictures, from torch-fidelity with the seeded weights.
REFERENCE = {
    (32, 32): (
        [3.1333, 40.39311, 22.25223, 2.11749, 0.0, 2.99974, 42.24842, 23.40842, 3.26429, 0.0],
        [46.67306, -157.19223, -56.67011, 12.62622, 45.43456, -156.74493, -47.43079, 32.11535],
    ),
    (40, 70): (
        [3.31813, 41.20579, 22.74179, 1.86566, 0.0, 2.81653, 43.07812, 23.72722, 3.24879, 0.0],
        [48.38189, -159.85898, -57.70766, 14.0406, 47.84138, -157.47107, -47.78959, 31.90596],
    ),
}


@pytest.mark.parametrize("size", REFERENCE)
def test_inception_gives_the_numbers_of_torch_fidelity(network, size):
    """Every part of it: resize, padding, pools, order of branches, batch norm, logits without bias.
    1e-4 of the largest: fp32 makes 1e-6, pytorch-fid's half-pixel resize more than 1e-3."""
    features, logits = network(blocks(2, *size))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    for ours, theirs in zip((features[:, ::500], logits[:, ::300]), REFERENCE[size]):
        assert np.abs(ours.flatten().numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_inception_takes_grey_images_but_no_floats(network):
    """Floats in [-1, 1], nearly constant as 0 ... 255, would make every FID excellent."""
    grey = blocks(1, 32, 32)[:, :1]
    assert torch.equal(network(grey)[0], network(grey.repeat(1, 3, 1, 1))[0])
    with pytest.raises(ValueError, match="uint8"):
        network(torch.zeros(1, 3, 32, 32))


def test_where_the_weights_come_from(weights_file, monkeypatch):
    """torch.hub keeps a download, and checks it against the letters of the SHA-256 in its name.
    Offline: the address."""
    with pytest.raises(jit.Stop, match="(?s)no network.*6726825d.pth.*--inception"):
        jit.load_inception(None, "cpu")
    asked, state = [], torch.load(weights_file, weights_only=True)
    download = lambda url, **more: asked.append((url[-12:], more)) or state  # noqa: E731
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    assert len(jit.load_inception(None, "cpu").layers) == 95  # 94 convolutions and fc
    assert asked == [("6726825d.pth", dict(map_location="cpu", check_hash=True, weights_only=True))]


# The numbers


def covariance_pair(n, d, seed=0):
    """Statistics of two sets of n numbers in d dimensions, and the exact distance by way of an
    n x n product."""
    rng = np.random.RandomState(seed)
    a, b = rng.standard_normal((n, d)), rng.standard_normal((n, d)) * 1.3 + 0.2
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    spread = np.square(centred_a).sum() + np.square(centred_b).sum() - 2 * cross
    truth = np.square(a.mean(0) - b.mean(0)).sum() + spread / (n - 1)
    return (a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T)), truth


@pytest.mark.parametrize("n, d", [(20, 60), (200, 60)])
def test_frechet_distance_of_any_rank(n, d):
    """Fewer images than features, where a matrix square root loses half its digits. Symmetric, 0 on
    itself, never below, never NaN for constant features."""
    (mu1, sigma1, mu2, sigma2), truth = covariance_pair(n, d)
    assert jit.frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(truth, rel=1e-11)
    assert jit.frechet_distance(mu2, sigma2, mu1, sigma1) == pytest.approx(truth, rel=1e-11)
    assert 0 <= jit.frechet_distance(mu1, sigma1, mu1, sigma1) < 1e-11 * np.trace(sigma1)
    nothing = jit.frechet_distance(mu1, 0 * sigma1, mu1, sigma1)
    assert nothing == pytest.approx(np.trace(sigma1))
    for mu in (mu1 * np.nan, mu1 * np.inf):  # max(0, nan) is 0, the best there is
        assert not jit.frechet_distance(mu, sigma1, mu2, sigma2) < np.inf
        assert not jit.frechet_distance(mu1, sigma1, mu, sigma2) < np.inf


def test_fid_and_inception_score_are_those_of_torch_fidelity():
    """n - 1, the sign of each term; the shuffle, and borders of splits (237 do not divide)."""
    rng = np.random.RandomState(3)
    logits, a = torch.tensor(rng.standard_normal((237, 50)) * 2), rng.standard_normal((120, 16))
    b = rng.standard_normal((90, 16)) * 1.2 + 0.3
    (_, *one), (_, *two) = (jit.moments(torch.tensor(x).split(50)) for x in (a, b))
    assert jit.frechet_distance(*one, *two) == pytest.approx(4.5309561082396925, rel=1e-12)
    recorded = (3.7026341717588513, 0.20324888182541478)
    assert jit.inception_score(logits) == pytest.approx(recorded, rel=1e-10)
    certain = torch.nn.functional.pad(1000 * torch.eye(8).repeat(25, 1), (0, 1))  # never class 9
    assert jit.inception_score(certain, splits=1) == pytest.approx((8, 0), abs=1e-9)


def test_moments_are_numpys():
    """Uneven batches, one of a single row, fp32 features, with a mean as Inception's have."""
    x = np.random.RandomState(0).standard_normal((57, 7)) + 1
    parts = np.split(x, [1, 20, 21, 50])
    n, mean, covariance = jit.moments(torch.tensor(part) for part in parts)
    assert n == 57
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-12)
    single = torch.tensor(x).float()
    covariance = jit.moments(single.split(20))[2]
    np.testing.assert_allclose(covariance, np.cov(single.double().numpy().T), atol=1e-12)
    for too_few in ([], [torch.zeros(1, 7)]):
        with pytest.raises(jit.Stop, match="two images"):
            jit.moments(too_few)


# The command


@pytest.fixture
def distances(monkeypatch):
    """What frechet_distance is asked, in the place of an answer: with 2048 features it is slow."""
    asked = []
    monkeypatch.setattr(jit, "frechet_distance", lambda *given: asked.append(given) or 1.5)
    return asked


def mean_colours(images):
    """In the place of Inception: features whose first numbers are the mean colour of an image."""
    colours = images.float().mean((2, 3)).expand(-1, 3)
    return torch.nn.functional.pad(colours, (0, 2045)), torch.zeros(len(images), 1008)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(jit, "load_inception", lambda path, device: mean_colours)


def folder(name, n, seed, size=32):
    """n pictures of plain colours, as PNG in two classes; returns them, as they are sorted."""
    images = blocks(n, size, size, seed)
    for i, image in enumerate(images):
        path = save(f"{name}/{'ab'[i % 2]}/{i:02d}.png", 0)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return torch.cat([images[::2], images[1::2]])


def evaluate(capsys, *words):
    assert call("eval", *words, "--device", "cpu") == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_eval_end_to_end(network, weights_file, monkeypatch, capsys):
    """Samples, features, statistics, distance, score and names, against the same by hand. --stats
    saves the reference's features, and nothing half-written beside them, for the next time."""
    real = folder("d", 4, 1)
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    words = ["--sampling-steps", 1, "--batch-size", 2, "--n", 5]
    assert call("sample", "r", *words, "--png-dir", "p", "--device", "cpu") == 0
    words = ["r", *words, "--inception", weights_file]
    result = evaluate(capsys, *words, "--stats", "new/s.npz")
    pngs = sorted(Path("p").rglob("*.png"), key=lambda path: path.name)
    classes = [path.parent.name for path in pngs]
    assert classes == ["a", "b", "a", "b", "a"]  # in turn; eval sorts them: a a a b b
    net, flow, _ = jit.load_run("r", "ema1", "cpu")
    y = torch.tensor([0, 0, 0, 1, 1])
    mine = torch.cat(list(jit.sample_images(net, y, flow, net.shape, sampling_steps=1)))
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in real]
    theirs = torch.stack([jit.crop(picture, 16, 3) for picture in pictures])
    (a, logits), (b, _) = network(mine), network(theirs)
    a, b = a.double().numpy(), b.double().numpy()
    # Fewer images than features: by way of an n x n product, as in covariance_pair above.
    centred_a, centred_b = (a - a.mean(0)) / 2, (b - b.mean(0)) / 3**0.5  # sqrt(n - 1)
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    fid = np.square(a.mean(0) - b.mean(0)).sum() + np.square(centred_a).sum()
    fid += np.square(centred_b).sum() - 2 * cross
    assert result["fid_5"] == pytest.approx(fid, rel=1e-5)  # fp32 features in other batches
    score, deviation = jit.inception_score(logits)
    assert result["inception_score"] == pytest.approx(score, rel=1e-4)
    assert result["inception_score_std"] == pytest.approx(deviation, rel=1e-3, abs=1e-6)
    assert result["run"] == "r" and result["reference"] == str(Path("d").resolve())
    assert [path.name for path in Path("new").iterdir()] == ["s.npz"]
    with np.load("new/s.npz") as file:
        assert set(file) == {"mu", "sigma"}
        np.testing.assert_allclose(file["mu"], b.mean(0), rtol=1e-4, atol=1e-4)
    means = lambda mu1, _, mu2, __: np.square(mu1 - mu2).sum()  # noqa: E731, quick
    monkeypatch.setattr(jit, "frechet_distance", means)
    again = evaluate(capsys, *words, "--reference", "new/s.npz")
    assert again["fid_5"] == pytest.approx(np.square(a.mean(0) - b.mean(0)).sum(), rel=1e-4)


def test_eval_of_a_run_compares_with_its_training_data(distances, fake, monkeypatch, capsys):
    """Without --reference: all images of the training data, in the run's size, wherever the command
    is called from; another folder of that name there is not meant."""
    folder("d", 6, 0)
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    data, run = Path("d").resolve(), Path("r").resolve()
    folder("elsewhere/d", 6, 1), monkeypatch.chdir("elsewhere")
    words = ["--n", 7, "--sampling-steps", 1, "--batch-size", 3]
    result = evaluate(capsys, run, *words)
    assert result["reference"] == str(data) and result["fid_7"] == 1.5
    ((_, _, mu, sigma),) = distances
    pixels, _ = jit.open_data(str(data), (3, 16, 16)).batch(range(6))
    pixels = pixels.float().mean((2, 3)).numpy()
    np.testing.assert_allclose(mu[:3], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(sigma[:3, :3], np.cov(pixels.T), rtol=1e-4)


def test_eval_draws_classes_as_often_as_they_were_trained(distances, fake, monkeypatch, capsys):
    """Equally many of each compares a balanced set with one that is not: a faultless network would
    score badly. And fewer images than classes are spread over all of them."""
    drawn = []

    def sample_images(net, y, flow, shape, **settings):
        drawn.append(y.tolist())
        return [torch.zeros(len(y), *shape, dtype=torch.uint8)]

    monkeypatch.setattr(jit, "sample_images", sample_images)
    for i in range(20):
        save(f"d/{'red' if i < 18 else 'blue'}/{i}.png", "red")  # sorted: blue, red
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert train("--out", "s", "--steps", 1) == 0
    save("flat/1.png", "red"), save("flat/2.png", "red")
    assert train("--data", "flat", "--out", "without", "--steps", 1) == 0
    drawn.clear()
    for run, n in (("r", 20), ("r", 10), ("s", 20), ("s", 5), ("without", 2)):
        evaluate(capsys, run, "--n", n, "--reference", "shapes")
    assert drawn == [[0] * 2 + [1] * 18, [0] + [1] * 9, [i // 2 for i in range(20)],
                     [0, 2, 4, 6, 8], [jit.NO_CLASS] * 2]  # fmt: skip


def test_shapes_as_reference(distances, fake, capsys):
    """A run on the built-in data is compared with new shapes from a seed of their own. `shapes` is
    a word there: a folder of that name can be meant by ./shapes."""
    assert train("--out", "r", "--steps", 1) == 0
    for seed in (0, 0, 1):
        evaluate(capsys, "r", "--n", 30, "--sampling-steps", 1, "--seed", seed)
    one, again, other = (statistics[2] for statistics in distances)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.abs(one[:3] - other[:3]).max() < 40  # means of 30 shapes
    save("shapes/a/1.png", "red"), save("shapes/b/2.png", "blue")
    for name in ("./shapes", "shapes/", str(Path("shapes").resolve())):
        assert jit.open_data(name, (3, 16, 16)).names == ["a", "b"]


def test_reference_of_another_program(distances, fake, run, capsys):
    """torch-fidelity's and others' files hold mu and sigma, some of them in fp32."""
    np.savez("s.npz", mu=np.zeros(2048, np.float32), sigma=np.eye(2048), n=3)
    evaluate(capsys, run, "--n", 4, "--reference", "s.npz")
    ((_, _, mu, sigma),) = distances
    assert mu.dtype == sigma.dtype == np.float64 and sigma.trace() == 2048
