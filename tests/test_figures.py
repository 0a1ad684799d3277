"""Tests of the scripts in figures/, but for ablations.py and the lesson's drawings; each says what it protects."""

import hashlib
import io
import json
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "figures")]
import agreement  # noqa: E402
import cifar10  # noqa: E402
import common  # noqa: E402
import health  # noqa: E402
import lesson  # noqa: E402
import metrics  # noqa: E402
import rfd  # noqa: E402

import jit  # noqa: E402

SCRIPTS = sorted(path for path in (ROOT / "figures").glob("*.py") if "__main__" in path.read_text())


def refuse(*args, **settings):
    raise AssertionError("this must not be started")


def save_run(folder, names=jit.SHAPES, data="shapes"):
    """The run of a network that has learned nothing."""
    net = jit.JiT(size=16, patch=8, depth=1, width=16, heads=2, bottleneck=4, classes=len(names))
    config = dict(network=net.arguments, flow={}, names=list(names), data=str(data))
    networks = {"model": net, "model_ema1": net}
    jit.save_checkpoint(folder / jit.CHECKPOINT, networks, torch.optim.Adam(net.parameters()), 1, config)
    return folder


def blocks(n, height, width, seed=0):
    """Pictures of 4 x 4 plain colours, uint8 (n, 3, height, width)."""
    colours = np.random.RandomState(seed).randint(0, 256, (n, 3, 4, 4))
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    return torch.tensor(colours[:, :, rows][:, :, :, columns], dtype=torch.uint8)


def save_images(folder, images):
    """uint8 (n, 3, H, W) as PNG files."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    return folder


# ---- Every script ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help(path, monkeypatch, capsys):
    """--help tells what there is and starts nothing; it was once the start of five trainings."""
    for module, name in ((subprocess, "Popen"), (subprocess, "run"), (jit, "train"), (jit, "load_run")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    assert f"python figures/{path.name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    [agreement, "nowhere"], [health, "nowhere"], [lesson, "nowhere"], [rfd, "nowhere"],
    [metrics, "rfd", "--data", "nowhere"],
], ids=lambda words: words[0].__name__)  # fmt: skip
def test_a_run_that_is_not_there(words, monkeypatch, capsys):
    """One sentence and exit 2 at once, before minutes of training a classifier."""
    monkeypatch.setattr(agreement, "train", refuse)
    script, *words = words
    assert script.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "nowhere" in captured.err and captured.out == ""


def test_from_a_notebook_of_another_python(monkeypatch):
    """Its MPLBACKEND, unknown here, does not stop the scripts; another choice stays."""
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    for backend, left in (("module://matplotlib_inline.backend_inline", None), ("svg", "svg")):
        monkeypatch.setenv("MPLBACKEND", backend)
        runpy.run_path(str(ROOT / "figures" / "common.py"))
        assert common.os.environ.get("MPLBACKEND") == left


def test_how_a_script_ends(capsys):
    """A mistake is a sentence with exit 2, Ctrl-C gives 130; what nobody foresaw keeps its traceback."""

    def fail(error):
        raise error

    assert common.exit_code("x.py", lambda: None) == 0
    assert common.exit_code("x.py", lambda: fail(KeyboardInterrupt())) == 130
    assert common.exit_code("x.py", lambda: fail(jit.Stop("a sentence.", 2))) == 2
    assert common.exit_code("x.py", lambda: fail(OSError(28, "No space left on device"))) == 2
    with pytest.raises(ValueError):
        common.exit_code("x.py", lambda: fail(ValueError()))
    assert capsys.readouterr().err.count("x.py: ") == 3


def test_a_picture_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Ctrl-C while a figure is drawn leaves the old one."""
    figure, path = lesson.Figure(), tmp_path / "a.png"
    common.save_figure(figure, path, 50)
    before = path.read_bytes()

    def half(path, dpi):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        common.save_figure(figure, path, 50)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_read_log(tmp_path):
    """Damaged lines are skipped; of a step that was written again the last line counts; steps come in order."""
    assert common.read_log(tmp_path) == []
    lines = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": 2}', '{"step": 3, "lo{"step": 4, "loss": 9}', "[1]", "7",
             '{"step": 2, "loss": 1.5}', '{"step": 3, "loss": 1}', '{"step": 4, "lo']  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found = [(line["step"], line["loss"]) for line in common.read_log(tmp_path)]
    assert found == [(1, 3), (2, 1.5), (3, 1)]


def test_version_of_shapes(monkeypatch):
    """A new outline, or another range of a factor, gives another version: old classifiers are not asked about it."""
    versions = {common.version_of_shapes()}
    outlines = jit.shape_outlines()
    for change in (
        lambda: monkeypatch.setitem(jit.FACTORS, "size", (0.1, 0.2)),
        lambda: monkeypatch.setattr(jit, "shape_outlines", lambda: outlines | {"disc": outlines["ring"]}),
    ):
        common.version_of_shapes.cache_clear()
        change()
        versions.add(common.version_of_shapes())
    common.version_of_shapes.cache_clear()
    assert len(versions) == 3


# ---- rfd.py ----------------------------------------------------------------------------------------------------------


def squares_and_discs(n, seed):
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


def test_rfd_sees_noise_blur_missing_classes_layout_and_repeats():
    """Protects what rfd is for: damage counts for more than another sample, and more damage for more than less."""
    reference, images = rfd.statistics([squares_and_discs(300, seed=0)]), squares_and_discs(300, seed=1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def distance(images):
        return jit.frechet_distance(*rfd.statistics([images]), *reference)

    def noisy(level):
        return (images + level * noise).round().clamp(0, 255).to(torch.uint8)

    def blurred(width):
        padded = torch.nn.functional.pad(images.float(), [width // 2] * 4, mode="replicate")
        return torch.nn.functional.avg_pool2d(padded, width, stride=1).round().to(torch.uint8)

    floor = distance(images)
    for mild, strong in ((noisy(20), noisy(35)), (blurred(3), blurred(9))):
        assert distance(mild) > 1.5 * floor
        assert distance(strong) > 1.5 * distance(mild)
    assert distance(squares_and_discs(600, seed=1)[::2]) > 3 * floor  # one class of two
    assert distance(images.roll(16, 3)) > 10 * floor  # halves swapped
    assert distance(images[:20].repeat(15, 1, 1, 1)) > 3 * floor  # twenty pictures again and again


def test_random_features_never_change():
    """Protects old results: the fixed network's numbers are recorded (fp32: 1e-5)."""
    features = rfd.random_features(blocks(2, 32, 32))
    expected = [0.34902, 0.56986, 0.188359, 0.083148, 0.201053, 0.148936]
    expected += [0.113726, 0.883946, 0.275132, 0.062062, 0.15683, 0.246775]
    assert features.shape == (2, 496)
    assert np.abs(features[:, ::99].flatten().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 96)])
def test_random_features_of_all_sizes(size):
    """Protects small, grey and oblong pictures, and that a picture's features do not depend on its batch."""
    images = blocks(40, *size)
    features = rfd.random_features(images)
    assert features.shape == (40, 496) and features.isfinite().all()
    assert torch.allclose(rfd.random_features(images[17:18]), features[17:18], atol=1e-5)  # fp32
    grey, colour = images[:, :1], images[:, :1].repeat(1, 3, 1, 1)
    assert torch.allclose(rfd.random_features(grey), rfd.random_features(colour))


def test_random_features_refuse_images_in_minus_one_to_one():
    """Protects against floats in [-1, 1], nearly constant as 0 ... 255: every distance would then look excellent."""
    with pytest.raises(AssertionError):
        rfd.random_features(torch.zeros(1, 3, 32, 32))
    with pytest.raises(jit.Stop):
        rfd.random_features(torch.zeros(1, 3, 7, 32, dtype=torch.uint8))


def test_rfd_of_a_folder_is_the_distance_of_its_features(tmp_path, capsys):
    """Protects the command: files, features, statistics and the name, against the same by hand."""
    pictures = {name: squares_and_discs(12, seed) for seed, name in enumerate("ab")}
    for name, images in pictures.items():
        save_images(tmp_path / name, images)
    assert rfd.main([str(tmp_path / "a"), "--size", "32", "--reference", str(tmp_path / "b")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    features = [rfd.random_features(images).double().numpy() for images in pictures.values()]
    by_hand = jit.frechet_distance(*(part for f in features for part in (f.mean(0), np.cov(f.T))))
    assert result["rfd_12"] == pytest.approx(by_hand, rel=1e-6)
    assert not any("fid" in key for key in result), "rfd must not be called FID"
    assert rfd.main([str(tmp_path / "a"), "--size", "32"]) == 2
    assert "--reference" in capsys.readouterr().err
    assert rfd.main([str(tmp_path / "a"), "--reference", "shapes"]) == 2
    assert "--size" in capsys.readouterr().err


def test_rfd_of_a_run(tmp_path, capsys):
    """Against its training data, by number of samples; beside it the floor, which is far below."""
    assert rfd.main([str(save_run(tmp_path)), "--n", "30", "--sampling-steps", "2", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"rfd_30", "floor", "run", "reference"} and result["reference"] == "shapes"
    assert 0 < result["floor"] < 0.5 * result["rfd_30"]


# ---- metrics.py ------------------------------------------------------------------------------------------------------


def gaussian_features():
    """Two sets of features, in the order in which torch-fidelity's numbers were recorded."""
    rng = np.random.RandomState(3)
    rng.standard_normal((237, 50))  # logits came first
    a = torch.tensor(rng.standard_normal((120, 16)))
    return a, torch.tensor(rng.standard_normal((90, 16)) * 1.2 + 0.3)


def test_kid_is_that_of_torch_fidelity():
    """Protects kernel, subsets and their order: recorded from torch-fidelity 0.4.0."""
    value = metrics.kid(*gaussian_features(), subsets=20, size=50)
    assert value == pytest.approx(0.36886200830355814, rel=1e-10)


def test_kid_is_unbiased():
    """Protects the left-out diagonal: two sets of one distribution average 0, within the standard error."""
    rng = np.random.RandomState(0)
    values = []
    for _ in range(300):
        a, b = (torch.tensor(rng.standard_normal((20, 8))) for _ in range(2))
        values.append(metrics.kid(a, b, subsets=1))
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    assert min(values) < 0  # an unbiased estimate of 0 is sometimes negative


def test_truth_that_frechet_distances_are_compared_with():
    """The closed forms agree with jit.frechet_distance, in few dimensions, for full and for low rank."""
    for given, trace in (metrics.full_rank(np.random.RandomState(0), d=30),
                         metrics.low_rank(np.random.RandomState(0), d=30, n=12)):  # fmt: skip
        truth = metrics.textbook(lambda s, trace=trace: trace)(*given)
        assert jit.frechet_distance(*given) == pytest.approx(truth, rel=1e-9)


def test_damage_is_told_in_a_table(monkeypatch, capsys):
    """Each kind of damage is done to uint8 pictures, at least five of them, and gets a row. Here nothing is scored."""
    monkeypatch.setattr(metrics, "REFERENCE", 100)
    monkeypatch.setattr(metrics, "N", 500)
    monkeypatch.setattr(metrics, "take_turns", lambda repeats, work: np.ones((repeats, 1)))

    def statistics(batches):
        (images,) = batches
        assert images.dtype == torch.uint8 and len(images) > 4 and images.shape[2:] == (64, 64)
        return np.zeros(1), np.eye(1)

    monkeypatch.setattr(metrics, "statistics", statistics)
    labels = torch.arange(1200) % 10
    pixels = torch.randint(256, (1200, 3, 1, 1)).expand(-1, -1, 64, 64).byte()
    monkeypatch.setattr(metrics, "load_pictures", lambda data: (pixels, labels, 10))
    assert metrics.main(["rfd"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 20


# ---- health.py -------------------------------------------------------------------------------------------------------


def write_log(folder, losses):
    """A log with one line for each hundred steps; no time falls into the last bin."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [dict(step=100 * (i + 1), loss=loss, loss_by_t=[loss] * 9 + [None]) for i, loss in enumerate(losses)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_loss_of_a_run(tmp_path):
    """loss.png in its folder, even where a bin of t stayed empty; only the last tenth counts on the right."""
    write_log(tmp_path, [1.0] * 18 + [0.25, 0.75])
    assert health.main([str(tmp_path)]) == 0
    assert Image.open(tmp_path / "loss.png").size == (900, 320)
    by_t = health.mean_by_t(common.read_log(tmp_path)[-2:])
    assert by_t[:9].tolist() == [0.5] * 9 and by_t.mask[9]


def test_healthy_and_four_others(tmp_path, monkeypatch):
    """health.png of five runs that are there; nothing is trained anew, and it is drawn beside the old one."""
    for name in health.RUNS:
        write_log(tmp_path / "runs" / "health" / name, [1.0] * 10)
        sheet = Image.new("RGB", (1320, 584), "white")
        sheet.save(tmp_path / "runs" / "health" / name / "samples-001000.png")
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(health, "ROOT", tmp_path)
    monkeypatch.setattr(health, "train", lambda name, flags: None)
    assert health.main([]) == 0
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["health.png"]


def test_flags_of_the_five_runs():
    """jit.py understands them; and what is written into the panels belongs to one of the five, and to the step or t."""
    for flags, _ in health.RUNS.values():
        jit.parse_flags(["train", *flags.split()])
    assert {name for name, *_ in health.NOTES} == set(health.RUNS)
    assert {against for _, against, *_ in health.NOTES} == {"step", "t"}


def test_pictures_of_a_sheet(tmp_path, monkeypatch):
    """Triangle, heart, cross and moon are cut out of the first row of the sheet that jit.py draws, with no caption."""
    folder = tmp_path / "runs" / "health" / "healthy"
    folder.mkdir(parents=True)
    grey = (torch.arange(40) % 6 * 51).to(torch.uint8)  # multiples of 51 are kept when colours are rounded
    images = grey.view(40, 1, 1, 1).expand(40, 3, 64, 64)
    jit.draw_sheet(folder / "samples-001000.png", images, ["name"] * 40)
    monkeypatch.setattr(health, "ROOT", tmp_path)
    pictures = health.pictures("healthy")
    side = pictures.shape[0] // 2
    middles = [pictures[y, x, 0] for y in (side // 2, side * 3 // 2) for x in (66, 198)]
    assert middles == grey[[2, 5, 6, 7]].tolist()
    assert pictures.shape == (260, 264, 3)
    assert (pictures.sum(2) % 51 == 0).all(), "a caption is in the picture"


# ---- lesson.py, pictures of a run ------------------------------------------------------------------------------------


def test_pictures_of_a_run(tmp_path, monkeypatch):
    """The strip, the animation, which shows every step and the end, and samples; the lesson comes, too."""
    monkeypatch.setattr(lesson, "PICTURES", {"flow": lesson.Figure})
    run, out = save_run(tmp_path), tmp_path / "out"
    assert lesson.main([str(run), "--out", str(out)]) == 0
    names = ["denoising.gif", "denoising.png", "flow.png", "samples.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    animation = Image.open(out / "denoising.gif")
    assert animation.n_frames == 11 and animation.size == (2 * 96 + 4, 2 * 96 + 20)


def test_other_data_overwrites_nothing(tmp_path, monkeypatch):
    """The pictures of a run on one's own data go to its own folder, not over those of the repository."""
    run = save_run(tmp_path, names=["cat"], data="pets")
    monkeypatch.setattr(lesson, "ROOT", tmp_path / "repository")
    assert lesson.main([str(run)]) == 0
    names = {jit.CHECKPOINT, "samples.png", "denoising.png", "denoising.gif"}
    assert {path.name for path in tmp_path.iterdir()} == names


# ---- agreement.py ----------------------------------------------------------------------------------------------------


def always(answer, classes):
    """A classifier that gives the same answer to every picture."""
    net = agreement.make_classifier(classes)
    net[-1].weight.data.zero_()
    net[-1].bias.data.copy_(torch.arange(classes + 1) == answer)
    return net


def save_classes(folder, names=("left", "right"), n=12):
    """Grey pictures 20 x 20: the left half is light, or the right one; the lightness is the number of the picture."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.zeros((20, 20), np.uint8)
            pixels[:, 10 * label : 10 * label + 10] = 100 + i
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def test_agreement_of_a_run(tmp_path, monkeypatch, capsys):
    """A classifier that always says "ring" agrees with one sample of ten; it is trained once and kept."""
    monkeypatch.setattr(agreement, "ROOT", tmp_path)
    monkeypatch.setattr(agreement, "train", lambda draw, classes: always(1, classes))
    monkeypatch.setattr(agreement, "report_on_itself", lambda net, data: None)
    words = [str(save_run(tmp_path)), "--n", "20", "--cfg", "1"]
    assert agreement.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("0.100") and "star       0.00  taken for: ring" in lines
    assert [path.name for path in tmp_path.glob("runs/*")] == [f"agreement-{common.version_of_shapes()}.pt"]
    monkeypatch.setattr(agreement, "train", refuse)
    assert agreement.main(words) == 0


def test_agreement_on_own_pictures(tmp_path, monkeypatch, capsys):
    """Another folder has another classifier, with as many answers as it has classes, and "none"."""
    monkeypatch.setattr(agreement, "ROOT", tmp_path)
    monkeypatch.setattr(agreement, "train", lambda draw, classes: always(1, classes))
    monkeypatch.setattr(agreement, "broken", lambda n, draw, classes: draw(10, 1.0)[0])  # 2,000 take seconds
    folder = save_classes(tmp_path / "pictures")
    run = save_run(tmp_path, names=["left", "right"], data=folder)
    assert agreement.main([str(run), "--n", "9", "--cfg", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "held-out images: 0.500 right" in lines and "held-out broken pictures: 0.000 none" in lines
    assert "left       0.00  taken for: right" in lines and lines[-1].endswith("0.444")
    assert [path.name for path in tmp_path.glob("runs/*")] == [f"agreement-{common.version_of(folder)}.pt"]
    assert common.version_of(folder) not in (common.version_of_shapes(), common.version_of(tmp_path))
    torch.save(always(1, 3).state_dict(), agreement.weights_path(folder))
    assert agreement.main([str(run)]) == 2
    assert "knows other classes" in capsys.readouterr().err


@pytest.mark.parametrize("names, there, sentence", [
    ([], ["left", "right"], "has no classes"),
    (["left"], ["left"], "has no classes"),
    (["left", "right"], ["left"], "has no classes"),
    (["left", "right"], ["left", "up"], "has other classes"),
    (["left", "right"], [], "is no folder"),
])  # fmt: skip
def test_agreement_needs_classes(names, there, sentence, tmp_path, monkeypatch, capsys):
    """A run without classes, or whose data are gone or are others now, is refused at once, in one sentence."""
    monkeypatch.setattr(agreement, "train", refuse)
    folder = save_classes(tmp_path / "pictures", there, n=2)
    assert agreement.main([str(save_run(tmp_path, names=names, data=folder))]) == 2
    captured = capsys.readouterr().err
    assert sentence in captured and captured.count("\n") == 1


def test_held_out_pictures_are_not_trained_on(tmp_path):
    """Every tenth of a class, whatever the size; the others are trained on; grey ones have three equal channels."""
    folder = str(save_classes(tmp_path / "pictures"))
    lightness = {}
    for held_out in (False, True):
        pixels, labels = agreement.read_folder(folder, 20, held_out)
        assert pixels.dtype == torch.uint8 and torch.equal(pixels, pixels[:, :1].expand(-1, 3, -1, -1))
        assert torch.equal(pixels[:, 0, 0, 0] == 0, labels == 1)  # dark on the left
        lightness[held_out] = (pixels.amax((1, 2, 3)) - 100).view(2, -1).tolist()
    assert lightness == {False: [[0, *range(2, 11)]] * 2, True: [[1, 11]] * 2}
    assert agreement.real_images(folder, 28)[0].shape == (4, 3, 28, 28)
    assert not agreement.can_judge(str(save_classes(tmp_path / "single", n=1)))


def test_pictures_of_a_folder_are_moved_not_mirrored(tmp_path):
    """As they are at widen 0, moved a little above that; those of the classes that were asked for."""
    pixels, labels = agreement.read_folder(str(save_classes(tmp_path / "pictures")), 64, False)
    draw, wanted = agreement.drawer(pixels, labels), torch.tensor([1, 0, 1, 1, 0])
    torch.manual_seed(0)
    still, found = draw(5, 0.0, wanted)
    assert torch.equal(found, wanted) and still.shape == (5, 3, 64, 64)
    distances = (still[:, None] - (pixels / 127.5 - 1)).abs().amax((2, 3, 4))
    assert distances.amin(1).max() < 1e-4 and torch.equal(labels[distances.argmin(1)], wanted)
    moved, found = draw(200, 1.5)
    assert torch.equal(moved[..., 32:].mean((1, 2, 3)) > moved[..., :32].mean((1, 2, 3)), found == 1)
    assert moved.min() >= -1 and moved.max() <= 1 and 50 < found.sum() < 150
    assert (moved.flatten(1).mean(1) - moved.flatten(1).mean(1)[0]).abs().max() > 0.01
    assert agreement.broken(17, draw, 2).shape == (17, 3, 64, 64)


def test_pictures_of_the_classifier():
    """Renderings are those of jit.py in ranges as wide as said; broken ones are as many as asked for."""
    torch.manual_seed(0)
    images, _ = agreement.draw_shapes(2, 0.0, labels=torch.tensor([3, 3]))
    assert torch.equal(images[0], images[1])  # every factor in the middle of its range
    assert agreement.broken(17, agreement.draw_shapes, 10).shape == (17, 3, 64, 64)
    assert agreement.imperfect(images).isfinite().all()
    net = agreement.train(agreement.draw_shapes, 10, steps=4, n=8)
    assert agreement.classify(images, net).max() <= agreement.classes_of(net) == 10


def test_a_classifier_learns_own_pictures(tmp_path):
    """Left and right are told apart after a few steps, so what it is trained on are pictures with their labels."""
    folder = str(save_classes(tmp_path / "pictures"))
    net = agreement.train(agreement.drawer(*agreement.read_folder(folder, 64, False)), 2, steps=30, n=8)
    pixels, labels = agreement.real_images(folder, 20)
    assert torch.equal(agreement.classify(pixels / 127.5 - 1, net), labels)


# ---- cifar10.py ------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the cache, laid out like the real one: ten images, every second one black."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "hub").mkdir()
    path = tmp_path / "hub" / "cifar-10-binary.tar.gz"
    planes = blocks(1, 32, 32)[0].numpy().tobytes()
    with tarfile.open(path, "w:gz") as file:
        for i in range(1, 6):
            record = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i}.bin")
            record.size = 2 * 3073
            file.addfile(record, io.BytesIO(bytes([i]) + planes + bytes([9]) + bytes(3072)))
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_cifar10_becomes_a_folder_that_jit_reads(archive, tmp_path, capsys):
    """A record is a class and 3 planes of 32 x 32; classes keep their names; a second call writes nothing."""
    folder = tmp_path / "cifar"
    assert cifar10.main([str(folder)]) == 0
    data = jit.open_data(str(folder), (3, 32, 32))
    assert sorted(data.names[label] for label in data.labels) == sorted(
        ["automobile", "bird", "cat", "deer", "dog"] + ["truck"] * 5)  # fmt: skip
    assert torch.equal(data.pixels[0], blocks(1, 32, 32)[0])
    assert cifar10.main([str(folder)]) == 2
    assert "there already" in capsys.readouterr().err


def test_cifar10_of_a_damaged_file(archive, tmp_path, capsys):
    """A file that a stopped download left in the cache: one sentence that says which, and no folder."""
    archive.write_bytes(archive.read_bytes()[:100])
    assert cifar10.main([str(tmp_path / "cifar")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "cifar").exists()


def test_cifar10_without_network(archive, tmp_path, monkeypatch, capsys):
    """One sentence with the address and where to put the file."""

    def fail(*args):
        raise OSError("no network")

    archive.unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert cifar10.main([str(tmp_path / "cifar")]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and cifar10.URL in captured and str(archive) in captured


def test_cifar10_that_is_stopped_leaves_nothing(archive, tmp_path, monkeypatch):
    """Ctrl-C while images are written: no folder that looks complete."""

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10.Image, "fromarray", stop)
    assert cifar10.main([str(tmp_path / "cifar")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
