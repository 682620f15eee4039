"""Which predictions are independent of each other: those of videos that share nobody, directly or over other videos."""

import numpy as np
import pyarrow as pa

from fdtrain.metrics.bootstrap import MAX_CLUSTERS


def identity_clusters(predictions: pa.Table) -> np.ndarray:
    """The cluster of each row: connected components of videos that share an identity, over all methods.

    A real video and the fakes that show its face, or were driven by it, are one cluster, and so are the frames of a
    video. Of FaceForensics++'s test split, 140 real videos and 560 fakes, that makes 70 clusters.

    Args:
        predictions: Columns target and source of `PREDICTION_SCHEMA`; an empty source is nobody.

    Returns:
        int64 `[N]`, from 0, in the order of first appearance; from `MAX_CLUSTERS` on counted from 0 again.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    target, targets = codes(predictions["target"])
    source, sources = codes(predictions["source"])
    people: dict[str, int] = {}
    target_of, source_of = (
        np.array([people.setdefault(name, len(people)) for name in names], np.int64) for names in (targets, sources)
    )
    ends = np.stack([target_of[target], source_of[source]])
    known = ends[:, source_of[source] != people.get("", -1)]
    links = coo_array((np.ones(known.shape[1], np.int8), (known[0], known[1])), (len(people), len(people)))
    _, component = connected_components(links, directed=False)
    return by_appearance(component[ends[0]]) % MAX_CLUSTERS


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A column of words as whole numbers `[N]`, and the words that they stand for."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = encoded.unify_dictionaries().combine_chunks()
    return array.indices.to_numpy(), array.dictionary.to_pylist()


def by_appearance(numbers: np.ndarray) -> np.ndarray:
    """Any whole numbers `[N]` -> 0, 1, ... in the order in which each is first met."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    places = np.empty(len(first), np.int64)
    places[np.argsort(first)] = np.arange(len(first))
    return places[inverse]
