"""Drawings as the digits of MNIST and scikit-learn were made."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noprop.data import load_dataset
from noprop.data.drawings import as_digit, is_digits
from noprop.errors import DataError


def page(size: int = 280) -> Tensor:
    return torch.zeros(1, size, size, dtype=torch.uint8)


def cross(top: int, left: int, side: int) -> Tensor:
    """A sign without symmetry: a bar at the left, and one below."""
    image = page()
    image[0, top : top + side, left : left + side // 4] = 255
    image[0, top + side - side // 4 : top + side, left : left + side] = 255
    return image


def middle(image: Tensor) -> Tensor:
    """Row and column of the centre of mass."""
    mass, at = image[0].double(), torch.arange(image.shape[1]).double()
    return torch.stack([mass.sum(1) @ at, mass.sum(0) @ at]) / mass.sum()


def test_the_centre_of_mass_is_in_the_middle_and_the_box_has_20_pixels():
    """MNIST's centre is pixel 14 (measured on 2,000 digits: 14.01 and 14.00), to half a pixel."""
    found = as_digit(cross(30, 150, 100), 28)
    rows, columns = (found[0].any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    assert [int(i[-1] - i[0]) + 1 for i in (rows, columns)] == [20, 20]
    assert (middle(found) - 14).abs().max() <= 0.5
    assert abs(float(rows.double().mean()) - 14) > 1  # the middle of its box is another


def test_place_and_size_do_not_matter():
    """Where 280 pixels are a multiple of the box, the result is the same to the bit."""
    first = as_digit(cross(10, 20, 100), 28)
    assert torch.equal(as_digit(cross(160, 100, 100), 28), first)
    larger = as_digit(cross(40, 30, 200), 28)
    assert (larger.double() - first.double()).abs().mean() < 2  # of 255


def test_the_aspect_ratio_is_kept_as_in_mnist():
    image = page()
    image[0, 40:240, 130:150] = 255  # ten times as high as wide
    found = as_digit(image, 28)
    assert int(found[0].any(dim=1).sum()) == 20
    assert int(found[0].any(dim=0).sum()) == 2


@pytest.mark.parametrize("size", [8, 28])
def test_dark_ink_on_light_paper_is_light_ink_on_black(size):
    """Also ink and paper of a photograph, which are grey."""
    drawn = cross(60, 60, 160)
    wanted = as_digit(drawn, size)
    assert torch.equal(as_digit(255 - drawn, size), wanted)
    photograph = (200 - drawn.float() * 120 / 255).to(torch.uint8)
    assert torch.equal(as_digit(photograph, size), wanted)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_empty_page_is_an_error(grey):
    with pytest.raises(DataError, match="nothing is drawn"):
        as_digit(page().fill_(grey), 28)


def test_a_digit_of_scikit_learn_fills_the_height_in_steps_of_a_pixel():
    """Each number counts 16 black or white pixels, kept as multiples of 15; the middle is kept."""
    found = as_digit(cross(30, 150, 100), 8)
    assert found.shape == (1, 8, 8)
    assert not (found % 15).any()
    assert int(found.max()) == 240
    assert bool(found[0, 0].any())
    assert bool(found[0, -1].any())
    assert not found[0, :, 0].all()
    columns = found[0].any(dim=0).nonzero()[:, 0]
    assert (int(columns[0]), int(columns[-1])) == (1, 6)


def test_grey_squares_alone_are_digits():
    assert is_digits((1, 28, 28))
    assert not any(map(is_digits, [(3, 32, 32), (1, 28, 20), (64,)]))


def redrawn(images: Tensor) -> Tensor:
    """Digits on pages of 280x280 pixels, each at a random place and of a random size."""
    g, pages = torch.Generator().manual_seed(0), []
    for image in images:
        side = int(torch.randint(120, 260, (1,), generator=g))
        top, left = torch.randint(0, 281 - side, (2,), generator=g).tolist()
        new = torch.zeros(1, 280, 280)
        large = F.interpolate(image[None].float(), (side, side), mode="bilinear")[0]
        new[:, top : top + side, left : left + side] = large
        pages.append(new.round().to(torch.uint8))
    return torch.stack(pages)


@pytest.mark.real_data
def test_a_digit_of_mnist_that_is_drawn_anywhere_becomes_itself(real_data):
    """Resized without cropping it is as far from itself as another digit of its class."""
    data = load_dataset("mnist", data_dir=real_data("mnist"), download=False)
    examples = data.train.take(torch.arange(100))
    pages = redrawn(examples.x)
    found = torch.stack([as_digit(p, 28) for p in pages])
    resized = F.interpolate(pages.float(), (28, 28), mode="bilinear", antialias=True)

    def distance(images: Tensor) -> float:
        return float((images.double() - examples.x.double()).abs().mean())

    assert distance(found) < 12
    assert distance(resized) > 30
