"""Features, balanced clusters, classifiers, and where documents come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from decentral.dipaco import Routing, corpus, router
from decentral.dipaco.clusters import balanced_kmeans, prices
from decentral.dipaco.documents import Documents
from decentral.dipaco.features import pairs
from decentral.errors import ConfigError


def blobs(sizes: list[int], d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.Generator(np.random.Philox(key=5))
    centres = random.normal(size=(len(sizes), d)) * 4
    x = [centre + random.normal(size=(n, d)) for centre, n in zip(centres, sizes, strict=True)]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = random.permutation(len(labels))
    return np.concatenate(x).astype(np.float32)[order], labels[order]


def test_pairs_are_of_length_one_and_know_what_they_count() -> None:
    ids = np.array([[1, 2, 1, 2, 1], [1, 2, 1, 2, 1], [7, 8, 9, 7, 7]], np.uint8)
    x = pairs(ids, 256)
    assert x.dtype == np.float32
    np.testing.assert_allclose((x**2).sum(1), 1, rtol=1e-6)
    assert np.array_equal(x[0], x[1]) and not np.array_equal(x[0], x[2])
    assert sorted(x[0][x[0] > 0] ** 2) == pytest.approx([0.5, 0.5])  # (1, 2) and (2, 1), twice each
    assert np.array_equal(pairs(np.repeat(ids, 3000, 0), 256)[::3000], x)  # in slices, the same


def test_kmeans_finds_blobs_of_equal_size() -> None:
    x, labels = blobs([200, 200, 200])
    weights, bias = balanced_kmeans(x, 3, seed=1)
    found = (x @ weights.T + bias).argmax(1)
    for blob in range(3):
        assert np.bincount(found[labels == blob], minlength=3).max() >= 198


def test_prices_make_clusters_equal_where_the_data_are_not() -> None:
    x, _ = blobs([500, 80, 20])
    for balanced in (True, False):
        weights, bias = balanced_kmeans(x, 3, seed=1, balanced=balanced)
        counts = np.bincount((x @ weights.T + bias).argmax(1), minlength=3)
        if balanced:
            assert counts.min() >= 190
        else:
            assert counts.max() > 300


@pytest.mark.parametrize("k", [1, 2, 7])
def test_prices_share_scores_out(k: int) -> None:
    scores = np.random.Generator(np.random.Philox(key=k)).normal(size=(700, k)).astype(np.float32)
    scores[:, 0] += 3
    counts = np.bincount((scores + prices(scores)).argmax(1), minlength=k)
    assert counts.max() - counts.min() <= max(2, 700 // k // 20)


def test_a_classifier_learns_which_path_is_best() -> None:
    x, labels = blobs([150, 150, 150, 150])
    weights, bias = router.logistic(x[:300], labels[:300], 4, l2=1e-4)
    assert ((x[300:] @ weights.T + bias).argmax(1) == labels[300:]).mean() > 0.97


def test_reserved_documents_say_where_the_others_go() -> None:
    """Two kinds of documents; the paths know one kind each, whatever k-means thought."""
    random = np.random.Generator(np.random.Philox(key=2))

    def kind(low: int, n: int) -> np.ndarray:
        return random.integers(low, low + 6, (n, 24)).astype(np.uint8)

    documents = Documents(
        train=np.concatenate([kind(0, 60), kind(50, 60)]),
        reserved=np.concatenate([kind(0, 30), kind(50, 30)]),
        validation=np.concatenate([kind(0, 10), kind(50, 10)]),
    )
    scores = np.ones((2, 60), np.float32)
    scores[1, :30] = scores[0, 30:] = 0.5  # path 1 knows the first kind, path 0 the second
    routing = Routing(prefix=16, size=256)
    made = router.discriminative(routing, documents, lambda ids: pairs(ids, 256), scores)
    assert made["shards/train"][0, :60].mean() > 0.95 and made["shards/train"][0, 60:].mean() < 0.05
    assert made["shards/validation"].tolist() == [1] * 10 + [0] * 10


def test_product_kmeans_numbers_paths_as_the_grid_does() -> None:
    """The first half of the features decides at level 0, the second at level 1."""
    x, labels = blobs([100, 100], d=4)
    y, others = blobs([50, 50, 100], d=4)
    ids = np.zeros((200, 8), np.uint8)
    documents = Documents(train=ids, reserved=ids[:2], validation=ids[:2])
    routing = Routing(prefix=4, product=True, balanced=False)
    both = np.concatenate([x, y], 1)
    made = router.generative(routing, (2, 3), documents, lambda part: both[: len(part)], 3)
    found = made["shards/train"][0]
    for want, got in ((labels, found // 3), (others, found % 3)):
        pairs_of = {(a, b) for a, b in zip(want.tolist(), got.tolist(), strict=True)}
        assert len(pairs_of) == len(set(want.tolist()))


@pytest.mark.parametrize(("paths", "overlap"), [(257, 1), (2, 3)])
def test_too_many_paths_or_too_much_overlap(paths: int, overlap: int) -> None:
    ids = np.zeros((4, 40), np.uint8)
    documents = Documents(train=ids, reserved=ids, validation=ids)
    with pytest.raises(ConfigError, match=r"at most 256 paths|more than the 2 paths"):
        router.schema(Routing(overlap=overlap), paths, 1024, 0, documents)


# ------------------------------------------------------------------ documents


def test_documents_are_windows_of_one_length() -> None:
    ids = np.zeros((3, 8), np.uint8)
    with pytest.raises(ConfigError, match="one length"):
        Documents(train=ids, reserved=ids[:, :7], validation=ids)
    with pytest.raises(ConfigError, match="integers"):
        Documents(train=ids.astype(np.float32), reserved=ids, validation=ids)
    first = Documents(train=ids, reserved=ids, validation=ids)
    other = Documents(train=ids + 1, reserved=ids, validation=ids)
    assert first.digest != other.digest


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus.documents.cache_clear()
    yield tmp_path
    corpus.documents.cache_clear()


def test_any_machine_has_two_domains(empty_cache: Path) -> None:
    made = corpus.documents(train=600, reserved=80, validation=80)
    assert made.domains == ("code", "docstrings")
    assert made.train.shape == (600, 160) and made.validation.shape == (80, 160)
    texts = [{row.tobytes() for row in part} for part in (made.train, made.reserved)]
    assert len(texts[0]) == 600 and not texts[0] & texts[1]
    code = made.train[made.train_domains == 0]
    assert (code == ord("=")).mean() > 2 * (made.train[made.train_domains == 1] == ord("=")).mean()


def test_code_and_its_documentation_come_apart() -> None:
    source = '"""Module."""\n\ndef f(x):\n    """Says\n    so."""\n    return x\n'
    assert corpus.apart(source) == ("def f(x):\n    return x", "Module.\nSays\nso.")
    assert corpus.apart("def (") == ("", "")


def test_fetched_domains_are_used_and_a_failed_fetch_says_why(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not corpus.fetched()

    def fails(command: list[str], **_options: object) -> None:
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(ConfigError, match=r"download linux-doc.* failed: E: Unable to locate"):
        corpus.fetch(say=lambda line: None)
    corpus.folder().mkdir(parents=True, exist_ok=True)
    for number, domain in enumerate(corpus.PACKAGES):
        text = b"".join(b"%d: line %d of %s\n" % (number, i, domain.encode()) for i in range(20000))
        (corpus.folder() / f"{domain}.txt").write_bytes(text)
    assert corpus.fetched()
    assert len(corpus.documents(train=800, reserved=160, validation=160).domains) == 8
