"""The tools of figures/ that measure, and datasets.py: what they say is so."""

import gzip
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import speed
import torch
from conftest import ROOT

import jit


def test_what_speed_measures():
    """Sleep passes by the clock and not of the CPU; and Heun-50 makes 99 evaluations, of which
    guidance in (0.1, 1) doubles 88."""
    cost = speed.measure(lambda: time.sleep(0.1), torch.device("cpu"))
    assert cost["clock"] > 0.1 and cost["cpu"] < 0.05
    assert speed.count_forwards(50) == 99 + 88
    assert speed.count_forwards(50, cfg=1.0) == 99
    assert speed.count_forwards(50, solver="euler", interval=(0.0, 1.0)) == 100
    args = speed.parse_flags("--model Ti/16 --size 32 --batch 2 --classes 3 --steps 2".split())
    for work in speed.works(args, torch.device("cpu")).values():
        assert speed.measure(work, torch.device("cpu"))["clock"] > 0


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Small archives of the two data sets, laid out as the real ones; {name: path}."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    paths = {name: folder / name for name in datasets.FILES}
    pixels = bytes(784) + bytes([255] * 784)
    paths["t10k-images-idx3-ubyte.gz"].write_bytes(gzip.compress(bytes(16) + pixels))
    paths["t10k-labels-idx1-ubyte.gz"].write_bytes(gzip.compress(bytes(8) + bytes([7, 3])))
    with zipfile.ZipFile(paths["tiny-imagenet-200.zip"], "w") as file:
        for place in ("train/n02504458/images/n02504458_0.JPEG", "val/images/val_0.JPEG",
                      "train/n02504458/n02504458_boxes.txt",
                      "train/n00000000/images/n00000000_0.JPEG"):  # fmt: skip
            file.writestr(f"tiny-imagenet-200/{place}", datasets.png(np.zeros((64, 64), np.uint8)))
    for name, (address, _) in datasets.FILES.items():
        md5 = hashlib.md5(paths[name].read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.FILES, name, (address, md5))
    return paths


def test_data_sets_become_folders_that_jit_reads(archives):
    """MNIST: headers of 16 and 8 bytes. Tiny ImageNet: of the photographs for training those of the
    classes that we use."""
    assert datasets.main(["digits", "d"]) == 0
    data = jit.open_data("d", (1, 28, 28))
    assert data.names == ["3", "7"]
    assert [pixels.float().mean() for pixels in data.batch([0, 1])[0]] == [255, 0]
    assert datasets.main(["photos", "p"]) == 0
    assert [str(path) for path in Path("p").rglob("*.*")] == ["p/african_elephant/n02504458_0.JPEG"]


def test_data_sets_are_there_as_a_whole_or_not_at_all(archives, tmp_path, monkeypatch, capsys):
    """A damaged archive, one that cannot be got, and Ctrl-C: a sentence each, and no folder."""

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "png", stop)
        assert datasets.main(["digits", "d"]) == 130
    archive = archives["tiny-imagenet-200.zip"]
    archive.write_bytes(archive.read_bytes()[:100])
    capsys.readouterr()
    assert datasets.main(["photos", "d"]) == 2
    assert "is damaged" in capsys.readouterr().err.splitlines()[-1]  # after the bar
    archive.unlink()
    assert datasets.main(["photos", "d"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stanford.edu/{archive.name}" in said and str(archive) in said
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    assert datasets.main(["digits", "d"]) == 0 and datasets.main(["digits", "d"]) == 2  # is there


def test_gpu_check_runs_on_a_cpu():
    """One of its parts, with tiny sizes; `TINY=1 figures/gpu_check.sh` runs all, in 45 seconds."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # this Python is its `python`
    environment = os.environ | dict(TINY="1", OUT=str(Path("out").resolve()), PATH=path)
    command = ["bash", ROOT / "figures" / "gpu_check.sh", "2"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    report = Path("out/report.txt").read_text()
    assert "-- exit code 0" in report and "images_per_s" in report
    assert len(list(Path("out").glob("*.png"))) == 1
