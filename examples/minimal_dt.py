"""NoProp-DT on one screen: torch, scikit-learn's digits, no import of the package.

Every block learns alone to guess a label's embedding from the image and a noised copy of that
embedding; no gradient leaves a block. At the end the blocks run in a chain, from noise to a label.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot


def cosine_gamma(T: int, s: float = 0.008, epsilon: float = 1e-6) -> Tensor:
    """-log SNR at t = 0..T (float64), from noise to clean."""
    t = torch.arange(T + 1, dtype=torch.float64)
    alpha_bar = torch.cos(math.pi / 2 * (1 - t / T + s) / (1 + s)) ** 2
    alpha_bar = alpha_bar.clamp(epsilon, 1 - epsilon)
    return torch.log1p(-alpha_bar) - alpha_bar.log()


def coefficients(gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z_t = a û + b z_{t-1} + sqrt(c) noise (Eqs. 3, 6); entry t - 1 leads to t."""
    alpha_bar = torch.sigmoid(-gamma)
    before, after = alpha_bar[:-1], alpha_bar[1:]
    alpha = before / after  # alpha_{t-1}
    a = after.sqrt() * (1 - alpha) / (1 - before)
    b = alpha.sqrt() * (1 - after) / (1 - before)
    c = (1 - after) * (1 - alpha) / (1 - before)
    return a, b, c


class Block(nn.Module):
    """Guesses the label's embedding from an image and a latent."""

    def __init__(self, classes: int):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 256), nn.BatchNorm1d(256),
        )  # fmt: skip
        self.latent = nn.Sequential(nn.Linear(classes, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Logits; the guess û is their softmax, as the embeddings are one-hot."""
        return self.head(torch.cat([self.image(x), self.latent(z)], dim=1))


def train_block(block: Block, x: Tensor, y: Tensor, gamma: Tensor, t: int, epochs: int) -> None:
    """Block t reads z_{t-1} ~ q(.|y) and learns to return u_y (Eq. 8)."""
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=1e-3)
    u, level = one_hot(y).float(), gamma[t - 1].float()
    weight = (
        float(len(gamma) - 1) / 2 * 0.1 * float(torch.exp(-gamma[t]) - torch.exp(-gamma[t - 1]))
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128)[:-1]:
            noise = torch.randn(len(batch), u.shape[1])
            z = torch.sigmoid(-level).sqrt() * u[batch] + torch.sigmoid(level).sqrt() * noise
            error = (block(z, x[batch]).softmax(1) - u[batch]).square().sum(1).mean()
            optimizer.zero_grad()
            (weight * error).backward()
            optimizer.step()


@torch.no_grad()
def chain(blocks: list[Block], x: Tensor, gamma: Tensor, noise: bool) -> Tensor:
    """From z_0 to z_T; the embeddings are one-hot, so the largest entry is the label."""
    a, b, c = (v.float() for v in coefficients(gamma))
    z = torch.randn(len(x), 10) * noise
    for i, block in enumerate(blocks):
        z = a[i] * block(z, x).softmax(1) + b[i] * z + noise * c[i].sqrt() * torch.randn_like(z)
    return z


def main(T: int = 5, epochs: int = 5) -> tuple[float, float]:
    """Train, and return the test accuracies of one noisy chain and of the mean chain."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(labels)
    order, gamma = torch.randperm(len(x)), cosine_gamma(T)
    train, test = order[360:], order[:360]
    blocks = [Block(10) for _ in range(T)]
    for t, block in enumerate(blocks, start=1):
        train_block(block, x[train], y[train], gamma, t, epochs)
        loss = cross_entropy(block.eval()(torch.randn(360, 10), x[test]), y[test])
        print(f"block {t} trained; alone on noise its cross-entropy is {loss:.3f} nats")
    one, mean = (
        (chain(blocks, x[test], gamma, noise).argmax(1) == y[test]).double().mean().item()
        for noise in (True, False)
    )
    print(f"test accuracy: one chain {100 * one:.1f} %, mean chain {100 * mean:.1f} %")
    return one, mean


if __name__ == "__main__":
    main()
