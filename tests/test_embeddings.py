"""Class embeddings: the medoid by brute force, frames, and what a learned table is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noprop.embeddings import (
    Embedding,
    class_medoids,
    denoising_error,
    nearest_class,
    one_hot_embeddings,
    orthogonal_embeddings,
    random_embeddings,
    separation,
)


def brute_force_medoid(points):
    """Least lower median of the distances to the *other* points, from the full float64 matrix."""
    points = points.double().flatten(1)
    n = len(points)
    distance = (points[:, None] - points[None]).square().sum(2).sqrt()
    others = distance[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)
    return others.median(dim=1).values.argmin()  # torch's median is the lower one


def brute_force_medoids(x, y, num_classes):
    members = [(y == k).nonzero()[:, 0] for k in range(num_classes)]
    return torch.stack([m[brute_force_medoid(x[m])] for m in members])


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 20_000, 2**26])
@pytest.mark.parametrize("n", [40, 41, 120, 301])
def test_medoids_are_those_of_the_full_distance_matrix(n, chunk_bytes):
    """Odd and even classes; a mean or an upper median for the lower one is red."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 2, 3, generator=generator)
    y = torch.randint(3, (n,), generator=generator)
    found = class_medoids(x, y, 3, chunk_bytes=chunk_bytes)
    assert torch.equal(found, brute_force_medoids(x, y, 3))
    assert torch.equal(y[found], torch.arange(3))


@given(st.integers(3, 24), st.integers(0, 2**32))
def test_medoids_of_small_classes(n, seed):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    found = class_medoids(x, torch.zeros(n, dtype=torch.int64), 1)
    assert found.item() == brute_force_medoid(x)


def test_the_median_and_not_the_mean_chooses():
    """Four points near 0 and three far ones: the mean distance would choose another."""
    x = torch.tensor([[0.0], [1.0], [2.1], [3.0], [90.0], [100.0], [110.0]])
    y = torch.zeros(7, dtype=torch.int64)
    assert class_medoids(x, y, 1).item() == brute_force_medoid(x)
    distance = (x - x.T).abs()
    assert class_medoids(x, y, 1).item() != distance.mean(1).argmin()


def test_classes_of_one_and_two():
    x = torch.tensor([[5.0, 5.0], [0.0, 0.0], [1.0, 0.0]])
    found = class_medoids(x, torch.tensor([1, 0, 0]), 2)
    assert found[1] == 0
    assert found[0] in (1, 2)  # both are equally typical


def test_a_class_without_examples_is_named():
    with pytest.raises(ValueError, match="class 1 has no example"):
        class_medoids(torch.zeros(2, 1), torch.tensor([0, 2]), 3)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_a_common_offset_does_not_choose(offset):
    """Squares of 1e5 would bury distances near 1: float32 keeps 7 digits, the squares need 10."""
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + offset
    y = torch.zeros(200, dtype=torch.int64)
    assert torch.equal(class_medoids(x, y, 1), brute_force_medoids(x, y, 1))


@pytest.mark.parametrize(("m", "d"), [(1, 1), (3, 3), (10, 20), (10, 784)])
def test_orthogonal_rows_where_there_is_room(m, d):
    weight = orthogonal_embeddings(m, d, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight @ weight.T, torch.eye(m), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("m", "d"), [(100, 20), (10, 3), (5, 4)])
def test_unit_rows_of_a_frame_where_there_is_not(m, d):
    """Length one each; before the stretch the columns are orthonormal, a tight frame."""
    weight = orthogonal_embeddings(m, d, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(m))
    frame = torch.nn.init.orthogonal_(torch.empty(m, d), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frame.T @ frame, torch.eye(d), atol=1e-5, rtol=0)
    torch.testing.assert_close(weight, frame / frame.norm(dim=1, keepdim=True))


def test_random_rows_have_mean_square_length_one():
    """Σ of 200 x 50 squares over d: |score| > 5 has probability < 1e-6 a seed."""
    weight = random_embeddings(200, 50, torch.Generator().manual_seed(0))
    score = (weight.square().sum() / 200 - 1) / (2 / (200 * 50)) ** 0.5
    assert score.abs() < 5


def test_random_tables_are_functions_of_the_generator():
    for make in (random_embeddings, orthogonal_embeddings):
        one, two, other = (make(4, 3, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_nearest_class_by_brute_force(scale):
    """Rows of unequal length: the largest product alone would favour the long ones."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 4, generator=generator) * torch.arange(1, 8)[:, None] * scale
    z = torch.randn(1000, 4, generator=generator) * 5 * scale
    expected = (z[:, None].double() - weight.double()).square().sum(2).argmin(1)
    assert torch.equal(nearest_class(z, weight), expected)
    assert not torch.equal((z @ weight.T).argmax(1), expected)


def test_separation():
    lengths, least = separation(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 1.5]]))
    torch.testing.assert_close(lengths, torch.tensor([5.0, 1.0, 1.5]))
    assert least == 0.5
    assert separation(one_hot_embeddings(5))[1] == pytest.approx(2**0.5)
    assert separation(torch.ones(3, 4))[1] == 0  # a collapse is visible


def test_a_learned_table_is_a_parameter_and_a_fixed_one_is_not():
    fixed = Embedding(one_hot_embeddings(3), learned=False)
    learned = Embedding(one_hot_embeddings(3), learned=True)
    assert not fixed.learned
    assert not list(fixed.parameters())
    assert learned.learned
    assert [p.shape for p in learned.parameters()] == [(3, 3)]
    assert set(fixed.state_dict()) == set(learned.state_dict()) == {"weight"}
    learned(torch.tensor([1, 1])).sum().backward()
    assert learned.weight.grad is not None
    assert torch.equal(learned.weight.grad.sum(1), torch.tensor([0.0, 6.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_guess_is_a_convex_combination(dtype):
    generator = torch.Generator().manual_seed(0)
    embedding = Embedding(random_embeddings(4, 3, generator).to(dtype), learned=False)
    logits = torch.randn(6, 4, generator=generator).to(dtype)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    none = torch.zeros(3, dtype=dtype)
    rows = [sum((p[i, k] * embedding.weight[k] for k in range(4)), none) for i in range(6)]
    expected = torch.stack(rows)
    torch.testing.assert_close(embedding.expectation(logits), expected)
    sure = torch.tensor([[0.0, 200.0, 0.0, 0.0]], dtype=dtype)
    assert torch.equal(embedding.expectation(sure)[0], embedding.weight[1])


def test_the_guess_keeps_its_digits_under_autocast():
    weight = random_embeddings(4, 3, torch.Generator().manual_seed(0))
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    embedding = Embedding(weight, learned=True)
    plain = embedding.expectation(logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding.expectation(logits), plain)


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    embedding = Embedding(one_hot_embeddings(4), learned=False)
    target = 0.9 * one_hot_embeddings(4)[y] + 0.1 / 4
    expected = -(target * logits.log_softmax(1)).sum(1)
    found = denoising_error(logits, y, embedding, "cross-entropy", 0.1)
    torch.testing.assert_close(found, expected)
