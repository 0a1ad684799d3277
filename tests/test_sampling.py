"""Section 3 of jit.py: solver, guidance and images, against closed forms, the paper's counts and
samples of the official code."""

import gc
import math
import weakref

import pytest
import torch
from conftest import PREDS, blank, filled, normal

import jit

FLOW = jit.Flow(noise_scale=2.0)


def gaussian_flow(mean=0.3, scale=0.4):
    """Exact velocity for N(mean, scale^2) from noise N(0, 1), and where the path from z ends."""

    def velocity(z, t):
        velocity.calls.append(t)
        variance = (t * scale) ** 2 + (1 - t) ** 2
        return mean + (t * scale**2 - (1 - t)) / variance * (z - t * mean)

    velocity.calls = []
    return velocity, lambda z: mean + scale * z


# The solver


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_order_of_the_solver(solver, order):
    """Twice the steps, half or a quarter of the error, on an equation with a known solution."""
    velocity, solution = gaussian_flow()
    z, errors = normal(100, dtype=torch.float64), []
    for steps in (40, 80):
        end = jit.integrate(velocity, z, steps, solver)
        errors.append((end - solution(z)).abs().max().item())
    assert math.isclose(math.log2(errors[0] / errors[1]), order, abs_tol=0.15)
    assert errors[1] < (0.05 if order == 1 else 0.005)


def test_number_of_evaluations_and_last_step():
    """Heun-50 costs 99 evaluations, Euler-50 50, none at t = 1, where v divides by 0: the last step
    is Euler's."""
    for solver, count in (("heun", 99), ("euler", 50)):
        velocity, _ = gaussian_flow()
        path = []
        last = jit.integrate(velocity, normal(2), 50, solver, lambda *seen: path.append(seen))
        assert len(velocity.calls) == count and len(path) == 51
        assert torch.equal(last, jit.integrate(gaussian_flow()[0], normal(2), 50, solver))
        assert math.isclose(max(velocity.calls), 0.98)
        assert [t for t, _, _ in path] == [i / 50 for i in range(51)]
        *_, (t, z, x_pred), (_, end, image) = path
        tangent = z + 0.02 * gaussian_flow()[0](z, t)  # where it leads at t = 1
        torch.testing.assert_close(end, tangent), torch.testing.assert_close(x_pred, tangent)
        assert torch.equal(end, image) and torch.equal(end, last)


@pytest.mark.parametrize("wrong", ["Heun", "euler2", ""])
def test_a_wrong_solver_is_an_error(wrong):
    """A typing error meant Euler, at half of the quality, without a word."""
    with pytest.raises(ValueError):
        jit.integrate(lambda z, t: z, torch.zeros(1), 2, wrong)


def test_no_step_is_kept_alive():
    """Every step of 50 images of 256 pixels is 40 MB: while an image is drawn, the states of the
    steps before are gone, but for a few."""
    states, alive = [], []

    def net(z, t, y):
        alive.append(sum(state() is not None for state in states))
        output = torch.zeros_like(z)
        states.extend([weakref.ref(z), weakref.ref(output)])
        return output

    gc.disable()  # no help
    try:
        y = torch.zeros(2, dtype=torch.long)
        list(jit.sample_images(net, y, FLOW, (3, 4, 4), cfg=1.0, sampling_steps=30))
    finally:
        gc.enable()
    assert len(alive) == 59 and max(alive) < 12


# Guidance


def test_guidance_costs_what_it_must():
    """No forward without class where w = 1, and both halves in one: labels of all forwards."""

    def labels(cfg, interval, times):
        record = []
        velocity = jit.guided_velocity(blank(record), torch.tensor([1, 0]), FLOW, cfg, interval)
        for t in times:
            velocity(torch.zeros(2, 3, 4, 4), t)
        return [y.tolist() for _, _, y in record]

    one, both = [1, 0], [1, 0, -1, -1]
    assert labels(2.0, (0.1, 1.0), [0.0, 0.1, 0.5, 0.99]) == [one, one, both, both]
    assert labels(1.0, (0.0, 1.0), [0.0, 0.5]) == [one, one]
    assert labels(2.0, (0.0, 0.7), [0.0, 0.7, 0.71]) == [both, one, one]  # from 0: t = 0 is inside
    assert labels(0.0, (0.1, 1.0), [0.0, 0.5]) == [both, both]  # without class: at every t


def test_defaults_are_the_papers():
    """50 Heun steps, guidance 2 for t in (0.1, 1): seen in the forwards, and in the image."""
    record, y = [], torch.zeros(1, dtype=torch.long)
    list(jit.sample_images(blank(record), y, FLOW, (3, 4, 4)))
    assert len(record) == 99 and sum(len(z) for z, _, _ in record) == 99 + 88

    def net(z, t, y):  # its class adds 0.1 to x: guidance 2 makes 0.2 of it
        return torch.zeros_like(z) + 0.1 * (y >= 0).view(-1, 1, 1, 1)

    flow = jit.Flow(t_clip=1e-6)
    (image,) = jit.sample_images(net, y, flow, (3, 4, 4))
    assert (image == round(1.2 * 127.5)).all()
    (image,) = jit.sample_images(net, y, flow, (3, 4, 4), cfg=1.0)
    assert (image == round(1.1 * 127.5)).all()


@pytest.mark.parametrize("pred", PREDS)
def test_sampler_reads_the_output_as_the_loss_does(pred):
    """A perfect network for one image x draws that image from any noise, whatever it predicts."""
    flow, y = jit.Flow(pred=pred, t_clip=1e-6), torch.tensor([0, 1])
    x, noise = normal(2, 3, 16, 16, seed=5).clamp(-1, 1), normal(2, 3, 16, 16, seed=6)

    def perfect(z, t, y):
        image, time = x.repeat(len(z) // 2, 1, 1, 1), t.view(-1, 1, 1, 1)
        eps = (z - time * image) / (1 - time)
        return {"x": image, "eps": eps, "v": image - eps}[pred]

    velocity = jit.guided_velocity(perfect, y, flow, cfg=3.0)
    if pred == "eps":  # (z - eps) / t: at t = 0 v is lost by the clip
        v = velocity(jit.interpolate(x, noise, torch.tensor([0.4, 0.4])), 0.4)
        torch.testing.assert_close(v, x - noise, atol=1e-4, rtol=0)
    else:
        end = jit.integrate(velocity, noise, 20)
        torch.testing.assert_close(end, x, atol=1e-4, rtol=0)  # fp32 over 39 evaluations


# Images


def test_image_depends_on_its_number_and_seed_only():
    """Image i is the same whatever the batch size and the number of images."""
    net, y = filled(), torch.arange(7) % 5

    def draw(n, **options):
        images = jit.sample_images(net, y[:n], FLOW, net.shape, sampling_steps=3, **options)
        return torch.cat(list(images)).int()

    together, apart, fewer = draw(7), draw(7, batch_size=3), draw(4, batch_size=2)
    assert together.shape == (7, 3, 16, 16)
    assert (together - apart).abs().max() <= 1  # a sum in another order may round to the next level
    assert (together[:4] - fewer).abs().max() <= 1
    assert (draw(1, seed=1) - together[:1]).abs().float().mean() > 5


def test_noise_of_an_image_is_its_own():
    """N(0, 1) for each (seed, number), the same in any batch; streams of training differ."""
    noise = jit.image_noise((3, 16, 16), 0, range(7))
    assert torch.equal(jit.image_noise((3, 16, 16), 0, range(4, 6)), noise[4:6])
    assert not any(torch.equal(noise[i], noise[j]) for i in range(7) for j in range(i))
    assert not torch.equal(jit.image_noise((3, 16, 16), 1, range(7)), noise)
    assert abs(noise.mean()) < 0.06 and math.isclose(noise.std(), 1, abs_tol=0.04)  # 4 sigma
    seeds = {jit.mix_seed(0, i) for i in range(100)} | {jit.mix_seed(0, i, 0) for i in range(100)}
    assert len(seeds | {jit.mix_seed(1, 2), jit.mix_seed(2, 1), jit.mix_seed(1, 2, 0)}) == 203


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sampling_starts_from_scaled_noise(scale):
    """What the network sees first is noise_scale times the noise of the images, in all batches."""
    record, y, flow = [], torch.zeros(3, dtype=torch.long), jit.Flow(noise_scale=scale)
    images = jit.sample_images(blank(record), y, flow, (1, 2, 2), batch_size=2, sampling_steps=1)
    assert [len(x) for x in images] == [2, 1]
    expected = scale * jit.image_noise((1, 2, 2), 0, range(3))
    assert torch.equal(torch.cat([z for z, _, _ in record]), expected)


def test_images_are_rounded_and_clipped_at_the_end():
    """-1 is 0, 1 is 255; beyond is clipped (no wrap-around), between is rounded; bf16 too."""
    levels = torch.arange(256)
    for offset in (-0.4, 0, 0.4):
        assert torch.equal(jit.to_uint8((levels + offset) / 127.5 - 1), levels.to(torch.uint8))
    assert jit.to_uint8(torch.tensor([-9.0, -1.0, 1.0, 9.0])).tolist() == [0, 0, 255, 255]
    assert jit.to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]
