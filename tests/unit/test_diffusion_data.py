"""Images, the space that the flow lives in, clusters, and what samples are measured with."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from decentral.diffusion import clusters, flow, grid, images, metrics, recipe, space
from decentral.diffusion.classifier import Classifier
from decentral.diffusion.dit import DiT, Transformer
from decentral.diffusion.networks import MLP, ResidualMLP
from decentral.errors import ConfigError

SHAPES = images.shapes(1000, 400)

# ------------------------------------------------------------------ images


def idx(array: np.ndarray) -> bytes:
    axes = b"".join(n.to_bytes(4) for n in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + axes + array.tobytes())


def put_fashion(folder: Path, n: int = 20) -> Path:
    """A cache with a tiny stand-in, laid out like Debian's package."""
    inside = folder / "dataset-fashion-mnist/usr/share/datasets/fashion-mnist"
    inside.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = rng.integers(256, size=(n, 28, 28)).astype(np.uint8)
        (inside / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        labels = rng.integers(10, size=n).astype(np.uint8)
        (inside / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return inside


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(images, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv("DECENTRAL_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_fashion_mnist_is_found_in_the_cache(nothing_installed: Path) -> None:
    put_fashion(nothing_installed)
    found = images.installed()
    assert (found.name, found.train.shape, found.classes) == ("fashion-mnist", (20, 28, 28), 10)
    assert found.train.max() > 100 and found.labels.max() < 10
    assert images.installed().digest == found.digest != SHAPES.digest


@pytest.mark.parametrize(
    "broken",
    [b"no gzip", gzip.compress(b"\0\0\x08\x03short"), idx(np.zeros(3))],
    ids=["no gzip", "cut short", "other axes"],  # what gzip makes holds the time
)
def test_a_broken_file_is_named(nothing_installed: Path, broken: bytes) -> None:
    file = put_fashion(nothing_installed) / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(broken)
    with pytest.raises(ConfigError, match="t10k-images"):
        images.installed()


def test_without_any_images_it_says_what_to_do(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="make data"):
        images.installed()


def test_the_recipe_takes_what_is_installed(nothing_installed: Path) -> None:
    put_fashion(nothing_installed, n=100)
    program = recipe.program(0)
    assert program.images.name == "fashion-mnist"
    assert program.cells == ("clusters", "router", *(f"expert/{k}" for k in range(4)))
    assert program.fingerprint == recipe.program(0).fingerprint != recipe.program(1).fingerprint


def test_shapes_are_the_same_everywhere_and_all_classes_are_there() -> None:
    assert images.shapes(1000, 400).digest == SHAPES.digest
    assert set(SHAPES.labels.tolist()) == {0, 1, 2, 3}
    assert SHAPES.train.reshape(1000, -1).max(axis=1).min() > 60, "no image is empty"


# ------------------------------------------------------------------ space


def test_components_are_white_orthonormal_and_decode_what_they_encode() -> None:
    fitted = space.fit(SHAPES.train, 40)
    np.testing.assert_allclose(
        fitted["space/basis"] @ fitted["space/basis"].T, np.eye(40), atol=1e-5
    )
    principal = space.Principal(SHAPES.shape, fitted)
    x = principal.encode(SHAPES.train)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(x.T), np.eye(40), atol=1e-2)
    error = principal.decode(x).astype(float) - SHAPES.train
    assert np.abs(error).mean() < 6, "of 255"


def test_pixels_decode_exactly() -> None:
    pixels = space.Pixels(SHAPES.shape)
    np.testing.assert_array_equal(pixels.decode(pixels.encode(SHAPES.train)), SHAPES.train)


# ------------------------------------------------------------------ clusters


def blobs(sizes: list[int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    return np.concatenate(
        [rng.normal(c, 0.5, (n, 2)) for c, n in zip(centres, sizes, strict=True)]
    ).astype(np.float32)


def test_clusters_follow_the_data() -> None:
    found = clusters.cluster(blobs([100] * 4), 4, fine=16, seed=0)
    parts = found["assignment"].reshape(4, 100)
    assert all(len(set(part.tolist())) == 1 for part in parts)
    assert len(set(parts[:, 0].tolist())) == 4


def test_clusters_are_balanced_where_the_data_are_not() -> None:
    found = clusters.cluster(blobs([700, 100, 100, 100]), 4, fine=40, seed=0)
    sizes = np.bincount(found["assignment"], minlength=4)
    assert sizes.sum() == 1000 and sizes.max() < 1.15 * 250
    manifest = clusters.manifest(found["assignment"], 4)
    assert [one["images"] for one in manifest] == sizes.tolist()
    assert len({one["sha256"] for one in manifest}) == 4


def test_new_images_go_where_their_likes_are() -> None:
    points = blobs([100] * 4)
    found = clusters.cluster(points, 4, fine=16, seed=0)
    again = clusters.assign(points + 0.01, found["centroids"], found["coarse"])
    assert (again == found["assignment"]).mean() > 0.99


def test_features_come_from_a_file(tmp_path: Path) -> None:
    points = blobs([100] * 4)
    save_file({"features": points}, tmp_path / "features.safetensors")
    np.testing.assert_array_equal(clusters.read_features(tmp_path / "features.safetensors"), points)
    for wrong in ({"a": points, "b": points}, {"a": points[0]}, {"a": points.astype("f8")}):
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(ConfigError, match="wrong"):
            clusters.read_features(tmp_path / "wrong.safetensors")
    with pytest.raises(ConfigError, match="missing"):
        clusters.read_features(tmp_path / "missing")


# ------------------------------------------------------------------ flow and networks


def test_the_path_runs_from_image_to_noise() -> None:
    x0, noise = torch.ones(2, 3), torch.zeros(2, 3)
    np.testing.assert_allclose(flow.noisy(x0, torch.tensor([0.0, 0.75]), noise)[:, 0], [1, 0.25])


def test_the_loss_is_zero_for_the_right_velocity() -> None:
    x0, noise, t = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    assert float(flow.loss(lambda x, t, c: noise - x0, x0, None, t, noise)) == 0
    assert float(flow.loss(lambda x, t, c: x0 - noise, x0, None, t, noise)) > 1


def test_times_are_stratified() -> None:
    t = flow.times(64, torch.Generator().manual_seed(0))
    assert sorted((t * 64).long().tolist()) == list(range(64))


@pytest.mark.parametrize("conditional", [True, False])
def test_networks_know_time_and_class(conditional: bool) -> None:
    torch.manual_seed(0)
    classes = 4 if conditional else 0
    mlp = ResidualMLP(MLP(width=32, depth=2, condition=16), dim=144, classes=classes, out=144)
    dit = Transformer(DiT(width=32, depth=2, heads=2, patch=4), shape=(12, 12), classes=classes)
    x, t = torch.randn(3, 144), torch.tensor([0.1, 0.5, 0.9])
    labels = torch.tensor([0, 1, 2]) if conditional else None
    assert not dit(x, t, labels).any(), "adaLN-zero: begins as u = 0"
    for network in (mlp, dit):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        out = network(x, t, labels)
        assert out.shape == x.shape
        assert (network(x, t.flip(0), labels)[0] != out[0]).any()
        if labels is not None:
            assert (network(x, t, labels.flip(0))[0] != out[0]).any()
            null = torch.full((3,), 4)
            torch.testing.assert_close(network(x, t, None), network(x, t, null))


def test_a_dit_cuts_and_joins_without_loss() -> None:
    dit = Transformer(DiT(width=8, depth=1, heads=1, patch=4), shape=(12, 8), classes=0)
    x = torch.randn(2, 96)
    torch.testing.assert_close(dit._join(dit._cut(x)), x)
    first = dit._cut(x)[0, 0].view(4, 4)
    torch.testing.assert_close(first, x[0].view(12, 8)[:4, :4])


def test_the_default_dit_has_ten_million_parameters_or_more() -> None:
    dit = Transformer(DiT(), shape=(28, 28), classes=10)
    assert sum(one.numel() for one in dit.parameters()) > 10_000_000


# ------------------------------------------------------------------ metrics


def test_fid_of_gaussians_is_their_known_distance() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((50_000, 3)).astype(np.float32)
    b = (rng.standard_normal((50_000, 3)) * 2 + [1, 0, 0]).astype(np.float32)
    assert metrics.fid(a, b) == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.03)
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-6)


def test_kid_is_about_zero_for_the_same_distribution_and_grows_with_distance() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((3000, 8)).astype(np.float32) for _ in range(3))
    assert abs(metrics.kid(a, b)) < 0.02 < metrics.kid(a, c + 0.5) < metrics.kid(a, c + 1)


def test_precision_falls_with_strange_samples_and_recall_with_missing_ones() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(m, 0.1, (300, 2)) for m in (0, 5)]).astype(np.float32)
    one_mode = rng.normal(0, 0.1, (600, 2)).astype(np.float32)
    stray = np.concatenate([real[:300] + 0.001, np.full((300, 2), 20)]).astype(np.float32)
    precision, recall = metrics.precision_recall(real, one_mode)
    assert precision > 0.8 and recall < 0.6
    assert metrics.precision_recall(real, stray)[0] == pytest.approx(0.5, abs=0.02)


def test_the_classifier_learns_and_is_the_same_again() -> None:
    first = Classifier.trained(SHAPES)
    assert first.accuracy(SHAPES) > 0.65, "a quarter is chance"
    again = Classifier(SHAPES)
    again.load(first.tensors())
    np.testing.assert_array_equal(again.features(SHAPES.test), first.features(SHAPES.test))
    second = Classifier.trained(SHAPES)
    np.testing.assert_array_equal(second.features(SHAPES.test), first.features(SHAPES.test))


# ------------------------------------------------------------------ pictures


def test_a_grid_is_a_png_with_every_pixel(tmp_path: Path) -> None:
    some = SHAPES.train[:5]
    picture = grid.tiled(some, 3, scale=1)
    assert picture.shape == (2 * 12 + 2, 3 * 12 + 4)
    np.testing.assert_array_equal(picture[14:26, 14:26], some[4])
    grid.write(tmp_path / "grid.png", some, 3)
    data = (tmp_path / "grid.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    length = int.from_bytes(data[33:37])
    assert data[37:41] == b"IDAT"
    rows = zlib.decompress(data[41 : 41 + length])
    scaled = grid.tiled(some, 3)
    assert len(rows) == scaled.shape[0] * (scaled.shape[1] + 1)
    assert rows[1 : 1 + scaled.shape[1]] == scaled[0].tobytes()


def test_other_software_reads_the_grid(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    grid.write(tmp_path / "grid.png", SHAPES.train[:4], 2)
    read = pyplot.imread(tmp_path / "grid.png")
    np.testing.assert_allclose(read * 255, grid.tiled(SHAPES.train[:4], 2), atol=0.5)
