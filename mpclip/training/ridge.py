"""Ridge regression from texts to pictures, from sums over samples (ours). `closed_form.py` applies it to a model.

A picture is described by its whitened principal axes. The ridge of a regression, and the whitening of the axes, are shares of a
mean, so that they mean the same for towers of any scale.
"""

from dataclasses import dataclass

import torch

AXES = 512  # principal axes of the pictures that are kept at most
WHITENING = 3.0  # best of 0.3, 1, 3 and 10 on validation[:50%] of Flickr8k
RIDGES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # times the mean variance of a channel


def whitened_axes(pictures: torch.Tensor, most: int = AXES) -> tuple[torch.Tensor, torch.Tensor]:
    """The principal axes of pictures, each divided by the root of its variance plus that of the mean axis times `WHITENING`.

    Args:
        pictures: (I, C).
        most: axes that are kept at most.

    Returns:
        The mean, (C,), and the map to r axes, (C, r), the one of the largest variance last.
    """
    mean = pictures.mean(dim=0)
    variance, directions = torch.linalg.eigh((pictures - mean).T @ (pictures - mean) / len(pictures))  # ascending
    rank = min(most, len(pictures), pictures.shape[1])
    scale = (variance[-rank:] + WHITENING * variance.mean()).rsqrt()  # (r,)
    return mean, directions[:, -rank:] * scale


@dataclass
class Sums:
    """Sums over T pairs of an input x (F,) and an output y (r,): all that a regression needs.

    Attributes:
        count: (), T.
        x, y: (F,) and (r,), sums.
        xx, xy: (F, F) and (F, r), sums of products.
    """

    count: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor

    @classmethod
    def zero(cls, inputs: int, outputs: int) -> "Sums":
        """The sums over no pair of F inputs and r outputs."""
        return cls.of(torch.zeros(0, inputs), torch.zeros(0, outputs))

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> "Sums":
        """The sums of (T, F) inputs and (T, r) outputs."""
        return cls(torch.tensor(float(len(x))), x.sum(dim=0), y.sum(dim=0), x.T @ x, x.T @ y)

    def add(self, other: "Sums") -> None:
        """Add the sums of other pairs, in place."""
        for name, value in vars(other).items():
            getattr(self, name).add_(value)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(value + getattr(other, name) for name, value in vars(self).items()))


class Ridge:
    """Ridge regressions of any strength, y = x W, from the same sums. They have no constant, as projections have none.

    Args:
        sums: of the pairs. Outputs have a mean of 0, or nearly so.
        widths: of the vectors that an input is made of. Each counts by its direction alone: it is scaled to a mean squared
            distance of 1 from its mean.
    """

    def __init__(self, sums: Sums, widths: list[int]):
        T = sums.count
        mean = sums.x / T  # (F,)
        variance = (sums.xx.diagonal() / T - mean.square()).clamp(min=0)  # (F,)
        lengths = [part.sum().sqrt().clamp(min=1e-12) for part in variance.split(widths)]
        self.scale = torch.cat([length.expand(width) for length, width in zip(lengths, widths, strict=True)])  # (F,)
        scales = torch.outer(self.scale, self.scale)
        self.moments = (sums.xx / T / scales).double()  # (F, F)
        self.covariance = ((sums.xx / T - torch.outer(mean, mean)) / scales).double()  # (F, F)
        self.target = (sums.xy / T / self.scale[:, None]).double()  # (F, r)
        self.unit = len(widths) / len(mean)  # mean variance of a channel

    def solve(self, strength: float) -> torch.Tensor:
        """W (F, r), float32, of the regression of a strength."""
        loaded = self.moments + strength * self.unit * torch.eye(len(self.moments), dtype=torch.float64)
        return (torch.cholesky_solve(self.target, torch.linalg.cholesky(loaded)) / self.scale[:, None]).float()

    def directions(self, weight: torch.Tensor) -> torch.Tensor:
        """(r, r) orthonormal columns: the directions of the outputs, the one that most of the predictions lies in first."""
        scaled = weight.double() * self.scale[:, None]  # (F, r)
        return torch.linalg.eigh(scaled.T @ self.covariance @ scaled)[1].flip(1).float()
