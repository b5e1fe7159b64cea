"""Forward-Forward against the published rule by hand, and both inferences by brute force."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.embeddings import Embedding, one_hot_embeddings
from noprop.errors import ConfigError
from noprop.methods.ff import (
    ForwardForwardStack,
    GoodnessLayer,
    SoftmaxUnit,
    direction,
    hybrids,
    random_masks,
    wrong_labels,
)
from noprop.recipes import RECIPES
from noprop.run_settings import TrainConfig
from noprop.task import Task
from noprop.training.optimizers import Optimizer, descend, learning_rate
from tools import rng

M, B, SIDE, WIDTH, LAYERS, PEER = 3, 6, 4, 8, 3, 0.03


def stack(**options: Any) -> ForwardForwardStack:
    """Three layers of eight units in float64, whose goodness is near the threshold."""
    sizes = [SIDE**2, *[WIDTH] * LAYERS]
    layers = [
        GoodnessLayer(n, sizes[n - 1], sizes[n], rng(n), peer=PEER) for n in range(1, LAYERS + 1)
    ]
    softmax = SoftmaxUnit(WIDTH * (LAYERS - 1), M)
    for unit in (*layers, softmax):
        unit.module.double()
    with torch.no_grad():
        for unit in layers:
            unit.layer.weight.mul_(1.4)
            unit.layer.bias.normal_(0, 0.1, generator=rng(unit.number + 10))
        softmax.layer.weight.normal_(generator=rng(20))
    embedding = Embedding(one_hot_embeddings(M), learned=False)
    return ForwardForwardStack(layers, softmax, embedding, **options)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(B, 1, SIDE, SIDE, dtype=torch.float64, generator=rng(seed))
    return x, torch.tensor([0, 1, 2, 0, 1, 2])


# -- the published rule, by hand -------------------------------------------------------------------


def rows_to_mean_square_one(x: Tensor) -> Tensor:
    return torch.stack([row / (1e-7 + (row @ row / len(row)) ** 0.5) for row in x])


class Script:
    """The rule of the published script: gradients that are ascended, and their averages."""

    def __init__(self, method: ForwardForwardStack):
        layers = method.layers
        self.weights = [unit.layer.weight.detach().clone() for unit in layers]
        self.biases = [unit.layer.bias.detach().clone() for unit in layers]
        self.softmax = method.softmax.layer.weight.detach().clone()
        self.means = [torch.full((WIDTH,), 0.5, dtype=torch.float64) for _ in layers]
        self.averages = [torch.zeros_like(p) for p in self.parameters]

    @property
    def parameters(self) -> list[Tensor]:
        pairs = zip(self.weights, self.biases, strict=True)
        return [*(p for pair in pairs for p in pair), self.softmax]

    def states(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Activities of the layers, and the normalized states, the input's first."""
        states, normalized = [], [rows_to_mean_square_one(x)]
        for w, b in zip(self.weights, self.biases, strict=True):
            states.append(torch.clamp(normalized[-1] @ w.T + b, min=0))
            normalized.append(rows_to_mean_square_one(states[-1]))
        return states, normalized

    def gradients(self, x: Tensor, y: Tensor, draws: torch.Generator) -> list[Tensor]:
        """dW and db of each layer and of the softmax, divided by the number of cases."""
        one_hot = torch.eye(M, dtype=torch.float64)

        def labelled(label: Tensor) -> Tensor:
            return torch.cat([label, x.flatten(1)[:, M:]], dim=1)

        neutral = self.states(labelled(torch.full((B, M), 1 / M, dtype=torch.float64)))[1]
        read = torch.cat(neutral[2:], dim=1)
        logits = read @ self.softmax.T
        wrong = wrong_labels(logits, y, draws)
        found = []
        passes = [self.states(labelled(one_hot[label])) for label in (y, wrong)]
        for layer in range(LAYERS):
            dw, db = 0, 0
            for (states, normalized), is_real in zip(passes, (True, False), strict=True):
                h = states[layer]
                p = 1 / (1 + torch.exp(-((h * h).sum(1, keepdim=True) - WIDTH)))
                if is_real:
                    means = self.means[layer] = 0.9 * self.means[layer] + 0.1 * h.mean(0)
                    change = (1 - p) * h + PEER * (means.mean() - means)  # where h is 0 as well
                else:
                    change = -p * h
                dw, db = dw + change.T @ normalized[layer], db + change.sum(0)
            found += [dw / B, db / B]
        return [*found, (one_hot[y] - logits.softmax(1)).T @ read / B]

    def update(self, gradients: list[Tensor], gain: float, decay: float) -> None:
        """Average the gradients, and move the weights: by 0.01, of the softmax by 0.1."""
        rates = [(0.01, decay if p.ndim == 2 else 0.0) for p in self.parameters[:-1]]
        rates.append((0.1, 3 * decay))
        for p, g, average, (rate, d) in zip(
            self.parameters, gradients, self.averages, rates, strict=True
        ):
            average.mul_(0.9).add_(0.1 * g)
            p.add_(gain * rate * (average - d * p))


def gradients(method: ForwardForwardStack, x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
    read = method.signals(x, y, rng(seed))
    for unit in method.units:
        unit.loss(read, y, rng()).total.backward()
    found = [p.grad for p in method.parameters()]
    return [g for g in found if g is not None]


def test_the_gradients_are_those_of_the_published_rule():
    """Of weights and biases of all layers and the softmax, with units that are off and on."""
    method, (x, y) = stack(), batch()
    script = Script(method)
    wanted = script.gradients(x, y, rng(5))
    found = gradients(method, x, y, 5)
    assert len(found) == 2 * LAYERS + 1
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, -want, rtol=1e-10, atol=1e-12)
    for unit, means in zip(method.layers, script.means, strict=True):
        torch.testing.assert_close(unit.mean_activity, means)
    positives = method.signals(x, y, rng(5)).preactivations[0][:B]
    assert 0.1 < (positives < 0).double().mean() < 0.9


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_forty_updates_are_those_of_the_published_script(decay):
    """Averages of gradients, rates, the fall of the rate in the second half, and decay.

    SGD at a tenth of the script's rate sums what the script averages. It also averages the decayed
    weights, over the last ten updates: after n, nine of n decays are due. Without decay all agree.
    """
    method, epochs, batches = stack(), 10, 4
    config = TrainConfig(
        optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=decay, schedule="constant-linear"
    )
    optimizers = []
    for unit in method.units:
        groups = unit.parameter_groups()
        if not decay:
            groups = [group | {"weight_decay": 0.0} for group in groups]
        optimizers.append(Optimizer(config, groups))
    scripts = [Script(method), Script(method)]
    for n in range(epochs * batches):
        x, y = batch(n)
        gradients(method, x, y, n)
        progress = (n + 0.5) / (epochs * batches)
        for optimizer in optimizers:
            descend(optimizer, learning_rate(config, progress), 0.0)
        for script, d in zip(scripts, (decay, 0.0), strict=True):
            script.update(script.gradients(x, y, rng(n)), min(1.0, 2 * (1 - progress)), d)
    for p, with_decay, without in zip(
        method.parameters(), *(s.parameters for s in scripts), strict=True
    ):
        if not decay:
            torch.testing.assert_close(p.detach(), with_decay, rtol=1e-10, atol=1e-12)
        elif p.ndim == 2:
            effect, error = (with_decay - without).norm(), (p.detach() - with_decay).norm()
            assert 0.1 < error / effect < 0.35


def test_the_terms_are_the_logs_of_the_probabilities_of_the_truth():
    """In nats: -log p of positives, -log(1 - p) of negatives, p the logistic of G - n."""
    method, (x, y) = stack(), batch()
    read = method.signals(x, y, rng())
    for unit, a in zip(method.layers, read.preactivations, strict=True):
        p = torch.sigmoid(a.detach().relu().square().sum(1) - WIDTH)
        terms = unit.loss(read, y, rng()).terms
        assert terms.keys() == {"positive", "negative"}
        torch.testing.assert_close(terms["positive"].detach(), -p[:B].log().mean())
        torch.testing.assert_close(terms["negative"].detach(), -(1 - p[B:]).log().mean())


def test_the_next_layer_receives_a_direction():
    """Mean square 1 whatever the length, the input's row too; nothing of zeros."""
    x = torch.randn(5, 40, dtype=torch.float64, generator=rng()) * torch.tensor(
        [[1e-3], [1], [9], [0], [1e4]]
    )
    squares = direction(x).square().mean(1)
    wanted = torch.tensor([1, 1, 1, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(squares, wanted, rtol=1e-3, atol=0)
    method, (x, y) = stack(), batch()
    seen: list[Tensor] = []
    for unit in method.layers:
        unit.layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    method.signals(x, y, rng())
    assert len(seen) == 2 * LAYERS
    for rows in seen:
        # The script adds 1e-7 to the root mean square.
        assert (rows.square().mean(1) - 1).abs().max() < 1e-6


def test_the_means_are_of_positives_and_move_in_training_alone():
    method, (x, y) = stack(), batch()
    method.layers[1].module.eval()
    read = method.signals(x, y, rng())
    first, second, _ = method.layers
    wanted = 0.9 * 0.5 + 0.1 * read.preactivations[0][:B].detach().relu().mean(0)
    torch.testing.assert_close(first.mean_activity, wanted)
    assert (second.mean_activity == 0.5).all()


# -- negatives -------------------------------------------------------------------------------------


def test_a_hard_negative_is_a_wrong_label_with_the_frequency_of_the_softmax():
    """Of 10 classes: |score| > 5 in any of 9 has probability < 6e-6 with a fresh seed."""
    n, y = 40_000, torch.full((40_000,), 3)
    logits = torch.linspace(-2, 2, 10).expand(n, 10).clone()
    logits[:, 3] = 50.0  # the softmax is sure of the true class
    drawn = wrong_labels(logits, y, rng())
    p = torch.linspace(-2, 2, 10).exp()
    p[3] = 0
    p /= p.sum()
    count = torch.bincount(drawn, minlength=10)
    assert count[3] == 0
    score = (count / n - p) / (p * (1 - p) / n).sqrt()
    assert score[p > 0].abs().max() < 5


def test_negatives_have_a_wrong_label_and_the_image_of_their_positive():
    """The rows that the first layer sees, undone: one-hot labels and the rest of the image."""
    method, (x, y) = stack(), batch()
    seen: list[Tensor] = []
    method.layers[0].layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for seed in range(50):
        method.signals(x, y, rng(seed))
        neutral, rows = seen[-2:]
        rows = rows / rows[:, :M].amax(1, keepdim=True)  # the label has strength 1
        assert torch.equal(rows[:B, :M].argmax(1), y)
        assert (rows[B:, :M].argmax(1) != y).all()
        torch.testing.assert_close(rows[:, :M].sum(1), torch.ones(2 * B).double())
        torch.testing.assert_close(rows[:, M:], x.flatten(1)[:, M:].repeat(2, 1))
        neutral = neutral / neutral[:, :M].sum(1, keepdim=True)
        torch.testing.assert_close(neutral[:, :M], torch.full((B, M), 1 / M).double())
        torch.testing.assert_close(neutral[:, M:], x.flatten(1)[:, M:])


def test_the_softmax_draws_the_negatives():
    """One that is sure of class 1 makes it the negative of every other class."""
    method, (x, y) = stack(), batch()
    with torch.no_grad():
        method.softmax.layer.weight.fill_(-50)[1] = 50
    seen: list[Tensor] = []
    method.layers[0].layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    method.signals(x, y, rng())
    wrong = seen[-1][B:, :M].argmax(1)
    assert (wrong[y != 1] == 1).all()


def test_a_mask_has_large_regions_and_favours_neither_image():
    """|score| > 5 in any of 784 pixels has probability < 5e-4 with a fresh seed."""
    n = 4000
    masks = random_masks(n, 28, 28, rng())[:, 0]
    assert masks.unique().tolist() == [0, 1]
    score = (masks.mean(0) - 0.5) / (0.25 / n) ** 0.5
    assert score.abs().max() < 5

    def agreement(distance: int) -> float:
        return (masks[:, :, distance:] == masks[:, :, : 28 - distance]).float().mean().item()

    assert agreement(1) > 0.85
    assert agreement(14) == pytest.approx(0.5, abs=0.02)
    means = masks.mean((1, 2))  # no mask is one image alone
    assert 0.05 < means.min() < means.max() < 0.95


def test_the_regions_of_a_mask_grow_with_the_image():
    """Two pixels agree as often at twice the distance on twice the side."""

    def agreement(side: int, distance: int) -> float:
        masks = random_masks(400, side, side, rng())
        return (masks[..., distance:] == masks[..., : side - distance]).float().mean().item()

    assert agreement(56, 8) == pytest.approx(agreement(28, 4), abs=0.02)


def test_a_hybrid_takes_each_pixel_from_its_image_or_from_one_other():
    """All channels from the same, and about half from each; on 8×8 pixels too."""
    for side in (8, 28):
        x = torch.rand(30, 3, side, side, generator=rng())
        made = hybrids(x, rng(1))
        own = (made == x).all(1)
        others = [(made == x.roll(s, 0)).all(1) for s in range(1, 30)]
        (other,) = [o for o in others if o.float().mean() > 0.2]
        assert (own ^ other).all()
        assert 0.4 < own.float().mean() < 0.6
        assert 0 < own.float().mean((1, 2)).min() < own.float().mean((1, 2)).max() < 1
    alone = x[:1]
    assert torch.equal(hybrids(alone, rng()), alone)


def test_without_labels_the_layers_learn_from_images_alone():
    """Other labels change the loss of the softmax, and not a bit of what the layers learn."""
    made = []
    for shift in (0, 1):
        method, (x, y) = stack(negatives="hybrids", inference="softmax"), batch()
        made.append(gradients(method, x, (y + shift) % M, 3))
    *layers, softmax = [torch.equal(a, b) for a, b in zip(*made, strict=True)]
    assert all(layers)
    assert not softmax
    x[:, :, 0, :M] = 0.7  # these pixels are part of the image
    assert not torch.equal(made[0][0], gradients(stack(negatives="hybrids"), x, y, 3)[0])


def test_with_hybrids_the_softmax_reads_the_image_itself():
    """In training too, where the layers also see a hybrid; its first pixels are no label."""
    method, (x, y) = stack(negatives="hybrids", inference="softmax"), batch()
    script = Script(method)
    wanted = torch.cat(script.states(x.flatten(1))[1][2:], dim=1)
    torch.testing.assert_close(method.signals(x, y, rng()).directions, wanted)
    (found,) = method.answers(x)
    probabilities = (wanted @ script.softmax.T).softmax(1)
    torch.testing.assert_close(found, probabilities.float(), rtol=1e-5, atol=0)


# -- locality --------------------------------------------------------------------------------------


def test_a_layer_learns_nothing_from_those_above_but_the_wrong_label():
    """By value: other weights above leave the losses below as they were, to the last bit."""
    for negatives, terms in (("hybrids", ("positive", "negative")), ("labels", ("positive",))):
        method, (x, y) = stack(negatives=negatives), batch()
        for unit in method.units:
            unit.module.eval()

        def losses(method=method, x=x, y=y, terms=terms) -> list[list[float]]:
            read = method.signals(x, y, rng())
            return [[u.loss(read, y, rng()).terms[t].item() for t in terms] for u in method.layers]

        before = losses()
        with torch.no_grad():
            for p in method.layers[2].parameters:
                p.normal_(generator=rng(9))
        assert [a == b for a, b in zip(before, losses(), strict=True)] == [True, True, False]


# -- inference -------------------------------------------------------------------------------------


def test_the_answers_are_those_of_brute_force():
    """Each image and label alone: the sum of the goodness of layers 2 and 3, and the softmax."""
    method, (x, _) = stack(), batch()
    script = Script(method)
    softmax, goodness = method.answers(x)
    for row in range(B):
        image = x[row].flatten()
        sums = []
        for label in range(M):
            image[:M] = 0
            image[label] = 1
            states, _ = script.states(image[None])
            sums.append((states[1] ** 2).sum() + (states[2] ** 2).sum())
        wanted = torch.stack(sums)
        assert goodness[row].argmax() == wanted.argmax()
        torch.testing.assert_close(goodness[row], wanted.softmax(0))
        image[:M] = 1 / M
        _, normalized = script.states(image[None])
        logits = script.softmax @ torch.cat(normalized[2:], dim=1)[0]
        torch.testing.assert_close(softmax[row], logits.softmax(0).float(), rtol=1e-5, atol=0)
    assert goodness.std() > 0.01
    one = stack(inference="softmax").answers(x)
    assert len(one) == 1
    torch.testing.assert_close(one[0], softmax)


def test_what_stands_in_the_place_of_the_label_changes_no_answer():
    """Or an image that came with its label would be classified by reading it."""
    method, (x, y) = stack(), batch()
    before = method.answers(x)
    x.flatten(1)[:, :M] = F.one_hot(y, M).double()
    for a, b in zip(before, method.answers(x), strict=True):
        assert torch.equal(a, b)


# -- as it is built --------------------------------------------------------------------------------


def built(shape: tuple[int, ...] = (1, 28, 28), /, **changes: Any) -> ForwardForwardStack:
    task = Task(shape, tuple("0123456789"), Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    config = replace(RunConfig(), {"method.name": "ff", **changes})
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, ForwardForwardStack)
    return method


def test_the_networks_have_the_published_sizes():
    """784-1000-1000-1000 of the script, and 784-2000-2000-2000-2000 of the paper."""
    small = built()
    counts = [sum(p.numel() for p in unit.parameters) for unit in small.units]
    assert counts == [785 * 1000, 1001 * 1000, 1001 * 1000, 2 * 1000 * 10]
    sizes: dict[str, Any] = {"method.num_layers": 4, "method.width": 2000}
    large = built(**sizes)
    assert sum(sum(p.numel() for p in u.parameters) for u in large.layers) == 13_576_000
    for unit, inputs in zip(small.layers, (784, 1000, 1000), strict=True):
        weight = unit.layer.weight  # the deviation of a mean square is sqrt(2 / count)
        assert abs(weight.square().mean() * inputs - 1) < 5 * (2 / weight.numel()) ** 0.5
        assert unit.layer.bias.count_nonzero() == 0
    assert small.softmax.layer.weight.count_nonzero() == 0


def test_in_bf16_directions_and_losses_keep_the_precision_of_the_weights():
    """Products alone are of bf16: a mean square of 1 has 24 bits, not 8."""
    sizes: dict[str, Any] = {"method.width": 30}
    method, (x, y) = built((1, SIDE, SIDE), **sizes), batch()
    with torch.autocast("cpu", torch.bfloat16):
        read = method.signals(x.float(), y, rng())
        terms = [v for unit in method.units for v in unit.loss(read, y, rng()).terms.values()]
    assert read.preactivations[0].dtype == torch.bfloat16
    assert {read.directions.dtype, *(v.dtype for v in terms)} == {torch.float32}
    squares = read.directions.unflatten(1, (2, -1)).square().mean(2)
    torch.testing.assert_close(squares, torch.ones(B, 2), rtol=0, atol=1e-5)


def test_a_single_layer_is_the_one_that_answers():
    sizes: dict[str, Any] = {"method.num_layers": 1, "method.width": 20}
    method = built(**sizes)
    softmax, goodness = method.answers(torch.rand(4, 1, 28, 28, generator=rng()))
    assert softmax.shape == goodness.shape == (4, 10)
    assert goodness.std() > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"method\.inference: .*must be softmax, got goodness"):
        replace(RunConfig(), {"method.name": "ff", "method.negatives": "hybrids"})
    both: dict[str, Any] = {"method.negatives": "hybrids", "method.inference": "softmax"}
    with pytest.raises(ConfigError, match=r"method\.negatives: hybrids are made of images, got"):
        built((5,), **both)
    with pytest.raises(ConfigError, match=r"a label takes the first 10 numbers .* has 4; use hyb"):
        built((1, 2, 2))


def test_the_recipes_have_the_published_rates():
    """Averages of the script's 0.01 are SGD's 0.001; the rest as in the script and the paper."""
    for name in ("mnist-ff", "mnist-ff-unsupervised", "fashion-mnist-ff"):
        t = RECIPES[name].train
        assert (t.optimizer, t.lr, t.momentum, t.weight_decay) == ("sgd", 1e-3, 0.9, 1e-3)
        assert (t.schedule, t.batch_size, t.precision) == ("constant-linear", 100, "float32")
        assert RECIPES[name].data.normalization == "unit"
    one, other = RECIPES["mnist-ff"], RECIPES["mnist-ff-unsupervised"]
    assert (one.train.epochs, other.train.epochs) == (60, 100)
    groups = built().softmax.parameter_groups()
    assert [(g["rate"], g["weight_decay"]) for g in groups] == [(10.0, 3e-3)]


def test_a_label_stands_in_front_of_features_and_hides_none_of_them():
    """On images it takes the first m pixels. Goodness and softmax both see every feature."""
    task = Task((5,), tuple("abc"), Normalization((0.0,) * 5, (1.0,) * 5))
    config = replace(RunConfig(), {"method.name": "ff", "method.width": 20, "method.num_layers": 2})
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, ForwardForwardStack)
    assert method.layers[0].layer.in_features == 8
    x = torch.randn(6, 5, generator=rng())
    with torch.no_grad():
        method.softmax.layer.weight.normal_(generator=rng(1))
        before = method.answers(x)
        for feature in range(5):
            other = x.clone()
            other[:, feature] += 1
            for a, b in zip(before, method.answers(other), strict=True):
                assert not torch.allclose(a, b)
    read = method.signals(x, torch.arange(6) % 3, rng(2))
    assert read.preactivations[0].shape == (12, 20)


def test_a_hybrid_is_never_of_an_image_and_itself():
    """Of a pair of a black and a white image every hybrid has both, for 50 seeds."""
    x = torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28)])
    for seed in range(50):
        found = hybrids(x, rng(seed)).flatten(1)
        assert (found.amin(1) == 0).all()
        assert (found.amax(1) == 1).all()
