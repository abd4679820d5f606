"""The corpus: the same for everybody with the same Python, and no text on both sides."""

from __future__ import annotations

import pytest

from decentral.errors import ConfigError
from decentral.recipes.corpus import read_corpus, standard_library


def tree(root, files: dict[str, str]):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FILES = {f"m{i}.py": f"x = {i}\n" * 3 for i in range(60)}


def test_equal_trees_give_equal_bytes(tmp_path):
    a = read_corpus(tree(tmp_path / "a", FILES))
    b = read_corpus(tree(tmp_path / "b", dict(reversed(FILES.items()))))
    assert a.digest == b.digest
    assert a.train.tobytes() == b.train.tobytes()


def test_any_changed_file_changes_the_digest(tmp_path):
    a = read_corpus(tree(tmp_path / "a", FILES))
    b = read_corpus(tree(tmp_path / "b", FILES | {"m3.py": "y"}))
    assert a.digest != b.digest


def test_what_differs_between_installations_is_left_out(tmp_path):
    extra = dict.fromkeys(
        (
            "test/a.py",
            "json/tests/b.py",
            "site-packages/c.py",
            "idlelib/d.py",
            "config-3.11-x86_64-linux-gnu/python-config.py",
            "_sysconfigdata__linux_x86_64-linux-gnu.py",
            "notes.txt",
        ),
        "left out",
    )
    a = read_corpus(tree(tmp_path / "a", FILES))
    b = read_corpus(tree(tmp_path / "b", FILES | extra))
    assert a.digest == b.digest


def test_copies_count_once_and_no_file_is_on_both_sides(tmp_path):
    a = read_corpus(tree(tmp_path / "a", FILES))
    b = read_corpus(tree(tmp_path / "b", FILES | {"z/copy.py": FILES["m7.py"]}))
    assert a.digest == b.digest
    lines = [set(part.tobytes().splitlines()) for part in (a.train, a.validation)]
    assert not lines[0] & lines[1] and len(lines[0] | lines[1]) == 60


def test_nothing_to_read_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no Python source"):
        read_corpus(tmp_path)


def test_the_real_one_is_big_enough():
    corpus = standard_library()
    assert len(corpus.train) > 4_000_000 and len(corpus.validation) > 200_000
    assert b"def " in corpus.train[:100_000].tobytes()
