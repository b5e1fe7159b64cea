"""Normalising, shuffling and augmenting, each against the plain loop it stands for."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noprop.data import Normalization, augment, batch_indices


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def test_normalised_images_have_mean_zero_and_deviation_one_per_channel():
    x = pixels(500, 3, 5, 7)
    x[:, 1] //= 3  # unlike channels: statistics over all of them would show
    z = Normalization.of(x).apply(x).double()
    assert z.mean((0, 2, 3)).abs().max() < 1e-6
    assert (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_image_statistics_are_in_the_scale_of_one():
    x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert Normalization.of(x) == Normalization((0.5,), (0.5,))
    assert Normalization((0.5,), (0.25,)).apply(x).flatten().tolist() == pytest.approx([-2, 2])


def test_features_are_normalised_one_by_one_and_keep_their_digits_far_from_zero():
    """E[x²] - E[x]² in float32 would give a deviation of nothing, or none."""
    x = torch.randn(4000, 2, generator=seeded()) * torch.tensor([1.0, 50.0])
    x = x + torch.tensor([0.0, 100_000.0])
    norm = Normalization.of(x)
    assert norm.std == pytest.approx(x.double().std(0, correction=0).tolist(), rel=1e-9)
    assert norm.mean == pytest.approx(x.double().mean(0).tolist(), rel=1e-9)
    assert Normalization.of(x[:, :, None, None]) == norm  # (N, C, H, W) features: per channel


def test_statistics_do_not_depend_on_the_chunks(monkeypatch):
    x = pixels(103, 2, 4, 4)
    whole = Normalization.of(x)
    monkeypatch.setattr("noprop.data.batches.NUMBERS_AT_A_TIME", 64)
    pieces = Normalization.of(x)
    assert pieces.mean == whole.mean  # sums of whole numbers are exact
    assert pieces.std == pytest.approx(whole.std, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_feature_becomes_zero(value):
    x = torch.full((77, 1), value)
    norm = Normalization.of(x)
    assert norm.std == (1.0,)
    assert norm.apply(x).abs().max() < 1e-6 * max(1.0, value)


def test_rounding_noise_is_not_blown_up():
    """One unit in the last place in one example of 77 would become almost nine deviations."""
    x = torch.full((77, 1), 1e6)
    x[3] += 0.0625
    assert Normalization.of(x).std == (1.0,)


def test_applying_keeps_the_digits_of_features_far_from_zero():
    """x / std - mean / std in float32 would be off by some hundredths."""
    x = 1e5 + torch.randn(1000, 1, generator=seeded()).round(decimals=1)
    z = Normalization((1e5,), (0.3,)).apply(x)
    torch.testing.assert_close(z.double(), (x.double() - 1e5) / 0.3, atol=1e-6, rtol=1e-6)


def test_a_constant_channel_becomes_zero():
    x = torch.full((9, 1, 3, 3), 200, dtype=torch.uint8)
    assert Normalization.of(x).apply(x).abs().max() < 1e-6


def test_a_normalisation_survives_json():
    norm = Normalization.of(pixels(7, 3, 2, 2))
    saved = json.loads(json.dumps(dataclasses.asdict(norm)))
    assert Normalization(tuple(saved["mean"]), tuple(saved["std"])) == norm


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 3))
def test_batches_are_a_partial_permutation(n, batch_size, seed):
    batches = batch_indices(n, batch_size, seeded(seed))
    size = min(n, batch_size)
    assert batches.shape == (n // size, size)
    flat = batches.flatten()
    assert len(flat.unique()) == len(flat)
    assert int(flat.min()) >= 0
    assert int(flat.max()) < n


def test_each_epoch_leaves_out_others():
    """A shuffle inside batches only, or of whole batches, would leave the same ones out always."""
    generator = seeded()
    seen = {int(i) for _ in range(50) for i in batch_indices(10, 4, generator).flatten()}
    assert seen == set(range(10))  # missed with probability 10 * 0.2^50
    assert batch_indices(10, 4, seeded(1)).equal(batch_indices(10, 4, seeded(1)))


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0)])
def test_no_example_or_no_batch_is_refused(n, batch_size):
    with pytest.raises(ValueError, match="at least 1"):
        batch_indices(n, batch_size, seeded())


def candidates(image: torch.Tensor, padding: int, flip: bool) -> list[torch.Tensor]:
    """Every image that augmentation may make of one, by slicing."""
    height, width = image.shape[1:]
    framed = torch.zeros(len(image), height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
    framed[:, padding : padding + height, padding : padding + width] = image
    crops = [
        framed[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 100),
)
def test_augmented_images_are_crops_of_their_own_padded_image(
    channels, height, width, padding, flip, seed
):
    x = pixels(6, channels, height, width, seed=seed)
    out = augment(x, seeded(seed), padding=padding, flip=flip)
    assert out.is_contiguous()
    for image, made in zip(x, out, strict=True):
        assert any(made.equal(candidate) for candidate in candidates(image, padding, flip))


def test_every_offset_and_both_directions_come_equally_often():
    """18 outcomes of 9000 draws: each within 5 deviations of 500; fails with probability < 1.1e-5.

    One offset or one coin for the whole batch, or an offset that is never drawn, would fail.
    """
    image = pixels(1, 1, 3, 4)
    options = [c.flatten().tolist() for c in candidates(image[0], 1, flip=True)]
    assert len({tuple(option) for option in options}) == 18
    out = augment(image.expand(9000, -1, -1, -1), seeded(), padding=1, flip=True)
    counts = torch.tensor([int((out.flatten(1) == torch.tensor(o)).all(1).sum()) for o in options])
    assert int(counts.sum()) == 9000
    score = (counts - 500) / (9000 * (1 / 18) * (17 / 18)) ** 0.5
    assert score.abs().max() < 5


def test_no_padding_and_no_flip_change_and_draw_nothing():
    x, generator = pixels(5, 3, 4, 4), seeded()
    before = generator.get_state()
    assert augment(x, generator, padding=0, flip=False).equal(x)
    assert generator.get_state().equal(before)


def test_a_cut_out_square_is_centred_on_every_pixel_equally_often():
    """Of an image of 5 × 6 ones, 3 × 3 pixels around a centre become 0; some lie outside.

    30 centres of 9000 draws: each within 5 deviations of 300; fails with probability < 2e-5.
    """
    x = torch.ones(9000, 2, 5, 6, dtype=torch.uint8)
    out = augment(x, seeded(), padding=0, flip=False, cutout=3)
    assert out[:, 0].equal(out[:, 1])
    counts = []
    for row in range(5):
        for column in range(6):
            wanted = torch.ones(5, 6, dtype=torch.uint8)
            wanted[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 0
            counts.append(int((out[:, 0] == wanted).all(2).all(1).sum()))
    assert sum(counts) == 9000
    score = (torch.tensor(counts) - 300) / (9000 * (1 / 30) * (29 / 30)) ** 0.5
    assert score.abs().max() < 5
    assert x.all()


def test_augmentation_draws_from_its_generator_and_leaves_its_input_alone():
    x = pixels(50, 1, 6, 6)
    original, global_state = x.clone(), torch.get_rng_state()
    first, again, other = (augment(x, seeded(s), padding=2, flip=True) for s in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert x.equal(original)
    assert torch.get_rng_state().equal(global_state)


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding"):
        augment(pixels(1, 1, 2, 2), seeded(), padding=-1, flip=False)
