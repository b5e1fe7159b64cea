"""NoProp-DT on one screen: Algorithm 1 of arXiv:2503.24322 on scikit-learn's 8×8 digits.

Each of T blocks learns separately to predict the embedding u_y of the label from an image x and a
noised copy of u_y; no gradient passes from block to block. Then the blocks run in a chain, from
noise (t = 0) to a label (t = T). The file does not import noprop, so that tests can compare both.
"""

import math
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn


def cosine_gamma(T: int, s: float = 0.008, epsilon: float = 1e-6) -> Tensor:
    """γ_t = -log SNR(t) for t = 0..T; the signal's power is ᾱ_t = sigmoid(-γ_t)."""
    t = torch.arange(T + 1, dtype=torch.float64)
    alpha_bar = torch.cos(math.pi / 2 * (1 - t / T + s) / (1 + s)) ** 2
    return -alpha_bar.clamp(epsilon, 1 - epsilon).logit()


def coefficients(gamma: Tensor) -> Tensor:
    """Rows (a_t, b_t, c_t) of z_t = a_t û + b_t z_{t-1} + √c_t ε for t = 1..T (Eqs. 3, 6)."""
    before, after = torch.sigmoid(-gamma[:-1]), torch.sigmoid(-gamma[1:])  # ᾱ_{t-1}, ᾱ_t
    alpha = before / after  # α_{t-1}, for ᾱ_{t-1} = α_{t-1} ᾱ_t
    abc = after.sqrt() * (1 - alpha), alpha.sqrt() * (1 - after), (1 - after) * (1 - alpha)
    return torch.stack(abc, dim=1) / (1 - before)[:, None]


def sample_latent(u: Tensor, gamma: Tensor, g: Generator | None = None) -> Tensor:
    """Draw z ~ q(z|y) = N(√ᾱ u_y, (1 - ᾱ) I) (Eq. 6)."""
    noise = torch.randn(u.shape, generator=g, dtype=u.dtype)
    return torch.sigmoid(-gamma).sqrt() * u + torch.sigmoid(gamma).sqrt() * noise


def block_loss(block: nn.Module, x: Tensor, y: Tensor, W: Tensor, gamma: Tensor, t: int, g=None):
    """(T/2) η (SNR(t) - SNR(t-1)) ‖û_t(z_{t-1}, x) - u_y‖² with η = 0.1 (Eq. 8)."""
    z = sample_latent(W[y], gamma[t - 1], g)
    error = block(torch.cat([z, x], dim=1)).softmax(dim=1) @ W - W[y]
    weight = (len(gamma) - 1) / 2 * 0.1 * torch.exp(-gamma).diff()[t - 1]
    return weight * error.square().sum(dim=1).mean()


def readout_loss(readout: nn.Module, y: Tensor, W: Tensor, gamma: Tensor, g=None) -> Tensor:
    """-log p(y|z_T) + KL(q(z_0|y) ‖ N(0, I)) (Eq. 8); the KL is constant unless W is learned."""
    p, d = torch.sigmoid(-gamma[0]), W.shape[1]
    kl = (p * W[y].square().sum(dim=1) - d * p - d * torch.log1p(-p)) / 2
    return nn.functional.cross_entropy(readout(sample_latent(W[y], gamma[-1], g)), y) + kl.mean()


@torch.no_grad()
def chain(blocks: Sequence[nn.Module], x: Tensor, z: Tensor, W: Tensor, gamma: Tensor, g=None):
    """Run the chain from z_0 to z_T (Eq. 3); without a generator the mean chain, without noise."""
    for block, (a, b, c) in zip(blocks, coefficients(gamma), strict=True):
        z = a * (block(torch.cat([z, x], dim=1)).softmax(dim=1) @ W) + b * z
        if g is not None:
            z = z + c.sqrt() * torch.randn(z.shape, generator=g, dtype=z.dtype)
    return z


def main(T: int = 10, epochs: int = 15) -> tuple[float, float]:
    """Train on 1437 digits; test accuracies, of 360 others, of a noisy chain and the mean chain."""
    g = torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=g)
    x, y = torch.tensor(pixels).float()[order] / 8 - 1, torch.tensor(labels)[order]
    W, gamma, readout = torch.eye(10), cosine_gamma(T), nn.Linear(10, 10)
    readout.load_state_dict({"weight": 10 * W, "bias": -5 * W.square().sum(dim=1)})  # nearest u_y
    blocks = []
    for t in range(1, T + 1):  # nothing is shared, so a block may finish before the next begins
        block = nn.Sequential(nn.Linear(74, 99), nn.BatchNorm1d(99), nn.ReLU(), nn.Linear(99, 10))
        optimizer = torch.optim.AdamW([*block.parameters(), *readout.parameters()], lr=1e-3)
        for _ in range(epochs):
            for i in torch.randperm(1437, generator=g).split(128):
                optimizer.zero_grad()
                block_loss(block, x[i], y[i], W, gamma, t, g).backward()
                readout_loss(readout, y[i], W, gamma, g).backward()
                optimizer.step()
        blocks.append(block.eval())
    accuracies = []
    for z, noise in (torch.randn(360, 10, generator=g), g), (torch.zeros(360, 10), None):
        label = readout(chain(blocks, x[1437:], z, W, gamma, noise)).argmax(dim=1)
        accuracies.append((label == y[1437:]).float().mean().item())
    print("test accuracy: one noisy chain {:.1%}, mean chain {:.1%}".format(*accuracies))
    return accuracies[0], accuracies[1]


if __name__ == "__main__":
    main()
