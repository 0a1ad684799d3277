"""CIFAR-10 as a folder of images: 50,000 of 32 x 32 pixels in ten classes.

    python figures/cifar10.py                   to data/cifar10/CLASS/*.png: 170 MB, a minute
    python jit.py train --data data/cifar10 --size 32 --model S/4

The archive stays in torch.hub's cache, usually ~/.cache/torch/hub.
"""

import hashlib
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from common import ROOT, finish, jit
from PIL import Image
from style import script
from tqdm import tqdm

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the version without pickles
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def fetch():
    """The path of the archive, which is downloaded unless it is there; checked in any case."""
    path = Path(torch.hub.get_dir(), URL.rpartition("/")[2])
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path))
        except Exception as error:  # of the network or the disk
            hint = f"get {URL} and put it at {path}."
            raise jit.Stop(f"the download failed ({error}): {hint}") from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    jit.check(found == SHA256, f"{path} is damaged, its SHA-256 is another: delete it.")
    return path


def read_archive(path):
    """The training images (n, 32, 32, 3), classes (n,). A record: class, red, green, blue plane."""
    with tarfile.open(path) as archive:
        names = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
        files = [archive.extractfile(name).read() for name in names]
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0]


def unpack(folder):
    """Write the images to a folder beside it, then rename: it is there as a whole or not at all."""
    jit.check(not folder.exists(), f"{folder} is there already: choose another, or delete it.")
    images, labels = read_archive(fetch())
    part = folder.with_name(f".part-{folder.name}")
    try:
        for name in CLASSES:
            (part / name).mkdir(parents=True, exist_ok=True)
        for i, (image, label) in enumerate(zip(tqdm(images, "writing", unit="image"), labels)):
            Image.fromarray(image).save(part / CLASSES[label] / f"{i:05d}.png")
        os.replace(part, folder)
    finally:  # after Ctrl-C, say
        shutil.rmtree(part, ignore_errors=True)
    print(folder)


def main(words=None):
    parser = script(__doc__)
    default = ROOT / "data" / "cifar10"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="a new folder")
    args = parser.parse_args(words)
    return finish(lambda: unpack(args.folder))


if __name__ == "__main__":
    sys.exit(main())
