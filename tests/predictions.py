"""Made-up predictions, for tests of what is computed from them."""

import numpy as np
import pyarrow as pa

from datasets_shards.schema import label_of
from fdtrain.metrics import PREDICTION_SCHEMA

METHODS = ("youtube", "Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")


def table_of(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    """From (method, video, frame, score)."""
    return pa.Table.from_pylist(
        [
            {
                "key": f"{method}-{video}-{frame:05d}",
                "split": "test",
                "method": method,
                "video": video,
                "target": video[:3],
                "source": video[4:],
                "frame": frame,
                "label": label_of(method),
                "score": score,
                "quality": "q77",
            }
            for method, video, frame, score in rows
        ],
        schema=PREDICTION_SCHEMA,
    )


def simulated(
    rng: np.random.Generator,
    pairs: int = 70,
    frames: int = 4,
    shift: float = 2.0,
    methods: tuple[str, ...] = METHODS,
) -> pa.Table:
    """Predictions as of FaceForensics++'s test split: of each pair of people 2 real videos, and 2 fakes by each method.

    Before the logistic function a score is normal: a real video's mean 0, a fake's `shift`, plus an effect of the pair
    that all its fakes share, one of the video and one of the frame, each of standard deviation 1.
    """
    rows = []
    for pair in range(pairs):
        first, second = f"{2 * pair:03d}", f"{2 * pair + 1:03d}"
        of_pair = rng.normal()
        for method in methods:
            names = (first, second) if method == "youtube" else (f"{first}_{second}", f"{second}_{first}")
            for video in names:
                mean = rng.normal() + (0 if method == "youtube" else shift + of_pair)
                scores = 1 / (1 + np.exp(-(mean + rng.normal(size=frames))))
                rows += [(method, video, 10 * frame, float(score)) for frame, score in enumerate(scores)]
    return table_of(rows)
