"""t-SNE (van der Maaten and Hinton, JMLR 2008) of what the last layer of a model sees."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from datasets_shards.schema import FAKE, METHODS, REAL, label_of
from fdtrain.config import UserError
from fdtrain.data.batch import Batch
from fdtrain.figures import MIN_POINTS
from fdtrain.figures.samples import Samples, require_finite
from fdtrain.tasks import Task

MAX_PERPLEXITY = 30.0

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and a grey.
COLOURS = {
    "youtube": "#000000",
    "actors": "#777777",
    "real": "#000000",
    "Deepfakes": "#D55E00",
    "Face2Face": "#0072B2",
    "FaceSwap": "#E69F00",
    "NeuralTextures": "#009E73",
    "FaceShifter": "#CC79A7",
    "DeepFakeDetection": "#56B4E9",
    "fake": "#D55E00",
}
MARKERS = ("o", "^")


@torch.inference_mode()
def penultimate_features(task: Task, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """What the model's last linear layer gets, float32 `[N, D]`, and P(fake), float64 `[N]`.

    Args:
        task: In evaluation mode.
        batches: At least one.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    features, scores = [], []
    with _last_linear_input(task.model) as seen:
        for batch in batches:
            scores.append(task.scores(batch).cpu())
            features.append(seen[-1].float().cpu())
            seen.clear()
    return require_finite(torch.cat(features), "features").numpy(), require_finite(torch.cat(scores), "scores").numpy()


@contextmanager
def _last_linear_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of the model's linear layers, in the order in which they run: the last one's is the last."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    hooks = [part.register_forward_pre_hook(keep) for part in model.modules() if isinstance(part, nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def perplexity_of(points: int) -> float:
    """30, or a third of the other points where they are few: t-SNE looks at three times as many neighbours."""
    return min(MAX_PERPLEXITY, (points - 1) / 3)


def embed(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE from the first two principal components: float32 `[N, D]` -> `[N, 2]`.

    Raises:
        UserError: there are fewer than 5 samples, or all have the same features.
    """
    if len(features) < MIN_POINTS:
        raise UserError(f"points: t-SNE needs {MIN_POINTS} samples or more and there are {len(features)}; take more")
    if not np.ptp(features, axis=0).any():
        raise UserError(
            f"model: its features are the same for all {len(features)} samples, so there is nothing to embed; train it"
        )
    method = TSNE(perplexity=perplexity_of(len(features)), init="pca", random_state=seed)
    with threadpool_limits(1):  # sums over several threads come out different each time
        return method.fit_transform(features)


def tsne_figure(samples: Samples, places: np.ndarray, note: str = "") -> Figure:
    """The samples at their places, float `[N, 2]`: colour by method, circles for real and triangles for fake."""
    figure = Figure(figsize=(7.8, 5.8), layout="constrained")
    axes = figure.subplots()
    shuffled = np.random.default_rng(0).permutation(len(samples))  # method after method would hide the first
    for label in (FAKE, REAL):  # the fewer real ones on top
        chosen = [i for i in shuffled if samples.labels[i] == label]
        colours = [COLOURS[samples.methods[i]] for i in chosen]
        x, y = places[chosen].T
        axes.scatter(x, y, s=24, c=colours, marker=MARKERS[label], edgecolors="white", linewidths=0.4)
    legend = []
    for method in sorted(set(samples.methods), key=METHODS.index):
        style: dict[str, Any] = {"marker": MARKERS[label_of(method)], "linestyle": "none", "markersize": 6}
        legend.append(
            Line2D([], [], label=f"{method} ({samples.methods.count(method)})", color=COLOURS[method], **style)
        )
    figure.legend(handles=legend, loc="outside right upper", frameon=False, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("axes have no unit; what is near was near in the features", fontsize=8)
    axes.spines[:].set_color("#bbbbbb")
    title = f"t-SNE of the penultimate features, perplexity {perplexity_of(len(samples)):.3g}"
    axes.set_title(f"{title}\n{note}" if note else title, fontsize=10)
    return figure


def tsne_csv(samples: Samples, places: np.ndarray) -> bytes:
    """The points as text: key, method, label, x, y, score."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["key", "method", "label", "x", "y", "score"])
    columns = (samples.keys, samples.methods, samples.labels, places.tolist(), samples.scores)
    for key, method, label, (x, y), score in zip(*columns, strict=True):
        writer.writerow([key, method, label, f"{x:.6g}", f"{y:.6g}", f"{score:.6g}"])
    return buffer.getvalue().encode()
