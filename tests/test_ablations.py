"""Tests of figures/ablations.py; each says what it protects. A few seconds."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "figures")]
import ablations  # noqa: E402
import jit  # noqa: E402

def flags(tmp_path, *words):
    return ablations.parse_flags([*words, "--runs", str(tmp_path), "--figures", str(tmp_path)])

@pytest.mark.parametrize("scale", ablations.SCALES)
@pytest.mark.parametrize("name", ablations.STUDIES)
def test_studies_are_valid(name, scale, tmp_path):
    """A typo in a table must not show after an hour of training: all settings are accepted."""
    args, cells = flags(tmp_path, name, "--scale", scale), ablations.STUDIES[name](ablations.SCALES[scale]).cells
    assert len({(cell.panel, cell.row, cell.column) for cell in cells}) == len(cells)
    assert len({ablations.settings_of(cell, args).out + ablations.key_of(cell, args) for cell in cells}) == len(cells)
    for cell in cells:
        jit.check_lowest(ablations.sampling_of(cell, args))

@pytest.mark.parametrize("scale", ablations.SCALES)
def test_networks_build(scale, tmp_path):
    """Every kind of network takes the images of its study; only as deep here as in-context tokens need."""
    parts = "size patch bottleneck norm mlp rope qk_norm context_tokens".split()
    runs = {out: s for name in ablations.STUDIES for out, (s, _) in ablations.runs_of(name, flags(tmp_path, name, "--scale", scale)).items()}
    for s in {tuple(getattr(s, part) for part in parts): s for s in runs.values()}.values():
        net = jit.JiT(ablations.dataclasses.replace(s, classes=10, depth=2, context_start=1))
        x = torch.zeros(1, 3, s.size, s.size)
        assert net(x, torch.zeros(1), torch.zeros(1, dtype=torch.long)).shape == x.shape

def test_settings_are_those_of_the_paper(tmp_path):
    """FACTS of Tables 2, 3 and 10: no RoPE, qk-norm, in-context tokens, bottleneck; (a) has 768 numbers a patch, (b) 48."""
    for name in ("nine", "shift", "precond"):
        for s, cells in ablations.runs_of(name, flags(tmp_path, name)).values():
            assert (s.rope, s.qk_norm, s.context_tokens, s.bottleneck, s.norm, s.mlp) == (False, False, 0, 0, "rms", "swiglu")
            assert 3 * s.patch**2 == (48 if "(b)" in cells[0].panel else 768)
            assert 48 < s.width < 768
    shared = [set(ablations.runs_of(name, flags(tmp_path, name))) for name in ("nine", "shift", "precond", "bottleneck")]
    assert [len(shared[0] & other) for other in shared[1:]] == [3, 3, 1]  # trained once, shown twice


@pytest.fixture(autouse=True)
def same_signals():
    """The script and jit.train set handlers, which the next test must not inherit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)

def test_a_stopped_network_goes_on_and_is_drawn(tmp_path, monkeypatch):
    """A study that was stopped repeats no step, and trains or draws nothing twice."""
    args = flags(tmp_path / "a", "shift", "--scale", "toy")
    (s, cells), *_ = ablations.runs_of("shift", args).values()
    original, calls = jit.training_loss, []

    def stop_in_third_step(*inputs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*inputs)

    monkeypatch.setattr(jit, "training_loss", stop_in_third_step)
    with pytest.raises(jit.Stop):
        ablations.work(s, cells, args)
    monkeypatch.setattr(jit, "training_loss", original)
    assert ablations.steps_done(s, cells, args) == 3
    ablations.work(s, cells, args)
    assert [line["step"] for line in jit.read_log(s.out)] == [1, 2, 3, 4, 5, 6]
    assert ablations.steps_done(s, cells, args) == s.steps + ablations.SCORING * len(cells)

    def refuse(*inputs):
        raise AssertionError("done before")

    monkeypatch.setattr(jit, "sample_images", refuse)
    monkeypatch.setattr(jit, "training_loss", refuse)
    ablations.work(s, cells, args)

    table = tmp_path / "a" / "shift.md"
    assert ablations.main(flags(tmp_path / "a", "shift", "--scale", "toy", "--draw-only")) == 0
    assert "not run" in table.read_text() and "14.44" in table.read_text()
    table.write_text(table.read_text() + "Why it differs.\n")
    ablations.write_table("shift", ablations.STUDIES["shift"](ablations.SCALES["toy"]), args)
    assert table.read_text().count("Why it differs.") == 1  # notes written by hand survive
    assert (tmp_path / "a" / "shift.png").stat().st_size > 10_000

def test_a_study_runs_in_processes_of_its_own(tmp_path):
    """The way a user takes, processes included: here one network for the twelve cells of a study, each scored once."""
    args = flags(tmp_path, "guidance", "--scale", "toy", "--jobs", "1")
    ablations.train_all("guidance", args)
    (run,) = ablations.runs_of("guidance", args)
    results = json.loads((Path(run) / "results.json").read_text())
    assert len([key for key in results if key.startswith("heun")]) == 12
