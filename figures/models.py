"""The paper's models (Tables 5 and 6): parameters and multiply-adds, counted and as printed there.

    python figures/models.py

A multiply-add is counted once. Parameters are those that are trained; the cost is that of one
conditional forward of one image, with in-context tokens and the products of attention: the
convention that fits the paper's numbers. On torch's "meta" device nothing is computed.
"""

import torch
from common import jit
from style import script
from torch.utils.flop_counter import FlopCounterMode

PAPER = {  # model, size: millions of parameters, billions of multiply-adds
    ("B/16", 256): (131, 25), ("B/32", 512): (133, 26), ("B/64", 1024): (141, 30),
    ("L/16", 256): (459, 88), ("L/32", 512): (462, 89), ("H/16", 256): (953, 182),
    ("H/32", 512): (956, 183), ("G/16", 256): (2007, 384), ("G/32", 512): (2012, 385),
}  # fmt: skip


def arguments(model, size, classes=1000):
    """The arguments of jit.JiT for "B/16", say, and the side of the images."""
    name, _, patch = model.partition("/")
    return jit.MODELS[name] | dict(size=size, patch=int(patch), classes=classes)


def count_cost(model, size, classes=1000):
    """(trained parameters, multiply-adds of one forward of one image)."""
    with torch.device("meta"):
        net = jit.JiT(**arguments(model, size, classes))
        inputs = torch.empty(1, *net.shape), torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return parameters, counter.get_total_flops() // 2


def main():
    script(__doc__).parse_args()
    print("model  size  tokens  numbers of a patch  width  bottleneck  "
          "parameters/M (paper)  multiply-adds/G (paper)")  # fmt: skip
    for model, size in [("Ti/16", 64), ("S/16", 256), *PAPER]:
        network, (parameters, products) = arguments(model, size), count_cost(model, size)
        paper = PAPER.get((model, size), ("-", "-"))
        tokens, numbers = (size // network["patch"]) ** 2, 3 * network["patch"] ** 2
        width, bottleneck = network["width"], network["bottleneck"]
        print(f"{model:5} {size:5} {tokens:7} {numbers:19} {width:6} {bottleneck:11} "
              f"{parameters / 1e6:13.1f} {f'({paper[0]})':>7} "
              f"{products / 1e9:16.2f} {f'({paper[1]})':>7}")  # fmt: skip


if __name__ == "__main__":
    main()
