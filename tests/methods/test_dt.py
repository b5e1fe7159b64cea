"""NoProp-DT: locality, the latent and the weight of each block, and what a chain samples.

The networks of most tests are written down rather than trained: one that ignores its input, one
that knows the label, one that is Bayes' rule. What the method makes of them is then known exactly.
"""

import inspect
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from differences import assert_gradient_is_that_of_differences
from known_blocks import Bayes, Known, known
from noprop.averaging import fit_path_weights
from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.embeddings import Embedding, one_hot_embeddings, random_embeddings
from noprop.methods.dt import DiscreteNoProp
from noprop.randomness import seeded
from noprop.readouts import RadialReadout, SoftmaxReadout
from noprop.schedules import cosine_gamma
from noprop.task import Task
from noprop.training.trainer import Trainer
from tools import rng

T = 3
KINDS = {
    "one-hot": {},
    "learned": {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 6},
    "radial": {"method.readout": "radial"},
    "prototype": {"method.embedding": "prototype", "method.learned": True},
}


def make(kind: str = "one-hot", num_blocks: int = T):
    """The library's own method on 8×8 images, with a batch."""
    config = replace(RunConfig(), {"method.num_blocks": num_blocks, **KINDS[kind]})
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, DiscreteNoProp)
    return method, torch.empty(24, 1, 8, 8).normal_(generator=rng()), torch.arange(24) % 10


# -- locality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", range(T + 1))
def test_a_loss_reaches_its_own_unit_and_what_is_shared(kind, index):
    """Locality by gradient; nothing is shared with fixed embeddings, W_Embed when it is learned."""
    method, x, y = make(kind)
    unit = method.units[index]
    unit.loss(x, y, rng()).total.backward()
    reached = {id(p) for p in method.parameters() if p.grad is not None}
    assert reached == {id(p) for p in (*unit.parameters, *method.shared_parameters)}
    own = {id(p) for p in unit.parameters}
    others = {id(p) for other in method.units if other is not unit for p in other.parameters}
    assert not own & others
    expected = [id(method.embedding.weight)] if kind in ("learned", "prototype") else []
    assert [id(p) for p in method.shared_parameters] == expected


@pytest.mark.parametrize("index", range(T + 1))
def test_a_loss_does_not_depend_on_other_units(index):
    """Locality by value: noise in every other unit's weights and buffers changes no bit."""
    method, x, y = make()
    unit = method.units[index]
    before = unit.loss(x, y, rng()).total
    for other in method.units:
        if other is not unit:
            for tensor in (*other.module.parameters(), *other.module.buffers()):
                if tensor.is_floating_point():
                    nn.init.normal_(tensor)
    assert torch.equal(before, unit.loss(x, y, rng()).total)


# -- what each unit is trained on ----------------------------------------------------------------


@pytest.mark.parametrize("t", range(1, 6))
def test_block_t_is_trained_on_the_latent_before_it(t):
    """z_{t-1}, not z_t as Algorithm 1 prints (slip 2).

    |score| > 5 for the mean or the variance of any of 10 coordinates in 5 blocks: a fresh seed
    fails with probability < 6e-5. Under the slip the same score would be far beyond it.
    """
    n, blocks = 20_000, [Known() for _ in range(5)]
    method = known(blocks, one_hot_embeddings(10))
    y = torch.full((n,), 4)
    method.blocks[t - 1].loss(torch.zeros(n, 10), y, rng(t))
    (z,) = blocks[t - 1].seen

    def score(level: int) -> float:
        alpha_bar = torch.sigmoid(-method.gamma[level]).float()
        error = (z - alpha_bar.sqrt() * method.embedding(y)) / (1 - alpha_bar).sqrt()
        mean = error.mean(0) * n**0.5
        spread = (error.square().mean(0) - 1) * (n / 2) ** 0.5
        return max(mean.abs().max().item(), spread.abs().max().item())

    assert score(t - 1) < 5
    assert score(t) > 20


LEVEL_WEIGHTS = {  # of block t, before η, by the ratios SNR(0), …, SNR(T)
    "snr": lambda t, snr: (len(snr) - 1) / 2 * (snr[t] - snr[t - 1]),
    "uniform": lambda t, snr: 0.5,
    "min-snr": lambda t, snr: 0.5 * min(snr[t], 5.0),
}


@pytest.mark.parametrize("weighting", LEVEL_WEIGHTS)
@pytest.mark.parametrize("num_blocks", [1, 2, 10])
def test_a_block_s_loss_is_its_weight_times_the_squared_error(num_blocks, weighting):
    """Eq. 8, (T/2) η (SNR(t) - SNR(t-1)) ‖û - u‖², computed by hand for a constant guess.

    The squares are summed over d and averaged over the batch: a (B,) weight times a (B, 1) error
    or a mean over d would be seen (slip 7), and so would a schedule that runs backwards (slip 1).
    Any weighting looks at the level that block t leads to: SNR(t-1) is 1e-6 for the first one.
    """
    weight, eta = random_embeddings(4, 7, rng()), 0.3
    method = DiscreteNoProp(
        [Known() for _ in range(num_blocks)],
        Embedding(weight, learned=False),
        SoftmaxReadout(weight),
        cosine_gamma(num_blocks),
        eta=eta,
        weighting=weighting,
    )
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(6, 4)
    y = torch.tensor([0, 0, 1, 2, 3, 3])
    guess = (logits.softmax(1) @ weight).double()
    error = sum(float((guess[i] - weight[y[i]]).square().sum()) for i in range(6)) / 6
    s = 0.008
    bars = [
        math.cos(math.pi / 2 * (1 - t / num_blocks + s) / (1 + s)) ** 2
        for t in range(num_blocks + 1)
    ]
    bars[0] = 1e-6  # the default clamp
    ratios = [a / (1 - a) for a in bars]
    for t, block in enumerate(method.blocks, start=1):
        by_hand = eta * LEVEL_WEIGHTS[weighting](t, ratios)
        assert block.weight > 0
        assert block.weight == pytest.approx(by_hand, rel=1e-6)
        assert block.coupling == 1 / num_blocks
        terms = block.loss(logits, y, rng()).terms
        assert list(terms) == ["denoising"]
        assert terms["denoising"].item() == pytest.approx(by_hand * error, rel=1e-5)


class Smooth(Known):
    """Logits that depend on x and z, smoothly."""

    def forward(
        self, z: Tensor, context: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return context + torch.sin(2 * z)


@pytest.mark.parametrize("unit", ["block-1", "block-3", "readout"])
def test_weights_of_examples_multiply_their_errors(unit):
    """The loss is Σ w_i L_i / B, where L_i / B is the loss with the weight of example i alone."""
    method, x, y = make()
    (chosen,) = [u for u in (*method.blocks, method.readout) if u.name == unit]
    chosen.module.eval()
    weight = torch.rand(24, generator=rng(6)) * 3
    whole = chosen.loss(x, y, rng(5), weight).terms
    alone = [chosen.loss(x, y, rng(5), row).terms for row in torch.eye(24)]
    for term, value in whole.items():
        parts = torch.stack([terms[term] for terms in alone])
        torch.testing.assert_close(value, parts @ weight)
    torch.testing.assert_close(
        chosen.loss(x, y, rng(5), torch.ones(24)).total, chosen.loss(x, y, rng(5)).total
    )


@pytest.mark.parametrize("readout", [SoftmaxReadout, RadialReadout])
@pytest.mark.parametrize("unit", ["block-1", "block-2", "readout"])
def test_the_gradient_of_the_embeddings_is_that_of_every_term(unit, readout):
    """Through u_y in z, target and prior, through û, and as a radial readout reads them.

    On levels with ᾱ_0 = 0.27, where the prior's gradient is not lost beside the readout's.
    """
    weight = random_embeddings(4, 4, rng()) * 2
    with seeded(0):
        made = readout(weight, "random").double()
    embedding = Embedding(weight.double(), learned=True)
    gamma = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    method = DiscreteNoProp([Smooth(), Smooth()], embedding, made, gamma)
    (chosen,) = [u for u in method.units if u.name == unit]
    x, y = torch.zeros(12, 4, dtype=torch.float64), torch.arange(12) % 4
    for term in chosen.loss(x, y, rng()).terms:
        assert_gradient_is_that_of_differences(
            lambda term=term: chosen.loss(x, y, rng(5)).terms[term], embedding.weight
        )


def test_the_readout_s_terms_are_those_of_the_bound():
    """Cross-entropy on z_T ~ q(z_T|y), and KL(q(z_0|y) ‖ N(0, I)) as torch.distributions has it."""
    weight = random_embeddings(4, 7, rng()) * 3
    method = known([Known(), Known()], weight)
    y = torch.tensor([0, 1, 1, 3, 2])
    terms = method.readout.loss(torch.empty(0, 4), y, rng(3))
    assert list(terms.terms) == ["classification", "prior"]
    alpha_bar = torch.sigmoid(-method.gamma).double()
    u = weight[y].double()
    q = torch.distributions.Normal(alpha_bar[0].sqrt() * u, (1 - alpha_bar[0]).sqrt())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    assert terms.terms["prior"].item() == pytest.approx(kl.sum(1).mean().item(), rel=1e-3)
    noise = torch.empty(5, 7).normal_(generator=rng(3))
    z = (alpha_bar[-1].sqrt() * u + (1 - alpha_bar[-1]).sqrt() * noise).float()
    entropy = F.cross_entropy(method.readout.readout(z, weight), y)
    assert terms.terms["classification"].item() == pytest.approx(entropy.item(), rel=1e-3)
    total = terms.terms["classification"] + terms.terms["prior"]
    torch.testing.assert_close(terms.total, total)


@pytest.mark.parametrize(("weighting", "objective"), [("snr", "l2"), ("uniform", "cross-entropy")])
def test_the_bound_s_denoising_sum_telescopes(weighting, objective):
    """With one error at every t, Σ ½ (SNR(t) - SNR(t-1)) error = ½ (SNR(T) - SNR(0)) error.

    Whatever trained the blocks: η, the weighting and the objective are no part of the bound.
    """
    weight = one_hot_embeddings(3)
    method = DiscreteNoProp(
        [Known() for _ in range(6)],
        Embedding(weight, learned=False),
        SoftmaxReadout(weight),
        cosine_gamma(6),
        eta=0.01,
        weighting=weighting,
        objective=objective,
    )
    y = torch.tensor([0, 1, 2, 2])
    bound = method.bound(torch.zeros(4, 3), y, rng())
    assert set(bound) == {"classification", "prior", "denoising"}
    ratio = torch.exp(-method.gamma)
    by_hand = 0.5 * (ratio[-1] - ratio[0]).item() * (4 / 9 + 2 / 9)
    assert bound["denoising"] == pytest.approx(by_hand, rel=1e-5)


# -- the chain -----------------------------------------------------------------------------------


def test_with_the_true_embedding_each_block_sees_what_it_was_trained_on():
    """û = u_y gives z_t ~ q(z_t|y) at every level, and block t is shown z_{t-1} (slips 2 and 9).

    |score| > 5 for means and variances of 7 coordinates at 9 levels: a fresh seed fails with
    probability < 1e-4. One level off is far beyond it.
    """
    n, blocks = 20_000, [Known(1e4) for _ in range(8)]
    method = known(blocks, weight := random_embeddings(4, 7, rng(1)) * 2)
    y = torch.randint(4, (n,), generator=rng(2))
    p = method.predict(F.one_hot(y, 4).float(), rng(3))
    alpha_bar = torch.sigmoid(-method.gamma).float()

    def score(t: int, z: Tensor) -> float:
        error = (z - alpha_bar[t].sqrt() * weight[y]) / (1 - alpha_bar[t]).sqrt()
        mean = error.mean(0) * n**0.5
        spread = (error.square().mean(0) - 1) * (n / 2) ** 0.5
        return max(mean.abs().max().item(), spread.abs().max().item())

    assert len(p.latents) == 9
    for t in range(9):
        assert score(t, p.latents[t]) < 5
    for t, block in enumerate(blocks, start=1):
        assert torch.equal(block.seen[0], p.latents[t - 1])
        assert score(t, block.seen[0]) > 20
    assert p.steps[-1].equal(y)


def test_one_chain_is_a_sample_of_the_posterior_and_every_block_s_mean_is_it():
    """With Bayes' rule for a denoiser, labels come as often as p(y|x), at any level (tower).

    5000 chains an input, so a frequency's standard error is ≤ 0.0071; the tolerance 0.035 is 4.9
    of them: a fresh seed fails in 9 frequencies with probability < 1e-5. A chain that answered
    the mode would be off by 0.4, one without its noise likewise.
    """
    table = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])
    weight, blocks = one_hot_embeddings(3), 400
    gamma = cosine_gamma(blocks)
    method = known([Bayes(gamma[t], weight) for t in range(blocks)], weight)
    p = method.predict(table.log(), rng(5), samples=5000)
    torch.testing.assert_close(p.probabilities, table, atol=0.035, rtol=0)
    assert p.path is not None
    assert (p.path - table).abs().max() < 0.035
    single = method.predict(table.log().repeat_interleave(5000, 0), rng(6)).single.argmax(1)
    frequency = F.one_hot(single.view(3, 5000), 3).float().mean(1)
    torch.testing.assert_close(frequency, table, atol=0.035, rtol=0)
    mode = method.predict(table.log(), rng(6), noise=False).probabilities
    assert (mode - table).abs().max() > 0.3


@pytest.mark.parametrize("average", ["readout", "path"])
@pytest.mark.parametrize("noise", [True, False])
def test_prediction_never_sees_a_label(average, noise):
    """Random labels on noise images score chance: |score| > 5 has probability < 6e-7 (slip 3).

    The same statistic with z_0 replaced by a latent of the true label is far beyond 5.
    """
    assert not {"y", "labels", "target"} & set(inspect.signature(DiscreteNoProp.predict).parameters)
    method, _, _ = make(num_blocks=5)
    for unit in method.units:
        unit.module.eval()
    n = 2000
    x = torch.empty(n, 1, 8, 8).normal_(generator=rng(1))
    y = torch.randint(10, (n,), generator=rng(2))

    def score(labels: Tensor) -> float:
        return (labels.eq(y).double().mean().item() - 0.1) / (0.09 / n) ** 0.5

    p = method.predict(x, rng(3), average=average, noise=noise)
    assert abs(score(p.probabilities.argmax(1))) < 5
    noise_of_z = 0.3 * torch.empty(n, 10).normal_(generator=rng(4))
    leaked = method.readout.readout(method.embedding(y) + noise_of_z, method.embedding.weight)
    assert score(leaked.argmax(1)) > 50


def test_prediction_is_a_function_of_x_and_the_generator_alone():
    """Same seed, same bits, and no global random state is read or moved; other seeds differ."""
    method, x, _ = make()
    for unit in method.units:
        unit.module.eval()
    state = torch.get_rng_state()
    first = method.predict(x, rng(1), samples=2)
    torch.manual_seed(99)
    again = method.predict(x, rng(1), samples=2)
    torch.set_rng_state(state)
    method.predict(x, rng(1), samples=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.probabilities, again.probabilities)
    assert not torch.equal(first.latents, method.predict(x, rng(2)).latents)


@pytest.mark.parametrize("noise", [True, False])
def test_networks_in_float64_predict_in_float64(noise):
    """The parts of a batch then get its probabilities, to 1e-12; in float32 they differ by 1e-8."""
    method, x, _ = make()
    for module in (method.shared, *(unit.module for unit in method.units)):
        module.double().eval()
    for block in method.blocks:
        block.exact = True
    whole = method.predict(x.double(), rng(1), noise=noise, average="path").probabilities
    assert whole.dtype == torch.float64
    if not noise:
        alone = [method.predict(x[i : i + 1].double(), rng(1), noise=False) for i in range(24)]
        ends = method.predict(x.double(), rng(1), noise=False).probabilities
        parts = torch.cat([p.probabilities for p in alone])
        torch.testing.assert_close(parts, ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("average", ["readout", "path"])
def test_features_are_computed_once_and_can_be_handed_in(average):
    """Sixteen chains cost one pass of convolutions a block; prepared features change no bit."""
    method, x, _ = make()
    counts = dict.fromkeys(range(T), 0)
    for t, block in enumerate(method.blocks):
        block.network.eval()

        def count(*_: object, t: int = t) -> None:
            counts[t] += 1

        block.network.image.encoder.register_forward_hook(count)
    fresh = method.predict(x, rng(), samples=16, average=average)
    assert counts == dict.fromkeys(range(T), 1)
    prepared = method.prepare(x)
    given_ = method.predict(x, rng(), samples=16, average=average, prepared=prepared)
    assert counts == dict.fromkeys(range(T), 2)
    for name in ("probabilities", "single", "path", "steps", "latents"):
        assert torch.equal(getattr(fresh, name), getattr(given_, name)), name


def test_the_parts_of_a_prediction_are_what_they_say():
    """Distributions over classes; ``single`` of one chain is its readout; path is Σ w_t p_t."""
    method, x, _ = make()
    for unit in method.units:
        unit.module.eval()
    one = method.predict(x, rng(1))
    assert torch.equal(one.single, one.probabilities)
    assert one.steps.shape == (T + 1, 24)
    method.path_weights = torch.tensor([0.5, 0.2, 0.3])
    path = method.predict(x, rng(1), average="path")
    assert path.path is not None
    by_hand = sum(w * p for w, p in zip([0.5, 0.2, 0.3], path.path, strict=True))
    torch.testing.assert_close(path.probabilities, by_hand)
    for p in (one.probabilities, path.probabilities, *path.path):
        torch.testing.assert_close(p.sum(1), torch.ones(24))
    silent = method.predict(x, rng(1), noise=False, samples=7)
    assert torch.equal(silent.latents, method.predict(x, rng(2), noise=False).latents)


@pytest.mark.parametrize(
    ("arguments", "words"), [({"samples": 0}, "samples.*0"), ({"average": "mode"}, "average.*mode")]
)
def test_arguments_out_of_range_are_named(arguments, words):
    method, x, _ = make()
    with pytest.raises(ValueError, match=words):
        method.predict(x, rng(), **arguments)


def test_the_control_reads_noise_alone():
    """Block T on z ~ N(0, I): a chain that works is far better, one run backwards is not (slip 4).

    5-sigma moments over 20 000 coordinates. With x telling nothing and Bayes' rule at T, the last
    block's guess from noise is near useless though its guess from z_{T-1} is near perfect.
    """
    n, weight = 2000, one_hot_embeddings(10)
    gamma = cosine_gamma(10)
    networks = [Bayes(gamma[t], weight) for t in range(10)]
    y = torch.randint(10, (n,), generator=rng(1))
    last = Known()
    control = known([*networks[:-1], last], weight)
    control.control(rng(2), [torch.zeros(n, 10)])
    (z,) = last.seen
    assert abs(z.mean().item()) * z.numel() ** 0.5 < 5
    assert abs(z.square().mean().item() - 1) * (z.numel() / 2) ** 0.5 < 5
    method = known(networks, weight)
    alone = method.control(rng(3), [torch.zeros(n, 10)])
    assert alone.eq(y).float().mean() < 0.2
    assert method.blocks[-1].error(torch.zeros(n, 10), y, rng(4)) < 0.1


# -- weights of the path average -----------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 40), st.integers(2, 5), st.integers(0, 10_000))
def test_fitted_weights_are_a_mixture_no_worse_than_uniform_or_one_block(blocks, n, m, seed):
    """The problem is concave: EM from uniform ends at a mixture no single block beats."""
    path = torch.empty(blocks, n, m).exponential_(generator=rng(seed)).clamp_min(1e-4)
    path /= path.sum(dim=2, keepdim=True)
    y = torch.randint(m, (n,), generator=rng(seed + 1))
    fitted = fit_path_weights(path, y)
    assert fitted.shape == (blocks,)
    assert fitted.min() >= 0
    assert fitted.sum().item() == pytest.approx(1, abs=1e-5)
    likelihood = path[:, torch.arange(n), y].double()

    def loss(w: Tensor) -> float:
        return -(w.double() @ likelihood).log().mean().item()

    # 500 iterations from uniform: within blocks·log(blocks)/(500·n)·… of the best, here 1e-2 nats.
    assert loss(fitted) <= loss(torch.full((blocks,), 1 / blocks)) + 1e-6
    for one in torch.eye(blocks):
        assert loss(fitted) <= loss(one) + math.log(max(blocks, 2)) / 500


def test_fitted_weights_survive_a_block_that_excludes_the_truth():
    """A probability of exactly 0 costs that block its weight, and gives no NaN."""
    path = torch.tensor([[[1.0, 0.0]], [[0.4, 0.6]]]).expand(2, 10, 2)
    fitted = fit_path_weights(path, torch.ones(10, dtype=torch.int64))
    torch.testing.assert_close(fitted, torch.tensor([0.0, 1.0]))


# -- a trained chain ---------------------------------------------------------------------------


@pytest.mark.slow
def test_trained_on_a_known_posterior_the_chain_samples_it(tmp_path: Path):
    """Four inputs with exactly known p(y|x), five blocks, trained by the library's own trainer.

    Five steps are coarse: even Bayes' rule for a denoiser is 0.055 off p(y|x) at T = 5 (0.033 at
    10, 0.017 at 20). So training is held to that chain: labels of 4000 single chains an input come
    as often within 0.06 (5 standard errors of the difference; the rest is the training's error),
    and path averages are within 0.05 of p(y|x). A chain that answered the mode is off by 0.35.
    """
    counts = torch.tensor([[600, 300, 100], [100, 600, 300], [330, 340, 330], [900, 50, 50]])
    kind = torch.arange(4).repeat_interleave(1000)
    y = torch.cat([torch.arange(3).repeat_interleave(row) for row in counts])
    part = Examples(torch.eye(4)[kind], y)
    config = replace(
        RunConfig(),
        {"method.num_blocks": 5, "method.dropout": 0.0, "train.epochs": 12,
         "train.order": "parallel", "train.device": "cpu", "train.lr": 3e-4},
    )  # fmt: skip
    task = Task((4,), ("a", "b", "c"), Normalization.of(part.x))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, DiscreteNoProp)
    trainer = Trainer(
        config, method, method.units, part, part.take(torch.arange(0)), task.normalization,
        bf16=False, folder=tmp_path / "c", emit=lambda event: None,
    )  # fmt: skip
    trainer.run()
    for unit in method.units:
        unit.module.eval()
    table = counts / 1000
    x = task.normalization.apply(torch.eye(4).repeat_interleave(4000, 0))
    p = method.predict(x, rng(), average="path")
    frequency = F.one_hot(p.single.argmax(1), 3).float().view(4, 4000, 3).mean(1)
    gamma = cosine_gamma(5)
    exact = known([Bayes(gamma[t], torch.eye(3)) for t in range(5)], torch.eye(3))
    best = exact.predict(table.log().repeat_interleave(4000, 0), rng(1)).single.argmax(1)
    bayes = F.one_hot(best, 3).float().view(4, 4000, 3).mean(1)
    torch.testing.assert_close(frequency, bayes, atol=0.06, rtol=0)
    path = p.probabilities.view(4, 4000, 3).mean(1)
    torch.testing.assert_close(path, table, atol=0.05, rtol=0)
