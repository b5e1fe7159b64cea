r"""Class embeddings $W_\mathrm{Embed}$ (m, d): the points to which noise is added.

The paper's three kinds (Section 2.2.1, Fig. 7): one-hot, a table of d numbers a class (started
orthogonal or random, then trained), and prototypes, where a class starts at its most typical
training image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = [
    "Embedding",
    "Objective",
    "class_medoids",
    "denoising_error",
    "greatest_distance",
    "nearest_class",
    "one_hot_embeddings",
    "orthogonal_embeddings",
    "random_embeddings",
    "separation",
]

Objective = Literal["l2", "cross-entropy"]


def one_hot_embeddings(num_classes: int) -> Float[Tensor, "classes dim"]:
    """Return the identity: d = m."""
    return torch.eye(num_classes)


def random_embeddings(
    num_classes: int, dim: int, generator: torch.Generator
) -> Float[Tensor, "classes dim"]:
    """Return standard normal rows over √d, so that each has length one on average whatever d is."""
    return torch.empty(num_classes, dim).normal_(generator=generator) / dim**0.5


def orthogonal_embeddings(
    num_classes: int, dim: int, generator: torch.Generator
) -> Float[Tensor, "classes dim"]:
    """Return rows of length one: orthogonal if d ≥ m, else as far as the space allows.

    For d < m the rows are the columns of an orthonormal basis, stretched to length one: a tight
    frame.
    """
    weight = nn.init.orthogonal_(torch.empty(num_classes, dim), generator=generator)
    return nn.functional.normalize(weight, dim=1)


def class_medoids(
    x: Float[Tensor, "n ..."],
    y: Int64[Tensor, " n"],
    num_classes: int,
    *,
    chunk_bytes: int = 64 * 2**20,
    candidates: int = 16,
) -> Int64[Tensor, " classes"]:
    """Return the example of each class with the least **median** distance to the others of it.

    Distances come from products of chunks of rows, so a class of 45 000 images never needs its full
    distance matrix. The products are float32; the best few candidates are measured again, exactly,
    in float64, so that cancellation cannot choose.

    Args:
        x: Examples, shape (n, …), on any device.
        y: Labels in 0..num_classes-1.
        num_classes: m.
        chunk_bytes: Memory for one chunk of distances, in bytes.
        candidates: Number of the best examples that are measured again in float64.

    Returns:
        Index into ``x`` of each class's medoid, shape (m,).

    Raises:
        ValueError: If a class has no example.
    """
    chosen = []
    for label in range(num_classes):
        members = (y == label).nonzero()[:, 0]
        if members.numel() == 0:
            raise ValueError(f"class {label} has no example to make a prototype of")
        chosen.append(members[_medoid(x[members].flatten(1), chunk_bytes, candidates)])
    return torch.stack(chosen)


def _medoid(points: Float[Tensor, "n dim"], chunk_bytes: int, candidates: int) -> Int64[Tensor, ""]:
    n = points.shape[0]
    if n == 1:
        return torch.zeros((), dtype=torch.int64, device=points.device)
    # Distances do not change when the mean is removed, and the squares cancel far less.
    points = points - points.mean(dim=0)
    squares = points.square().sum(dim=1)
    # The k-th smallest of all n distances, own distance 0 included, is the lower median of n - 1.
    k = (n - 2) // 2 + 2
    median = torch.empty(n, device=points.device)
    for rows in torch.arange(n, device=points.device).split(max(1, chunk_bytes // (4 * n * 3))):
        distance = torch.addmm(squares[None], points[rows], points.T, alpha=-2)
        distance += squares[rows, None]
        median[rows] = distance.kthvalue(k, dim=1).values
    best = median.topk(min(candidates, n), largest=False).indices.sort().values
    rows_at_once = max(1, chunk_bytes // (8 * points.shape[1]))
    exact = torch.stack(
        [
            torch.cat(
                [
                    (part.double() - points[i].double()).square().sum(dim=1)
                    for part in points.split(rows_at_once)
                ]
            )
            .kthvalue(k)
            .values
            for i in best
        ]
    )
    return best[exact.argmin()]


class Embedding(nn.Module):
    """The table W_Embed: a buffer when fixed, a shared parameter when learned.

    Args:
        weight: W_Embed, shape (m, d).
        learned: Whether the losses of the units train the table.
    """

    weight: Tensor

    def __init__(self, weight: Float[Tensor, "classes dim"], *, learned: bool):
        super().__init__()
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    @property
    def learned(self) -> bool:
        """Whether the table is trained."""
        return isinstance(self.weight, nn.Parameter)

    def forward(self, y: Int64[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Return u_y, the embeddings of a batch's labels."""
        return self.weight[y]

    def expectation(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch dim"]:
        """Return û = softmax(logits) @ W_Embed, a convex combination of rows (Section 2.3.2)."""
        return self.combination(logits.to(self.weight.dtype).softmax(dim=1))

    def combination(self, weights: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch dim"]:
        """Return weights @ W_Embed, for weights of any sign and size, as those of a velocity."""
        # Autocast would round it to bf16, and with it every small error that a loss is made of.
        with torch.autocast(weights.device.type, enabled=False):
            return weights.to(self.weight.dtype) @ self.weight


def denoising_error(
    logits: Float[Tensor, "batch classes"],
    y: Int64[Tensor, " batch"],
    embedding: Embedding,
    objective: Objective = "l2",
    label_smoothing: float = 0.0,
) -> Float[Tensor, " batch"]:
    r"""Return $\|\hat u - u_y\|^2$ of each example, or the cross-entropy of the logits in nats.

    Differs from the paper: ``cross-entropy`` is not a term of the bound. Its minimiser is
    $p(y|z, x)$, which also minimises the squared error: alone where the embeddings are affinely
    independent, as one-hot ones are. ``label_smoothing`` spreads that probability over all classes
    of the cross-entropy's target.
    """
    if objective == "cross-entropy":
        return F.cross_entropy(logits.float(), y, reduction="none", label_smoothing=label_smoothing)
    return (embedding.expectation(logits) - embedding(y)).square().sum(dim=1)


def nearest_class(
    z: Float[Tensor, "batch dim"], weight: Float[Tensor, "classes dim"]
) -> Int64[Tensor, " batch"]:
    """Return the class whose embedding is nearest to each latent."""
    return (0.5 * weight.square().sum(dim=1) - z @ weight.T).argmin(dim=1)


def greatest_distance(weight: Float[Tensor, "classes dim"]) -> float:
    r"""Return the greatest distance between two embeddings, in float64.

    At most $D^2 e^{-\gamma}$ separates the means of two classes in $z_t$, as a squared number of
    standard deviations: where that is small, $z_t$ does not tell the label.
    """
    weight = weight.detach().cpu().double()
    return torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").max().item()


def separation(
    weight: Float[Tensor, "classes dim"],
) -> tuple[Float[Tensor, " classes"], float]:
    """Return the length of every embedding and the least distance of two; both show a collapse."""
    weight = weight.detach().cpu().double()  # not every device has float64
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    return weight.norm(dim=1).float(), distances.min().item()
