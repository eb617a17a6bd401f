"""Critic-free measures of pictures [B, 3, H, W] in [0, 1]: what a control really did."""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor


def _segment_errors(rows: Tensor, position: Tensor) -> Tensor:
    """Residual of a line fitted to the first k rows of [B, H, 3], for k = 0 … H: [B, H + 1]."""

    def running(values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values[:, :1]), values.cumsum(dim=1)], dim=1)

    ones = torch.ones_like(position)
    n, sx, sxx = (running(v[None, :, None]) for v in (ones, position, position.square()))
    sy, sxy, syy = (running(v) for v in (rows, rows * position[:, None], rows.square()))
    variance = (sxx - sx.square() / n.clamp(min=1)).clamp(min=1e-9)
    covariance = sxy - sx * sy / n.clamp(min=1)
    total = syy - sy.square() / n.clamp(min=1)
    return (total - torch.where(n > 1.5, covariance.square() / variance, torch.zeros(()))).sum(dim=2)


def horizon_position(images: Tensor, margin: float = 0.05) -> Tensor:
    """Height of the horizon as a fraction from the top, [B].

    The median colour of each row is split into a part above and a part below, each a linear gradient, where the two
    fit best (least squares); the row at the split tells the subpixel position by its mix of the two.
    """
    rows = images.double().median(dim=3).values.transpose(1, 2)  # [B, H, 3]
    height = rows.shape[1]
    position = torch.arange(height, dtype=torch.float64) / height
    above = _segment_errors(rows, position)
    below = _segment_errors(rows.flip(1), position).flip(1)
    low, high = max(4, round(margin * height)), height - max(4, round(margin * height))
    # The row at the split belongs to neither side: it may be a mix of both.
    cost = above[:, :-1] + below[:, 1:]
    split = cost[:, low:high].argmin(dim=1) + low
    return torch.stack([_subpixel(r, int(k)) for r, k in zip(rows, split, strict=True)]).float() / height


def _subpixel(rows: Tensor, split: int) -> Tensor:
    """Where in row `split` of [H, 3] the horizon lies, in pixels from the top."""
    upper = 2 * rows[split - 1] - rows[split - 2]
    lower = 2 * rows[split + 1] - rows[split + 2]
    step = lower - upper
    share_below = ((rows[split] - upper) @ step / step.square().sum().clamp(min=1e-9)).clamp(0, 1)
    return split + 1 - share_below


def brightness(images: Tensor) -> Tensor:
    """Mean Rec. 709 luma of sRGB values, [B] in [0, 1]."""
    weights = images.new_tensor([0.2126, 0.7152, 0.0722])
    return (images.mean(dim=(2, 3)) * weights).sum(dim=1)


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB against references of the same shape, [B]."""
    return -10 * (images - references).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()


def _lab(colors: np.ndarray) -> np.ndarray:
    return rgb2lab(np.asarray(colors, dtype=np.float64).reshape(-1, 1, 3)).reshape(-1, 3)


def color_difference(colors: Tensor, others: Tensor) -> Tensor:
    """CIEDE2000 between sRGB colours [N, 3] and as many others, float64 [N]; about 2 is just noticeable."""
    return torch.from_numpy(deltaE_ciede2000(_lab(colors.double().numpy()), _lab(others.double().numpy())))


def palette_distance(colors: np.ndarray, shares: np.ndarray, swatches: np.ndarray) -> float:
    """CIEDE2000 distance between dominant colours [K, 3] with shares [K] of the picture and swatches [S, 3], sRGB.

    The mean of both directions: each dominant colour, by its share, to the nearest swatch; each swatch to the nearest
    dominant colour. 0 is a perfect match, about 2 is just noticeable.
    """
    distance = deltaE_ciede2000(_lab(colors)[:, None], _lab(swatches)[None, :])  # [K, S]
    return float(0.5 * (distance.min(axis=1) @ (shares / shares.sum())) + 0.5 * distance.min(axis=0).mean())


def dominant_colors(image: Tensor, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The centres [K, 3] (sRGB) and shares [K] of a k-means clustering of a picture [3, H, W] in CIELAB."""
    pixels = image.permute(1, 2, 0)[::2, ::2].reshape(-1, 3).double().numpy()
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # a picture of fewer colours leaves clusters empty
        _, label = kmeans2(_lab(pixels), count, minit="++", seed=0)
    used = np.unique(label)
    return (
        np.stack([pixels[label == k].mean(axis=0) for k in used]),
        np.array([(label == k).mean() for k in used]),
    )


def palette_error(images: Tensor, swatches: Tensor) -> Tensor:
    """`palette_distance` of each picture's dominant colours to swatches [S, 3], [B]."""
    target = swatches.double().numpy()
    return torch.tensor([palette_distance(*dominant_colors(image), target) for image in images])


def object_presence(images: Tensor, truth: Tensor, bare: Tensor) -> Tensor:
    """How much of an object's true contrast is in each picture, [B] in [0, 1]; NaN where the truth has no object.

    With D = truth − bare, the same scene without its object, it is ⟨image − bare, D⟩ / ⟨D, D⟩: D is zero outside the
    object's own pixels. Each picture is clipped to [0, 1], so that one with too much contrast does not make up for
    one that lost its object. (A NaN picture counts as 0.)
    """
    contrast = truth - bare
    energy = contrast.square().sum(dim=(1, 2, 3))
    share = ((images - bare) * contrast).sum(dim=(1, 2, 3)) / energy
    return torch.where(energy > 0, share.nan_to_num().clamp(0, 1), torch.nan)


def region_color_error(images: Tensor, references: Tensor, region: Tensor) -> Tensor:
    """CIEDE2000 between the mean sRGB colours of a region [B, H, W] (bool) in pictures and references, [B].

    About 2 is just noticeable; NaN where the region is empty.
    """

    def mean(pictures: Tensor) -> Tensor:
        weight = region[:, None].double()
        return (pictures.double() * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))

    return color_difference(mean(images), mean(references))


def high_frequency_energy(images: Tensor) -> Tensor:
    """Mean squared Laplacian (four neighbours) of each picture, [B]: edges, textures, noise."""
    inner = images[:, :, 1:-1, 1:-1]
    neighbours = images[:, :, :-2, 1:-1] + images[:, :, 2:, 1:-1] + images[:, :, 1:-1, :-2] + images[:, :, 1:-1, 2:]
    return (neighbours - 4 * inner).square().mean(dim=(1, 2, 3))


def outline_energy(images: Tensor, region: Tensor) -> Tensor:
    """Sum of the squared differences between neighbouring pixels, both in the region [B, H, W] (bool), [B]."""
    total = torch.zeros(len(images))
    for axis in (1, 2):
        inside = region.narrow(axis, 1, region.shape[axis] - 1) & region.narrow(axis, 0, region.shape[axis] - 1)
        total += (images.diff(dim=axis + 1).square() * inside[:, None]).sum(dim=(1, 2, 3))
    return total


def row_unevenness(images: Tensor, region: Tensor) -> Tensor:
    """How much the colours of a row differ from its mean, within a region [B, H, W] (bool), [B].

    Root mean square over the region's pixels of the distance in CIELAB; NaN where the region is empty. About 1 is
    just noticeable in smooth areas. Blotches and smears raise it; skies and grounds that change from row to row do not.
    """
    lab = torch.from_numpy(rgb2lab(images.movedim(1, -1).double().clamp(0, 1).numpy()))  # BCHW -> BHWC
    weight = region[..., None].double()
    mean = (lab * weight).sum(dim=2, keepdim=True) / weight.sum(dim=2, keepdim=True).clamp(min=1)
    deviation = ((lab - mean).square() * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    return deviation.sqrt()


def seed_diversity(images: Tensor, prompts: Sequence[str]) -> float:
    """Mean distance (root mean square over pixels and channels) between two pictures of one prompt.

    The mean is over all pairs of pictures that share a prompt; NaN where no two do.
    """
    same = defaultdict(list)
    for image, prompt in zip(images, prompts, strict=True):
        same[prompt].append(image)
    pairs = [pair for group in same.values() for pair in itertools.combinations(group, 2)]
    distances = [(a - b).square().mean().sqrt() for a, b in pairs]
    return float(torch.stack(distances).mean()) if distances else float("nan")
