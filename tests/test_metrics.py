"""Metrics against torch-fidelity's numbers, closed forms and brute force. The recorded numbers were made with
torch-fidelity 0.4.0 (its FeatureExtractorInceptionV3 and isc_features_to_metric) on a CPU."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jit
from test_runs import TINY, call, own_folder, save  # noqa: F401

# Every layer of torch-fidelity's network: name, out channels, in channels, kernel height, kernel width.
LAYERS = """
Conv2d_1a_3x3 32 3 3 3, Conv2d_2a_3x3 32 32 3 3, Conv2d_2b_3x3 64 32 3 3, Conv2d_3b_1x1 80 64 1 1, Conv2d_4a_3x3 192
80 3 3, Mixed_5b.branch1x1 64 192 1 1, Mixed_5b.branch5x5_1 48 192 1 1, Mixed_5b.branch5x5_2 64 48 5 5,
Mixed_5b.branch3x3dbl_1 64 192 1 1, Mixed_5b.branch3x3dbl_2 96 64 3 3, Mixed_5b.branch3x3dbl_3 96 96 3 3,
Mixed_5b.branch_pool 32 192 1 1, Mixed_5c.branch1x1 64 256 1 1, Mixed_5c.branch5x5_1 48 256 1 1,
Mixed_5c.branch5x5_2 64 48 5 5, Mixed_5c.branch3x3dbl_1 64 256 1 1, Mixed_5c.branch3x3dbl_2 96 64 3 3,
Mixed_5c.branch3x3dbl_3 96 96 3 3, Mixed_5c.branch_pool 64 256 1 1, Mixed_5d.branch1x1 64 288 1 1,
Mixed_5d.branch5x5_1 48 288 1 1, Mixed_5d.branch5x5_2 64 48 5 5, Mixed_5d.branch3x3dbl_1 64 288 1 1,
Mixed_5d.branch3x3dbl_2 96 64 3 3, Mixed_5d.branch3x3dbl_3 96 96 3 3, Mixed_5d.branch_pool 64 288 1 1,
Mixed_6a.branch3x3 384 288 3 3, Mixed_6a.branch3x3dbl_1 64 288 1 1, Mixed_6a.branch3x3dbl_2 96 64 3 3,
Mixed_6a.branch3x3dbl_3 96 96 3 3, Mixed_6b.branch1x1 192 768 1 1, Mixed_6b.branch7x7_1 128 768 1 1,
Mixed_6b.branch7x7_2 128 128 1 7, Mixed_6b.branch7x7_3 192 128 7 1, Mixed_6b.branch7x7dbl_1 128 768 1 1,
Mixed_6b.branch7x7dbl_2 128 128 7 1, Mixed_6b.branch7x7dbl_3 128 128 1 7, Mixed_6b.branch7x7dbl_4 128 128 7 1,
Mixed_6b.branch7x7dbl_5 192 128 1 7, Mixed_6b.branch_pool 192 768 1 1, Mixed_6c.branch1x1 192 768 1 1,
Mixed_6c.branch7x7_1 160 768 1 1, Mixed_6c.branch7x7_2 160 160 1 7, Mixed_6c.branch7x7_3 192 160 7 1,
Mixed_6c.branch7x7dbl_1 160 768 1 1, Mixed_6c.branch7x7dbl_2 160 160 7 1, Mixed_6c.branch7x7dbl_3 160 160 1 7,
Mixed_6c.branch7x7dbl_4 160 160 7 1, Mixed_6c.branch7x7dbl_5 192 160 1 7, Mixed_6c.branch_pool 192 768 1 1,
Mixed_6d.branch1x1 192 768 1 1, Mixed_6d.branch7x7_1 160 768 1 1, Mixed_6d.branch7x7_2 160 160 1 7,
Mixed_6d.branch7x7_3 192 160 7 1, Mixed_6d.branch7x7dbl_1 160 768 1 1, Mixed_6d.branch7x7dbl_2 160 160 7 1,
Mixed_6d.branch7x7dbl_3 160 160 1 7, Mixed_6d.branch7x7dbl_4 160 160 7 1, Mixed_6d.branch7x7dbl_5 192 160 1 7,
Mixed_6d.branch_pool 192 768 1 1, Mixed_6e.branch1x1 192 768 1 1, Mixed_6e.branch7x7_1 192 768 1 1,
Mixed_6e.branch7x7_2 192 192 1 7, Mixed_6e.branch7x7_3 192 192 7 1, Mixed_6e.branch7x7dbl_1 192 768 1 1,
Mixed_6e.branch7x7dbl_2 192 192 7 1, Mixed_6e.branch7x7dbl_3 192 192 1 7, Mixed_6e.branch7x7dbl_4 192 192 7 1,
Mixed_6e.branch7x7dbl_5 192 192 1 7, Mixed_6e.branch_pool 192 768 1 1, Mixed_7a.branch3x3_1 192 768 1 1,
Mixed_7a.branch3x3_2 320 192 3 3, Mixed_7a.branch7x7x3_1 192 768 1 1, Mixed_7a.branch7x7x3_2 192 192 1 7,
Mixed_7a.branch7x7x3_3 192 192 7 1, Mixed_7a.branch7x7x3_4 192 192 3 3, Mixed_7b.branch1x1 320 1280 1 1,
Mixed_7b.branch3x3_1 384 1280 1 1, Mixed_7b.branch3x3_2a 384 384 1 3, Mixed_7b.branch3x3_2b 384 384 3 1,
Mixed_7b.branch3x3dbl_1 448 1280 1 1, Mixed_7b.branch3x3dbl_2 384 448 3 3, Mixed_7b.branch3x3dbl_3a 384 384 1 3,
Mixed_7b.branch3x3dbl_3b 384 384 3 1, Mixed_7b.branch_pool 192 1280 1 1, Mixed_7c.branch1x1 320 2048 1 1,
Mixed_7c.branch3x3_1 384 2048 1 1, Mixed_7c.branch3x3_2a 384 384 1 3, Mixed_7c.branch3x3_2b 384 384 3 1,
Mixed_7c.branch3x3dbl_1 448 2048 1 1, Mixed_7c.branch3x3dbl_2 384 448 3 3, Mixed_7c.branch3x3dbl_3a 384 384 1 3,
Mixed_7c.branch3x3dbl_3b 384 384 3 1, Mixed_7c.branch_pool 192 2048 1 1
"""


def seeded_weights():
    """A state dict of all 566 entries: He weights, varied batch norm, so that activations neither die nor explode."""
    rng = np.random.RandomState(0)
    state = {}
    for line in LAYERS.replace("\n", " ").split(","):
        name, *shape = line.split()
        shape = [int(side) for side in shape]
        values = {
            "conv.weight": rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5,
            "bn.weight": rng.uniform(0.8, 1.4, shape[0]),
            "bn.bias": rng.standard_normal(shape[0]) * 0.2,
            "bn.running_mean": rng.standard_normal(shape[0]) * 0.2,
            "bn.running_var": rng.uniform(0.5, 1.5, shape[0]),
        }
        state.update({f"{name}.{part}": torch.tensor(value, dtype=torch.float32) for part, value in values.items()})
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = torch.tensor(rng.standard_normal((1008, 2048)) * 0.05, dtype=torch.float32)
    state["fc.bias"] = torch.tensor(rng.standard_normal(1008), dtype=torch.float32)
    return state


def blocks(n, height, width, seed=0):
    """Pictures of 4 x 4 plain colours, uint8 (n, 3, height, width)."""
    colours = np.random.RandomState(seed).randint(0, 256, (n, 3, 4, 4))
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    return torch.tensor(colours[:, :, rows][:, :, :, columns], dtype=torch.uint8)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(seeded_weights(), path)
    return path


@pytest.fixture(scope="module")
def sha256(weights_file):
    return hashlib.sha256(weights_file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def network(weights_file, sha256):
    return jit.load_inception(weights_file, "cpu", sha256)


# Every 500th feature and every 300th logit of both pictures, from torch-fidelity with the seeded weights.
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
    """Protects every part of the network: resize, padding, pools, order of branches, batch norm, logits without bias.

    1e-4 of the largest number: the rounding of fp32 makes 1e-6, pytorch-fid's half-pixel resize more than 1e-3.
    """
    features, logits = network(blocks(2, *size))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    for ours, theirs in zip((features[:, ::500], logits[:, ::300]), REFERENCE[size]):
        assert np.abs(ours.flatten().numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_inception_takes_grey_images_but_no_floats(network):
    """Grey is three equal channels. Floats in [-1, 1], nearly constant as 0 ... 255, would make every FID excellent."""
    grey = blocks(1, 32, 32)[:, :1]
    assert torch.equal(network(grey)[0], network(grey.repeat(1, 3, 1, 1))[0])
    with pytest.raises(ValueError):
        network(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("dim", [2, 3])
def test_resize_of_a_ramp_is_the_source_coordinate(dim):
    """Protects TF1's coordinates: index * size / 299 with no half-pixel shift, held at the last pixel."""
    ramp = torch.arange(64.0).view((1, 1, 64, 1) if dim == 2 else (1, 1, 1, 64)).expand(1, 1, 64, 64)
    resized = jit.resize_tf1(ramp, dim)
    expected = (torch.arange(299) * 64 / 299).clamp_max(63)
    line = resized[0, 0, :, 5] if dim == 2 else resized[0, 0, 5]
    assert (line - expected).abs().max() < 1e-5  # fp32 at 64: 4e-6
    full = torch.rand(1, 1, 299, 299)
    assert torch.equal(jit.resize_tf1(full, dim), full)


def test_wrong_checksum_is_refused(weights_file):
    """Protects published numbers from another network's weights, partly loaded or damaged ones: the file is the file.

    The true name says which one is meant: torch.hub's files end in the first letters of their SHA-256.
    """
    with pytest.raises(jit.Stop, match="inception.pth.*SHA-256"):
        jit.load_inception(weights_file, "cpu")
    assert f"-{jit.INCEPTION_SHA256[:8]}.pth" in jit.INCEPTION_URL


def test_offline_error_says_what_to_put_where(tmp_path, monkeypatch):
    """Protects the user of a machine without network: one sentence with the address and the place."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for path, place in ((None, tmp_path / "checkpoints"), (Path("mine.pth"), "mine.pth")):
        with pytest.raises(jit.Stop) as error:
            jit.load_inception(path, "cpu")
        assert "no network" in error.value.args[0]
        assert jit.INCEPTION_URL in error.value.args[0] and str(place) in error.value.args[0]


def test_download_is_taken_once_and_found_again(tmp_path, monkeypatch, weights_file, sha256):
    """It goes to torch.hub's cache, whose folders need not be there, and is checked when it comes."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def download(url, path):
        asked.append(url)
        Path(path).symlink_to(weights_file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert len(jit.load_inception(None, "cpu", sha256).layers) == 95  # 94 convolutions and fc
    assert asked == [jit.INCEPTION_URL]
    with pytest.raises(jit.Stop, match="SHA-256"):
        jit.load_inception(None, "cpu")


def test_to_uint8_rounds_and_clips():
    """Protects the quantisation: rounding (truncation is half a level darker), clipping (no wrap-around), bf16."""
    levels = torch.arange(256)
    for offset in (-0.4, 0.4):
        assert torch.equal(jit.to_uint8((levels + offset) / 127.5 - 1), levels.to(torch.uint8))
    assert jit.to_uint8(torch.tensor([-9.0, -1.0, 1.0, 9.0])).tolist() == [0, 0, 255, 255]
    assert jit.to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]


def covariance_pair(n, d, seed=0):
    """Statistics of two sets of n numbers in d dimensions, and the exact distance by way of an n x n product."""
    rng = np.random.RandomState(seed)
    a, b = rng.standard_normal((n, d)), rng.standard_normal((n, d)) * 1.3 + 0.2
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    spread = np.square(centred_a).sum() + np.square(centred_b).sum() - 2 * cross
    truth = np.square(a.mean(0) - b.mean(0)).sum() + spread / (n - 1)
    return (a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T)), truth


def test_frechet_distance_of_diagonal_gaussians():
    """Protects the formula: with commuting covariances it is |mu1 - mu2|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.RandomState(0)
    q = np.linalg.qr(rng.standard_normal((30, 30)))[0]  # common eigenvectors, so that nothing is diagonal by luck
    a, b, shift = rng.uniform(0, 3, 30), rng.uniform(0, 3, 30), rng.standard_normal(30)
    a[:5] = 0  # singular on one side
    distance = jit.frechet_distance(shift, (q * a) @ q.T, np.zeros(30), (q * b) @ q.T)
    expected = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert distance == pytest.approx(expected, rel=1e-12)  # 30 terms in float64


def test_frechet_distance_of_equal_covariances():
    """Protects the mean's term: the distance is then that of the means alone, squared."""
    (mu, sigma, _, _), _ = covariance_pair(100, 20)
    assert jit.frechet_distance(mu, sigma, mu + 2, sigma) == pytest.approx(80, rel=1e-12)


@pytest.mark.parametrize("n, d", [(20, 60), (200, 60)])
def test_frechet_distance_of_any_rank(n, d):
    """Protects fewer images than features, where a matrix square root loses half its digits or goes complex."""
    statistics, truth = covariance_pair(n, d)
    assert jit.frechet_distance(*statistics) == pytest.approx(truth, rel=1e-11)


def test_frechet_distance_is_symmetric_and_zero_on_itself():
    """Protects the axioms; never below 0, never NaN, even for constant features (covariance 0)."""
    (mu1, sigma1, mu2, sigma2), _ = covariance_pair(15, 40)
    there, back = jit.frechet_distance(mu1, sigma1, mu2, sigma2), jit.frechet_distance(mu2, sigma2, mu1, sigma1)
    assert there == pytest.approx(back, rel=1e-11)
    assert 0 <= jit.frechet_distance(mu1, sigma1, mu1, sigma1) < 1e-11 * np.trace(sigma1)
    assert jit.frechet_distance(mu1, 0 * sigma1, mu1, sigma1) == pytest.approx(np.trace(sigma1))


def gaussian_features():
    rng = np.random.RandomState(3)
    rng.standard_normal((237, 50))  # the recorded number came after the logits below, from one generator
    a = torch.tensor(rng.standard_normal((120, 16)))
    return a, torch.tensor(rng.standard_normal((90, 16)) * 1.2 + 0.3)


def test_fid_is_that_of_torch_fidelity():
    """Protects N - 1 and the sign of each term: the recorded value."""
    (_, mu1, sigma1), (_, mu2, sigma2) = (jit.moments(features.split(50)) for features in gaussian_features())
    assert jit.frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(4.5309561082396925, rel=1e-12)


def test_moments_are_numpys():
    """Protects sums over batches: uneven ones, one of a single row, fp32 features, and a mean far from zero."""
    x = np.random.RandomState(0).standard_normal((57, 7)) + 1000
    n, mean, covariance = jit.moments(torch.tensor(part) for part in np.split(x, [1, 20, 21, 50]))
    assert n == 57
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-12)  # sums of squares would leave 1e-9
    whole, halves = jit.moments([torch.tensor(x)]), jit.moments(torch.tensor(x).split(13))
    np.testing.assert_allclose(halves[1], whole[1], rtol=1e-14)
    np.testing.assert_allclose(halves[2], whole[2], rtol=0, atol=1e-12)
    single = torch.tensor(x, dtype=torch.float32)
    assert jit.moments(single.split(20))[2].dtype == np.float64
    np.testing.assert_allclose(jit.moments(single.split(20))[2], np.cov(single.double().numpy().T), atol=1e-12)
    for too_few in ([], [torch.zeros(1, 7)]):
        with pytest.raises(jit.Stop, match="two images"):
            jit.moments(too_few)


def test_inception_score_closed_forms():
    """Protects exp and KL: K certain, balanced classes score K (no NaN from log 0); saying nothing scores 1."""
    certain = 1000 * torch.eye(8).repeat(25, 1)
    assert jit.inception_score(certain, splits=1) == pytest.approx((8, 0), abs=1e-9)
    never_predicted = torch.nn.functional.pad(certain, (0, 1))
    assert jit.inception_score(never_predicted, splits=1) == pytest.approx((8, 0), abs=1e-9)
    assert jit.inception_score(torch.zeros(100, 8)) == pytest.approx((1, 0), abs=1e-12)


def test_inception_score_shuffles_samples_sorted_by_class():
    """Protects the shuffle: without it each split holds one class and the score is 1 instead of nearly 10."""
    mean, _ = jit.inception_score(1000 * torch.eye(10).repeat_interleave(100, 0))
    assert mean > 9


def test_inception_score_is_that_of_torch_fidelity():
    """Protects the order of the shuffle and the borders of the splits (237 does not divide by 10): recorded."""
    logits = torch.tensor(np.random.RandomState(3).standard_normal((237, 50)) * 2)
    assert jit.inception_score(logits) == pytest.approx((3.7026341717588513, 0.20324888182541478), rel=1e-10)


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture
def seeded(monkeypatch, sha256):
    """jit.py takes the seeded weights for the true ones."""
    monkeypatch.setattr(jit, "load_inception", functools.partial(jit.load_inception, sha256=sha256))


@pytest.fixture
def distances(monkeypatch):
    """What frechet_distance is asked, in the place of an answer: with 2048 features that takes seconds."""
    asked = []
    monkeypatch.setattr(jit, "frechet_distance", lambda *statistics: asked.append(statistics) or 1.5)
    return asked


def folder(name, n, seed, size=32):
    """n pictures of 4 x 4 plain colours, as PNG in two classes; returns them."""
    images = blocks(n, size, size, seed)
    for i, image in enumerate(images):
        save(f"{name}/{'ab'[i % 2]}/{i:02d}.png", 0, (size, size))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{name}/{'ab'[i % 2]}/{i:02d}.png")
    return torch.cat([images[::2], images[1::2]])


def test_eval_of_a_folder_end_to_end(network, seeded, weights_file, capsys):
    """Protects the command: files, features, statistics, distance, score and names, against the same by hand."""
    mine, theirs = folder("mine", 5, 0), folder("theirs", 4, 1)
    words = ["eval", "mine", "--size", 32, "--reference", "theirs", "--inception", weights_file, "--batch-size", 2]
    assert call(*words, "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (a, logits), (b, _) = network(mine), network(theirs)
    a, b = a.double().numpy(), b.double().numpy()
    # Fewer images than features: by way of an n x n product, as in covariance_pair above.
    centred_a, centred_b = (a - a.mean(0)) / 2, (b - b.mean(0)) / 3**0.5  # sqrt(n - 1)
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    fid = np.square(a.mean(0) - b.mean(0)).sum() + np.square(centred_a).sum() + np.square(centred_b).sum() - 2 * cross
    assert result["fid_5"] == pytest.approx(fid, rel=1e-5)  # fp32 features in other batches
    score, deviation = jit.inception_score(logits)
    assert result["inception_score"] == pytest.approx(score, rel=1e-4)
    assert result["inception_score_std"] == pytest.approx(deviation, rel=1e-3, abs=1e-6)
    assert result["run"] == "mine" and result["reference"] == "theirs"


def test_statistics_are_written_and_taken_again(network, seeded, distances, weights_file, capsys):
    """--stats saves the reference's features for the next time; a file of another program holds the same two arrays."""
    folder("mine", 3, 0)
    theirs = folder("theirs", 4, 1)
    words = ["eval", "mine", "--size", 32, "--inception", weights_file, "--device", "cpu"]
    assert call(*words, "--reference", "theirs", "--stats", "new/s.npz") == 0
    with np.load("new/s.npz") as file:
        assert set(file) == {"mu", "sigma"}
        np.testing.assert_allclose(file["mu"], network(theirs)[0].mean(0), rtol=1e-4, atol=1e-4)
    (root,) = [path for path in Path("new").iterdir()]  # nothing half-written beside it
    assert root.name == "s.npz"
    for path in Path("theirs").rglob("*.png"):
        path.unlink()  # it is not looked at again
    assert call(*words, "--reference", "new/s.npz") == 0
    np.savez("other.npz", mu=np.ones(2048, np.float32), sigma=np.eye(2048, dtype=np.float32), n=3)
    assert call(*words, "--reference", "other.npz") == 0
    first, again, other = distances
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert (other[2] == 1).all() and other[2].dtype == np.float64 and np.array_equal(other[3], np.eye(2048))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fid_3"] == 1.5


def fake(images):
    """Features whose first numbers are the mean colour of each image."""
    return torch.nn.functional.pad(images.float().mean((2, 3)), (0, 2045)), torch.zeros(len(images), 1008)


def test_eval_of_a_run_compares_with_its_training_data(distances, monkeypatch, capsys):
    """Without --reference: all images of the training data, in the run's size; the run draws n, of all classes."""
    folder("d", 6, 0)
    assert call("train", *TINY, "--data", "d", "--out", "r", "--steps", 1) == 0
    monkeypatch.setattr(jit, "load_inception", lambda path, device: fake)
    words = ["eval", "r", "--n", 7, "--sampling-steps", 1, "--batch-size", 3, "--device", "cpu"]
    assert call(*words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["reference"] == "d" and result["fid_7"] == 1.5
    ((_, _, mu, sigma),) = distances
    pixels = jit.open_data("d", (3, 16, 16)).pixels.float().mean((2, 3)).numpy()
    np.testing.assert_allclose(mu[:3], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(sigma[:3, :3], np.cov(pixels.T), rtol=1e-4)
    assert call("sample", "r", *words[2:], "--png-dir", "p") == 0  # the same pictures as a folder, the same numbers
    assert call("eval", "p", "--size", 16, "--reference", "d", "--batch-size", 50) == 0
    for ours, theirs in zip(distances[1], distances[0]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


def test_shapes_as_reference(distances, monkeypatch, capsys):
    """A run on the built-in data is compared with as many new shapes, drawn from a seed of their own."""
    assert call("train", *TINY, "--out", "r", "--steps", 1) == 0
    monkeypatch.setattr(jit, "load_inception", lambda path, device: fake)
    for seed in (0, 0, 1):
        assert call("eval", "r", "--n", 30, "--sampling-steps", 1, "--seed", seed, "--device", "cpu") == 0
    one, again, other = (statistics[2] for statistics in distances)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.abs(one[:3] - other[:3]).max() < 40  # means of 30 shapes


def test_grey_images_are_measured_as_grey(distances, monkeypatch):
    """A network of one channel, built in Python, is compared with the training data in grey."""
    folder("d", 4, 0)
    data = jit.open_data("d", (1, 16, 16))
    net = jit.JiT(16, 8, 2, depth=1, width=16, heads=2, bottleneck=4, channels=1)
    jit.train(net, jit.Flow(), data, "r", steps=1, batch_size=4, data_name="d")
    seen = []
    monkeypatch.setattr(jit, "load_inception", lambda path, device: lambda x: seen.append(x.shape[1]) or fake(x))
    assert call("eval", "r", "--n", 4, "--sampling-steps", 1, "--device", "cpu") == 0
    assert set(seen) == {1}
    assert call("sample", "r", "--n", 4, "--sampling-steps", 1, "--png-dir", "p", "--device", "cpu") == 0
    assert Image.open("p/000000.png").mode == "L"


def test_broken_files_do_not_count(distances, monkeypatch, capsys):
    """A folder scores the same whether it is read into memory or, too large for that, file by file."""
    folder("d", 6, 0)
    Path("d/a/00.png").write_bytes(b"broken")
    np.savez("s.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    monkeypatch.setattr(jit, "load_inception", lambda path, device: fake)
    for limit in (jit.MEMORY_LIMIT, 0):
        monkeypatch.setattr(jit, "MEMORY_LIMIT", limit)
        assert call("eval", "d", "--size", 16, "--reference", "s.npz", "--batch-size", 4, "--device", "cpu") == 0
        assert "fid_5" in capsys.readouterr().out
    np.testing.assert_allclose(distances[0][1], distances[1][1], atol=1e-9)
