"""Which photographs are compared with which: all if they are few, or else neighbours and those that look alike.

Photographs that look alike are found by the vectors of locally aggregated descriptors (VLAD, Jégou et al. 2010) of
their SIFT features: per visual word, the sum of the features' differences from it. The words are the centres of a
k-means of the photographs' own features, so that no file of words is needed.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALL_PAIRS = 60
"""Number of photographs up to which all are compared with all."""
_WORDS = 64
_ROUNDS = 12
_SAMPLE = 60_000
"""Features that k-means sees."""
_PER_PHOTOGRAPH = 1500
"""Features of a photograph that are used: those of the largest scale, which survive a change of place best."""
_ALIKE, _ALIKE_VIDEO = 25, 8
"""For how many of the photographs that look most alike, each is compared."""
_NEXT, _NEXT_VIDEO = 3, 8
"""With how many of the following ones, by name or time, each is compared."""
_APART = 12
"""Frames of a video that are closer than this look alike anyway."""

Pairs = list[tuple[int, int]]
Floats = NDArray[np.float32]


def all_pairs(count: int) -> Pairs:
    """Each with each, as index pairs i < j."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def chosen_pairs(descriptors: Floats, video: bool) -> Pairs:
    """Neighbours in order, and those that look alike.

    Args:
        descriptors: [N, D] global descriptors of unit length, in order of names or time.
        video: whether they are frames of a video: then more neighbours, also 16 and 32 frames away, and fewer of
            those that look alike, which close loops.

    Returns:
        Index pairs i < j, sorted, each once.
    """
    count = len(descriptors)
    near = set(range(1, (_NEXT_VIDEO if video else _NEXT) + 1)) | ({16, 32} if video else set())
    pairs = {(i, i + step) for i in range(count) for step in near if i + step < count}
    likeness = descriptors @ descriptors.T
    places = np.arange(count)
    apart = np.abs(places[:, None] - places[None])
    likeness[apart < (_APART if video else 1)] = -np.inf
    for i in range(count):
        best = np.argsort(-likeness[i], kind="stable")[: _ALIKE_VIDEO if video else _ALIKE]
        pairs |= {(min(i, int(j)), max(i, int(j))) for j in best if likeness[i, j] > -np.inf}
    return sorted(pairs)


def pairs_of(database: Path, names: list[str], video: bool) -> Pairs | None:
    """The pairs to compare; None: all.

    Args:
        database: COLMAP's, with features.
        names: of the photographs in order.
        video: whether they are frames of a video.
    """
    if len(names) <= (_NEXT_VIDEO if video else ALL_PAIRS):
        return None
    return chosen_pairs(vlad(read_descriptors(database, names)), video)


def read_descriptors(database: Path, names: list[str]) -> list[NDArray[np.uint8]]:
    """The SIFT descriptors [n, 128] of each photograph with the largest scales."""
    found = []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        query = "SELECT d.rows, d.cols, d.data, k.cols, k.data FROM images i JOIN descriptors d USING (image_id) "
        query += "JOIN keypoints k USING (image_id) WHERE i.name = ?"
        for name in names:
            row = connection.execute(query, (name,)).fetchone()
            if row is None or row[0] == 0:
                found.append(np.zeros((0, 128), np.uint8))
                continue
            descriptors = np.frombuffer(row[2], np.uint8).reshape(row[0], row[1])
            keypoints = np.frombuffer(row[4], np.float32).reshape(row[0], row[3])
            # x, y, and either scale and orientation or a 2 x 2 affine shape.
            shape = keypoints[:, 2:]
            scale = shape[:, 0] if row[3] < 6 else np.abs(shape[:, 0] * shape[:, 3] - shape[:, 1] * shape[:, 2])
            largest = np.argsort(-scale, kind="stable")[:_PER_PHOTOGRAPH]
            found.append(descriptors[largest])
    return found


def vlad(descriptors: list[NDArray[np.uint8]]) -> Floats:
    """Global descriptors [N, words * D] of unit length of N images; zero for an image without features."""
    width = next((d.shape[1] for d in descriptors if len(d)), 128)
    scaled = [_unit(d.astype(np.float32)) for d in descriptors]
    everything = np.concatenate(scaled) if scaled else np.zeros((0, width), np.float32)
    if len(everything) == 0:
        return np.zeros((len(descriptors), 1), np.float32)
    words = _k_means(everything, min(_WORDS, len(everything)))
    found = np.zeros((len(scaled), len(words), width), np.float32)
    for i, features in enumerate(scaled):
        sums, counts = _sums(features, words)
        found[i] = sums - counts[:, None] * words
    # Each word counts alike, whether many features are of it or few (intra-normalisation, Arandjelović and Zisserman).
    return _unit(_unit(found).reshape(len(scaled), -1))


def _k_means(features: Floats, number: int) -> Floats:
    noise = np.random.default_rng(0)
    sample = features[noise.permutation(len(features))[:_SAMPLE]]
    words: Floats = sample[:number].copy()
    for _ in range(_ROUNDS):
        sums, counts = _sums(sample, words)
        words = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1.0)[:, None], words)
    return words


def _sums(features: Floats, words: Floats) -> tuple[Floats, Floats]:
    """Sum [words, D] and number [words] of the features that are nearest to each word."""
    distances = (words**2).sum(-1) - 2.0 * features @ words.T
    belongs = (distances.argmin(-1)[:, None] == np.arange(len(words))).astype(np.float32)
    return belongs.T @ features, belongs.sum(0)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
