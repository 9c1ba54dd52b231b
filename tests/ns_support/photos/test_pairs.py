"""Which photographs are compared."""

import sqlite3

import numpy as np
import pytest

from ns_support.photos.pairs import ALL_PAIRS, all_pairs, chosen_pairs, pairs_of, read_descriptors, vlad


def places(count, seed=0):
    """Features of `count` places, each with visual words of its own."""
    noise = np.random.default_rng(seed)
    return [noise.integers(0, 200, (30, 128)) for _ in range(count)]


def visit(place, seed):
    noise = np.random.default_rng(seed)
    return np.clip(place + noise.integers(-9, 10, place.shape), 0, 255).astype(np.uint8)


def test_all_pairs():
    assert all_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_descriptors_have_unit_length_and_find_the_same_place():
    found = vlad([visit(place, seed) for seed in (1, 2) for place in places(6)])
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    likeness = found @ found.T - np.eye(12)
    assert likeness.argmax(1).tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]


def test_an_image_without_features():
    found = vlad([np.zeros((0, 128), np.uint8), visit(places(1)[0], 1)])
    assert not found[0].any()
    assert np.isfinite(found).all()
    assert not vlad([np.zeros((0, 128), np.uint8)] * 3).any()


def test_photographs_of_a_place_are_paired_wherever_they_are_in_order():
    count = 40
    scene = places(count)
    descriptors = vlad([visit(place, seed) for seed in (1, 2) for place in scene])
    pairs = chosen_pairs(descriptors, video=False)
    assert pairs == sorted(set(pairs))
    assert all(i < j for i, j in pairs)
    assert {(i, i + count) for i in range(count)} <= set(pairs)
    assert {(i, i + step) for i in range(2 * count - 3) for step in (1, 2, 3)} <= set(pairs)
    assert len(pairs) < len(all_pairs(2 * count))


def test_a_video_closes_its_loop_with_a_bounded_number_of_pairs():
    count = 200
    scene = places(count // 2)
    descriptors = vlad([visit(place, seed) for seed in (1, 2) for place in scene])  # round twice
    pairs = set(chosen_pairs(descriptors, video=True))
    assert {(i, i + step) for i in range(count - 8) for step in range(1, 9)} <= pairs
    assert {(i, i + 100) for i in range(100)} <= pairs
    assert len(pairs) <= count * (10 + 8)


def test_no_pair_of_an_image_with_itself():
    assert all(i != j for i, j in chosen_pairs(np.ones((70, 4), np.float32), video=False))


def write_database(path, descriptors, scales):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE images (image_id INTEGER, name TEXT)")
        for table in ("descriptors", "keypoints"):
            database.execute(f"CREATE TABLE {table} (image_id INTEGER, rows INTEGER, cols INTEGER, data BLOB)")
        for number, (features, scale) in enumerate(zip(descriptors, scales, strict=True)):
            database.execute("INSERT INTO images VALUES (?, ?)", (number, f"{number}.jpg"))
            keypoints = np.zeros((len(features), 4), np.float32)
            keypoints[:, 2] = scale
            for table, rows in (("descriptors", features), ("keypoints", keypoints)):
                values = number, *rows.shape, rows.tobytes()
                database.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", values)
    database.close()
    return path


def test_the_features_of_the_largest_scale_are_read(tmp_path):
    features = np.arange(3000 * 128).astype(np.uint8).reshape(3000, 128)
    features[:, 0] = np.arange(3000) // 1500
    path = write_database(tmp_path / "database.db", [features], [np.where(features[:, 0] == 1, 9.0, 1.0)])
    (read,) = read_descriptors(path, ["0.jpg"])
    assert len(read) == 1500
    assert (read[:, 0] == 1).all()
    assert len(read_descriptors(path, ["unknown.jpg"])[0]) == 0


@pytest.mark.parametrize(("count", "all_of_them"), [(ALL_PAIRS, True), (ALL_PAIRS + 1, False)])
def test_few_photographs_are_all_compared(tmp_path, count, all_of_them):
    features = [visit(place, 1) for place in places(count)]
    path = write_database(tmp_path / "database.db", features, [np.ones(30)] * count)
    names = [f"{i}.jpg" for i in range(count)]
    assert (pairs_of(path, names, video=False) is None) == all_of_them
    assert pairs_of(path, names, video=True) is not None
