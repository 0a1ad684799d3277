"""Metrics against torch-fidelity's numbers, closed forms and brute force. The recorded numbers were made with
torch-fidelity 0.4.0 (its FeatureExtractorInceptionV3, isc_features_to_metric and kid_features_to_metric) on a CPU."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import jit

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
def weights():
    return seeded_weights()


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    return jit.load_inception(weights_file, True, "cpu")[0]


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
    features, logits = jit.inception_features(network, blocks(2, *size))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    for ours, theirs in zip((features[:, ::500], logits[:, ::300]), REFERENCE[size]):
        assert np.abs(ours.flatten().numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_inception_takes_grey_images(network):
    """Protects one-channel data sets: grey is the same as three equal channels."""
    grey = blocks(1, 32, 32)[:, :1]
    colour = grey.repeat(1, 3, 1, 1)
    assert torch.equal(jit.inception_features(network, grey)[0], jit.inception_features(network, colour)[0])


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


def test_wrong_hash_is_refused_and_the_flag_is_named(weights_file):
    """Protects published numbers from another network's weights; the flag allows them and the hash is reported."""
    with pytest.raises(jit.Stop, match="--inception-any-hash"):
        jit.load_inception(weights_file, False, "cpu")
    sha256 = jit.load_inception(weights_file, True, "cpu")[1]
    assert len(sha256) == 64 and sha256 != jit.INCEPTION_SHA256


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "garbage"])
def test_weights_must_fit_exactly(tmp_path, weights, spoil):
    """Protects against a partly loaded network, which gives numbers all the same."""
    state = dict(weights)
    if spoil == "missing":
        del state["Mixed_6c.branch7x7_2.bn.running_var"]
    if spoil == "extra":
        state["AuxLogits.conv0.conv.weight"] = torch.zeros(1)
    if spoil == "shape":
        state["Mixed_7c.branch1x1.conv.weight"] = torch.zeros(320, 5, 1, 1)
    torch.save(state, tmp_path / "weights.pth")
    if spoil == "garbage":
        (tmp_path / "weights.pth").write_bytes(b"<html>Not Found</html>")
    with pytest.raises(jit.Stop, match="weights.pth"):
        jit.load_inception(tmp_path / "weights.pth", True, "cpu")


def test_batch_counters_are_not_needed(tmp_path, weights, network):
    """Protects files without the 94 num_batches_tracked, which nothing uses, and of the format before torch 1.6."""
    state = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    loaded = jit.load_inception(tmp_path / "weights.pth", True, "cpu")[0]
    assert loaded.keys() == network.keys()


def test_offline_error_says_what_to_put_where(tmp_path, monkeypatch):
    """Protects the user of a machine without network: one sentence with the address, the name and the folder."""

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(jit.Stop) as error:
        jit.load_inception(None, False, "cpu")
    assert jit.INCEPTION_URL in error.value.args[0] and str(tmp_path / "checkpoints") in error.value.args[0]


@pytest.mark.parametrize("name", jit.INCEPTION_FILES)
def test_cached_weights_are_found_under_both_names(tmp_path, monkeypatch, weights_file, name):
    """Protects the download: who has the file from pytorch-fid or torch-fidelity needs no other."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).symlink_to(weights_file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a call would fail
    assert len(jit.load_inception(None, True, "cpu")[0]) == 95  # 94 convolutions and fc


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


def test_fid_is_that_of_torch_fidelity():
    """Protects N - 1 and the sign of each term: the recorded value, on the features of test_kid_... (same seed)."""
    ours = [jit.Moments() for _ in range(2)]
    for statistics, features in zip(ours, gaussian_features()):
        statistics.add(features)
    distance = jit.frechet_distance(ours[0].mean, ours[0].covariance(), ours[1].mean, ours[1].covariance())
    assert distance == pytest.approx(4.5309561082396925, rel=1e-12)


def test_streaming_equals_numpy():
    """Protects the merge formula: uneven batches, one of a single row, and a mean far from zero."""
    x = np.random.RandomState(0).standard_normal((57, 7)) + 1000
    statistics = jit.Moments()
    for part in np.split(x, [1, 20, 21, 50]):
        statistics.add(torch.tensor(part))
    assert statistics.n == 57
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance(), np.cov(x.T), atol=1e-12)  # sums of squares would leave 1e-9


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


def gaussian_features():
    rng = np.random.RandomState(3)
    rng.standard_normal((237, 50))  # the recorded numbers came after the logits above, from one generator
    a = torch.tensor(rng.standard_normal((120, 16)))
    return a, torch.tensor(rng.standard_normal((90, 16)) * 1.2 + 0.3)


def test_kid_is_that_of_torch_fidelity():
    """Protects kernel, subsets and their order: recorded."""
    value = jit.kid(*gaussian_features(), subsets=20, size=50)
    assert value == pytest.approx(0.36886200830355814, rel=1e-10)


def test_kid_is_unbiased():
    """Protects the left-out diagonal: two sets of one distribution average 0, within the standard error."""
    rng = np.random.RandomState(0)
    values = []
    for _ in range(300):
        a, b = (torch.tensor(rng.standard_normal((20, 8))) for _ in range(2))
        values.append(jit.kid(a, b, subsets=1))
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    assert min(values) < 0  # an unbiased estimate of 0 is sometimes negative


def shapes(n, seed):
    """Pictures 32 x 32: a bright square (even numbers) or striped disc (odd) in the upper left, on a varied ground."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:32, :32]
    pictures = []
    for i in range(n):
        centre, radius = rng.uniform(9, 15, 2), rng.uniform(4, 7)
        down, right = np.abs(y - centre[0]), np.abs(x - centre[1])
        inside = np.maximum(down, right) < radius
        if i % 2 == 1:
            inside = (np.hypot(down, right) < radius) & (x % 4 < 2)
        ground, colour = rng.uniform(0, 100, 3), rng.uniform(130, 255, 3)
        pictures.append(np.where(inside, colour[:, None, None], ground[:, None, None]))
    return torch.tensor(np.stack(pictures)).round().to(torch.uint8)


def statistics_of(images):
    statistics = jit.Moments()
    statistics.add(jit.random_features(images))
    return statistics


def test_rfd_sees_noise_blur_missing_classes_layout_and_repeats():
    """Protects what rfd is for: damage counts for more than another sample, and more damage for more than less."""
    reference, images = statistics_of(shapes(300, seed=0)), shapes(300, seed=1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def rfd(images):
        side = statistics_of(images)
        return jit.frechet_distance(side.mean, side.covariance(), reference.mean, reference.covariance())

    def noisy(level):
        return (images + level * noise).round().clamp(0, 255).to(torch.uint8)

    def blurred(width):
        padded = torch.nn.functional.pad(images.float(), [width // 2] * 4, mode="replicate")
        return torch.nn.functional.avg_pool2d(padded, width, stride=1).round().to(torch.uint8)

    floor = rfd(images)
    for mild, strong in ((noisy(20), noisy(35)), (blurred(3), blurred(9))):
        assert rfd(mild) > 1.5 * floor
        assert rfd(strong) > 1.5 * rfd(mild)
    assert rfd(shapes(600, seed=1)[::2]) > 3 * floor  # one class of two
    assert rfd(images.roll(16, 3)) > 10 * floor  # halves swapped
    assert rfd(images[:20].repeat(15, 1, 1, 1)) > 3 * floor  # twenty pictures again and again


def test_random_features_never_change():
    """Protects old results: the fixed network's numbers are recorded (fp32: 1e-5)."""
    features = jit.random_features(blocks(2, 32, 32))
    expected = [0.34902, 0.56986, 0.188359, 0.083148, 0.201053, 0.148936]
    expected += [0.113726, 0.883946, 0.275132, 0.062062, 0.15683, 0.246775]
    assert features.shape == (2, 496)
    assert np.abs(features[:, ::99].flatten().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 96)])
def test_random_features_of_all_sizes(size):
    """Protects small, grey and oblong pictures, and that a picture's features do not depend on its batch."""
    images = blocks(40, *size)
    features = jit.random_features(images)
    assert features.shape == (40, 496) and features.isfinite().all()
    assert torch.allclose(jit.random_features(images[17:18]), features[17:18], atol=1e-5)  # fp32
    assert torch.allclose(jit.random_features(images[:, :1]), jit.random_features(images[:, :1].repeat(1, 3, 1, 1)))


def test_features_refuse_images_in_minus_one_to_one(network):
    """Protects against floats in [-1, 1], nearly constant as 0 ... 255: every distance would then look excellent."""
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(AssertionError):
        jit.random_features(images)
    with pytest.raises(AssertionError):
        jit.inception_features(network, images)


def test_two_halves_give_the_whole():
    """Protects statistics gathered in parts of any size: the same as in one batch, to the last digits."""
    x = torch.tensor(np.random.RandomState(0).standard_normal((40, 5)))
    whole, halves = jit.Moments(), jit.Moments()
    whole.add(x)
    halves.add(x[:13])
    halves.add(x[13:])
    np.testing.assert_allclose(halves.mean, whole.mean, rtol=0, atol=1e-15)
    np.testing.assert_allclose(halves.covariance(), whole.covariance(), rtol=0, atol=1e-14)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of 12 pictures, 32 pixels, as PNG."""
    root = tmp_path_factory.mktemp("pictures")
    for name, seed in (("a", 0), ("b", 1)):
        (root / name).mkdir()
        for i, image in enumerate(shapes(12, seed)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / name / f"{i:02d}.png")
    return root


def command(*words):
    return jit.main(jit.parse_flags([str(word) for word in words]))


def test_eval_of_a_folder_is_the_distance_of_its_features(folders, capsys):
    """Protects the command: files, features, statistics and name, against the same by hand; stats in between."""
    statistics = folders / "b.npz"
    assert command("stats", folders / "b", "--features", "rfd", "--size", 32, "--to", statistics) == 0
    assert command("eval", folders / "a", "--features", "rfd", "--size", 32, "--reference", statistics) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    mu1, mu2 = (jit.random_features(shapes(12, seed)).double().mean(0).numpy() for seed in (0, 1))
    sigma1, sigma2 = (np.cov(jit.random_features(shapes(12, seed)).double().numpy().T) for seed in (0, 1))
    assert result["rfd_12"] == pytest.approx(jit.frechet_distance(mu1, sigma1, mu2, sigma2), rel=1e-6)
    assert not any("fid" in key for key in result), "rfd must not be called FID"
    assert "bias" in captured.err  # 12 images are few
    assert set(np.load(statistics)) == {"mu", "sigma", "n", "size"}


def test_eval_with_inception_weights_reports_their_hash(folders, weights_file, capsys):
    """Protects the honest report: fid_12, Inception Score, KID, and which weights they were measured with."""
    words = ["eval", folders / "a", "--size", 32, "--reference", folders / "b", "--inception", weights_file]
    assert command(*words) == 2  # not the weights of everyone's FID
    assert command(*words, "--inception-any-hash") == 0
    result = json.loads(capsys.readouterr().out)
    assert {"fid_12", "inception_score", "kid", "inception_sha256", "n", "reference"} <= set(result)


def test_errors_of_eval_are_one_sentence(folders, tmp_path, capsys):
    """Protects the user from tracebacks: unreadable and unfit statistics, sizes, single pictures, missing --size."""
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    np.savez(tmp_path / "unfit.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "few.npz", mu=np.zeros(20), sigma=np.eye(20))
    np.savez(tmp_path / "large.npz", mu=np.zeros(496), sigma=np.eye(496), size=64)
    np.savez(tmp_path / "single.npz", arr_0=np.zeros((1, 32, 32, 3), np.uint8))
    for name in ("bad", "unfit", "few", "large", "single"):
        reference = ["--reference", tmp_path / f"{name}.npz"]
        assert command("eval", folders / "a", "--features", "rfd", "--size", 32, *reference) == 2, name
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("jit.py eval: ") and "Traceback" not in last
    assert command("eval", folders / "a", "--features", "rfd", "--reference", folders / "b") == 2
    assert "--size" in capsys.readouterr().err


def test_statistics_of_other_programs(folders, tmp_path, capsys):
    """They hold mu and sigma alone: a distance all the same, on either side, without a number of images in its name."""
    features = jit.random_features(shapes(12, 0)).double().numpy()
    np.savez(tmp_path / "other.npz", mu=features.mean(0), sigma=np.cov(features.T))
    assert command("eval", tmp_path / "other.npz", "--features", "rfd", "--size", 32, "--reference", folders / "b") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"rfd", "source", "reference", "size", "n"}


def test_grey_runs_are_compared_with_grey_images(tmp_path, monkeypatch, capsys):
    """The reference of a run is what it was trained on, in its number of channels."""
    tiny = "--size 16 --model Ti/8 --depth 2 --width 32 --heads 2 --steps 1 --batch-size 4 --channels 1".split()
    monkeypatch.setattr(jit, "draw_preview", lambda *args: None)
    assert command("train", *tiny, "--out", tmp_path / "run", "--device", "cpu") == 0
    seen, features = [], jit.random_features
    monkeypatch.setattr(jit, "random_features", lambda images: seen.append(images.shape[1]) or features(images))
    words = ["--features", "rfd", "--n", 20, "--steps", 1, "--device", "cpu"]
    assert command("eval", tmp_path / "run", *words) == 0
    assert set(seen) == {1}


def test_broken_files_do_not_count(folders, tmp_path, monkeypatch, capsys):
    """A folder scores the same whether it is read into memory or, too large for that, file by file."""
    for i, path in enumerate(sorted((folders / "a").iterdir())):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes() if i else b"broken")
    results = []
    for limit in (jit.MEMORY_LIMIT, 0):
        monkeypatch.setattr(jit, "MEMORY_LIMIT", limit)
        words = ["--features", "rfd", "--size", 32, "--reference", folders / "b"]
        assert command("eval", tmp_path, *words) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["n"] == 11 and results[0]["rfd_11"] == pytest.approx(results[1]["rfd_11"], rel=1e-6)


def test_eval_sweeps_and_appends(tmp_path, capsys):
    """Protects the sweep over guidance and averages, and results of earlier calls in metrics.json."""
    tiny = "--size 16 --model Ti/8 --depth 2 --width 32 --heads 2 --steps 2 --batch-size 4 --sample-every 9".split()
    assert command("train", *tiny, "--out", tmp_path / "run", "--device", "cpu") == 0
    words = ["eval", tmp_path / "run", "--features", "rfd", "--n", 20, "--steps", 2, "--device", "cpu"]
    assert command(*words, "--cfg", "1,2", "--weights", "raw,ema1") == 0
    assert command(*words) == 0
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [(r["weights"], r["cfg"]) for r in results] == [
        ("raw", 1), ("raw", 2), ("ema1", 1), ("ema1", 2), ("ema1", 2)]  # fmt: skip
    assert results[3]["rfd_20"] == results[4]["rfd_20"]  # the same seeds, the same pictures
