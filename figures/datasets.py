"""Public data sets as folders of images, CLASS/*, to train on with `--data FOLDER`.

    python figures/datasets.py digits     data/digits: the 10,000 test images of MNIST, 28 px, 2 MB
    python figures/datasets.py photos     data/photos: 24 classes of Tiny ImageNet, 64 px, 248 MB

Those of two pictures. What was downloaded stays in torch.hub's cache, usually ~/.cache/torch/hub.
"""

import gzip
import hashlib
import io
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from common import ROOT, finish, jit
from PIL import Image
from style import script
from tqdm import tqdm

FILES = {  # name: where it is, and the MD5 that is published with it
    "t10k-images-idx3-ubyte.gz": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/", "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte.gz": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/", "ec29112dd5afa0611ce80d1b7f02629c"),
    "tiny-imagenet-200.zip": (
        "http://cs231n.stanford.edu/", "90528d7ca1a48142e341f4ef8d21d0de"),
}  # fmt: skip
PHOTOS = dict(
    n02504458="african_elephant", n09193705="alp", n07720875="bell_pepper",
    n02132136="brown_bear", n02917067="bullet_train", n09256479="coral_reef",
    n02099601="golden_retriever", n01443537="goldfish", n01910747="jellyfish",
    n02056570="king_penguin", n01882714="koala", n02165456="ladybug", n09332890="lakeside",
    n07749582="lemon", n02509815="lesser_panda", n02129165="lion", n02279972="monarch",
    n07747607="orange", n07873807="pizza", n04146614="school_bus", n09428293="seashore",
    n04285008="sports_car", n04398044="teapot", n04486054="triumphal_arch",
)  # fmt: skip


def fetch(name):
    """The path of one of FILES, which is downloaded unless it is there; checked in any case."""
    folder, md5 = FILES[name]
    path = Path(torch.hub.get_dir(), name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(folder + name, str(path))
        except Exception as error:  # of the network or the disk
            hint = f"get {folder + name} and put it at {path}."
            raise jit.Stop(f"the download failed ({error}): {hint}") from error
    found = hashlib.md5(path.read_bytes()).hexdigest()
    jit.check(found == md5, f"{path} is damaged, its MD5 is another: delete it.")
    return path


def png(pixels):
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def digits():
    """Yields the place of each image in the folder, and its bytes; so do photos."""
    images = gzip.decompress(fetch("t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress(fetch("t10k-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)  # after a header
    labels = np.frombuffer(labels, np.uint8, offset=8)
    for i, (label, image) in enumerate(zip(labels, images)):
        yield f"{label}/{i:05d}.png", png(image)


def photos():
    with zipfile.ZipFile(fetch("tiny-imagenet-200.zip")) as archive:
        for name in archive.namelist():  # tiny-imagenet-200/train/n02504458/images/NAME.JPEG
            path = Path(name)
            if path.suffix == ".JPEG" and path.parts[1] == "train" and path.parts[2] in PHOTOS:
                yield f"{PHOTOS[path.parts[2]]}/{path.name}", archive.read(name)


def unpack(images, folder):
    """Write the images to a folder beside it, then rename: it is there as a whole or not at all."""
    jit.check(not folder.exists(), f"{folder} is there already: choose another, or delete it.")
    part = folder.with_name(f".part-{folder.name}")
    try:
        for place, content in tqdm(images, "writing", unit="image"):
            (part / place).parent.mkdir(parents=True, exist_ok=True)
            (part / place).write_bytes(content)
        os.replace(part, folder)
    finally:  # after Ctrl-C, say
        shutil.rmtree(part, ignore_errors=True)
    print(folder)


def main(words=None):
    parser = script(__doc__)
    known = dict(digits=digits, photos=photos)
    parser.add_argument("name", choices=known)
    parser.add_argument("folder", nargs="?", type=Path, help="a new folder; None: data/NAME")
    args = parser.parse_args(words)
    folder = args.folder or ROOT / "data" / args.name
    return finish(lambda: unpack(known[args.name](), folder))


if __name__ == "__main__":
    sys.exit(main())
