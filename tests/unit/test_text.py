"""Text: every token in one place, the same on every peer, and clear words if it cannot be."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leased_batches import batches_of

from decentral.data import check_dataset, source_of
from decentral.errors import ConfigError, DiskError
from decentral.leases import LeaseBook
from decentral.text import Folder, JsonLines, SavedDataset, TextWindows, load_tokenizer, sources
from decentral.types import Range

SEPARATOR = 256


class Halves:
    """Two bytes a token: what a token is can only be said by reading."""

    name, vocabulary, separator, bytewise = "halves", 65537, 65536, False

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, text: bytes):
        self.encoded += len(text)
        padded = text + b"\0" * (len(text) % 2)
        return np.frombuffer(padded, dtype="<u2").astype(np.int64)


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def lines(*documents: str) -> str:
    return "".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(documents))


def stream_of(windows: TextWindows) -> list[int]:
    """The tokens that the windows were cut from; neighbours must agree on the one they share."""
    tokens = list(windows[0])
    for i in range(1, len(windows)):
        window = list(windows[i])
        assert len(window) == windows.context + 1 and window[0] == tokens[-1]
        tokens += window[1:]
    return [int(token) for token in tokens]


def packed(*documents: bytes) -> list[int]:
    return [token for text in documents for token in (*text, SEPARATOR)]


# ---------------------------------------------------------------------------- windows


def test_files_are_packed_in_the_order_of_their_names(tmp_path):
    write(tmp_path, {"b.txt": "second", "a/z.txt": "first", "c.md": "no text file", "d.txt": ""})
    windows = TextWindows(Folder(tmp_path), context=4)
    expected = packed(b"first", b"second")
    assert windows.tokens == len(expected) and len(windows) == 3
    assert stream_of(windows) == expected[:13]
    assert windows[0].dtype == np.int64 and windows.vocabulary == 257
    with pytest.raises(IndexError):
        windows[3]


def test_lines_of_json_are_documents(tmp_path):
    text = lines("one", "", "zwölf") + "\n" + lines("four \ud800!")
    write(tmp_path, {"x.jsonl": text})
    windows = TextWindows(JsonLines(tmp_path / "x.jsonl"), context=1)
    assert stream_of(windows) == packed(b"one", "zwölf".encode(), b"four ?!")


texts = st.text(st.sampled_from("abc \nö€𝄞"), max_size=90)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(texts, min_size=1, max_size=6).filter(any),
    context=st.integers(1, 40),
    as_json=st.booleans(),
    bytewise=st.booleans(),
)
def test_windows_are_the_whole_text_whatever_its_pieces(documents, context, as_json, bytewise):
    tokenizer = "bytes" if bytewise else Halves()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE", 32)
        patch.setattr(sources, "_MARGIN", 12)
        root = Path(folder)
        if as_json:
            write(root, {"a.jsonl": lines(*documents[:2]), "b.jsonl": lines(*documents[2:])})
            source = JsonLines(root)
        else:
            write(root, {f"{n}.txt": text for n, text in enumerate(documents)})
            source = Folder(root)
        pieces = list(source.pieces())
        read = [source.read(one.where) for one in pieces]
        for text in read:
            text.decode()  # no cut is inside a character
        contents = [text.encode() for text in documents if text]
        whole, document = [], b""
        for piece, text in zip(pieces, read, strict=True):
            assert piece.text in (None, text)
            document += text
            if piece.ends:
                whole.append(document)
                document = b""
        assert whole == contents and not document
        if bytewise:
            expected = packed(*contents)
        else:
            expected = []
            for piece, text in zip(pieces, read, strict=True):
                expected += Halves().encode(text).tolist() + [65536] * piece.ends
        if len(expected) <= context:
            with pytest.raises(ConfigError, match="too few"):
                TextWindows(source, context=context, tokenizer=tokenizer)
            return
        windows = TextWindows(source, context=context, tokenizer=tokenizer)
        assert windows.tokens == len(expected)
        assert stream_of(windows) == expected[: len(windows) * context + 1]
        assert len(expected) - (len(windows) * context + 1) < context
        # In any order, as a permutation asks for them.
        for i in reversed(range(len(windows))):
            assert windows[i].tolist() == expected[i * context :][: context + 1]


def test_long_lines_are_cut_between_words_and_binary_files_somewhere(tmp_path):
    write(tmp_path, {"a.txt": b"word " * 10_000, "b.txt": bytes([0x80]) * 50_000})
    folder = Folder(tmp_path)
    cut = [one.where for one in folder.pieces() if one.where.part == 0]
    assert all(folder.read(where).startswith(b" word") for where in cut[1:])
    assert sum(one.where.size for one in folder.pieces()) == 100_000


def test_several_sources_follow_one_another(tmp_path):
    write(tmp_path, {"a.txt": "plain", "j/1.jsonl": lines("x", "y"), "j/2.jsonl": lines("z")})
    several = [JsonLines(tmp_path / "j"), Folder(tmp_path / "a.txt"), JsonLines(tmp_path / "j")]
    windows = TextWindows(several, context=1)
    assert stream_of(windows) == packed(b"x", b"y", b"z", b"plain", b"x", b"y", b"z")


# ---------------------------------------------------------------------------- who reads what


def test_bytes_of_plain_files_are_indexed_without_reading_them(tmp_path, monkeypatch):
    write(tmp_path, {f"{n}.txt": "x" * n for n in range(1, 50)})
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read"))
    windows = TextWindows(Folder(tmp_path), context=10)
    monkeypatch.undo()
    assert windows.tokens == sum(n + 1 for n in range(1, 50))


def test_a_window_tokenizes_its_own_pieces_only(tmp_path):
    write(tmp_path, {"a.txt": "some words in a line\n" * 50_000})
    tokenizer = Halves()
    windows = TextWindows(Folder(tmp_path), context=64, tokenizer=tokenizer)
    assert tokenizer.encoded == 21 * 50_000
    windows[5000]
    assert tokenizer.encoded <= 21 * 50_000 + 2 * sources.PIECE
    windows[5001]
    assert tokenizer.encoded <= 21 * 50_000 + 3 * sources.PIECE, "a piece is remembered"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_leases_over_text_give_every_window_once(tmp_path, num_workers):
    words = [f"{n:04}" for n in range(100)]
    write(tmp_path, {"a.txt": "".join(words)})
    windows = TextWindows(Folder(tmp_path), context=4)
    assert check_dataset(windows, 1) == 100
    leases = [(Range(0, 37),), (Range(60, 100),), (Range(37, 60),)]
    data = batches_of(windows, LeaseBook(), leases, num_workers=num_workers)
    seen = [bytes(window[:4].tolist()).decode() for batch in data for window in batch]
    assert len(seen) == 100 and sorted(seen) == words and seen != words


def test_windows_can_be_sent_to_workers_that_are_not_forked(tmp_path):
    write(tmp_path, {"a.txt": "x" * 9000, "b/a.jsonl": lines("y" * 90)})
    windows = TextWindows([Folder(tmp_path), JsonLines(tmp_path / "b")], context=32)
    twin = copy.deepcopy(windows)  # by the protocol that pickle uses
    assert all(np.array_equal(twin[i], windows[i]) for i in range(len(windows)))


# ---------------------------------------------------------------------------- the digest


def test_the_digest_is_of_names_sizes_tokenizer_and_window(tmp_path):
    files = {"a.txt": "some text", "b.txt": "more of it"}
    here = TextWindows(Folder(write(tmp_path / "here", files)), context=4)
    there = TextWindows(Folder(write(tmp_path / "there", files)), context=4)
    assert source_of(here).fact == source_of(there).fact
    others = [
        TextWindows(Folder(write(tmp_path / "1", {**files, "b.txt": "more of it!"})), context=4),
        TextWindows(Folder(write(tmp_path / "2", {**files, "c.txt": "x"})), context=4),
        TextWindows(Folder(tmp_path / "here"), context=5),
        TextWindows(Folder(tmp_path / "here"), context=4, tokenizer=Halves()),
        TextWindows([Folder(tmp_path / "here"), Folder(tmp_path / "here")], context=4),
    ]
    assert len({here.digest, *(one.digest for one in others)}) == 6
    write(tmp_path, {"j/a.jsonl": '{"a": "one", "b": "two"}\n'})
    a, b = (
        TextWindows(JsonLines(tmp_path / "j", field), context=1, cache=tmp_path / "kept")
        for field in ("a", "b")
    )
    assert (
        a.digest != b.digest and stream_of(a) == packed(b"one") and stream_of(b) == packed(b"two")
    )


# ---------------------------------------------------------------------------- the kept index


def test_counts_are_kept_until_a_file_changes(tmp_path):
    root = write(tmp_path / "text", {"a.txt": "some text\n" * 10_000})
    tokenizer = Halves()

    def windows() -> TextWindows:
        tokenizer.encoded = 0
        return TextWindows(Folder(root), context=64, tokenizer=tokenizer, cache=tmp_path / "kept")

    first = windows()
    assert tokenizer.encoded == 100_000
    second = windows()
    assert tokenizer.encoded == 0
    assert first.digest == second.digest
    assert all(np.array_equal(first[i], second[i]) for i in range(len(first)))
    write(root, {"a.txt": "some text\n" * 10_001})
    windows()
    assert tokenizer.encoded == 100_010
    for kept in (tmp_path / "kept").iterdir():
        kept.write_bytes(kept.read_bytes()[:-5])
    windows()
    assert tokenizer.encoded == 100_010, "a damaged index is made again"
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".safetensors"}


def test_an_index_that_cannot_be_kept_is_said(tmp_path):
    write(tmp_path, {"a.txt": "some text", "file": ""})
    with pytest.raises(DiskError, match="cannot be kept"):
        TextWindows(Folder(tmp_path), context=2, cache=tmp_path / "file" / "below")


# ---------------------------------------------------------------------------- refusals


def test_limits_are_checked_before_memory_is_taken(tmp_path):
    write(tmp_path, {"a.jsonl": lines(*["x"] * 11)})
    assert TextWindows(JsonLines(tmp_path), context=2, max_pieces=11).tokens == 22
    with pytest.raises(ConfigError, match="more than 10 pieces"):
        TextWindows(JsonLines(tmp_path), context=2, max_pieces=10)


def test_a_line_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE", 40)
    write(tmp_path, {"a.jsonl": lines("short", "x" * 40)})
    with pytest.raises(ConfigError, match=r"a\.jsonl, byte \d+: a line is longer"):
        TextWindows(JsonLines(tmp_path), context=2)


@pytest.mark.parametrize("line", ["{", "[1]", '{"other": "x"}', '{"text": 1}', "\xff", "[" * 9999])
def test_what_is_no_document_is_named(tmp_path, line):
    good = lines("good")
    write(tmp_path, {"a.jsonl": good + line + "\n"})
    with pytest.raises(ConfigError, match=rf"a\.jsonl, byte {len(good)}: no "):
        TextWindows(JsonLines(tmp_path), context=2)


def test_no_text_is_said(tmp_path):
    for make in (Folder, JsonLines):
        with pytest.raises(ConfigError, match="there is no text"):
            make(tmp_path)
        with pytest.raises(ConfigError, match="there is no text"):
            make(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"no \*\.arrow"):
        SavedDataset(tmp_path)
    with pytest.raises(ConfigError, match="context"):
        TextWindows(Folder(write(tmp_path, {"a.txt": "abc"})), context=0)


def test_text_that_changes_or_goes_away_is_an_error(tmp_path):
    write(tmp_path, {"a.txt": "some text that will change", "b.txt": "x" * 30})
    windows = TextWindows(Folder(tmp_path), context=8)
    write(tmp_path, {"a.txt": "shorter"})
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ConfigError, match=r"a\.txt has changed"):
        windows[0]
    with pytest.raises(ConfigError, match=r"b\.txt cannot be read: "):
        windows[4]
    write(tmp_path, {"j/a.jsonl": lines("abcd")})
    windows = TextWindows(JsonLines(tmp_path / "j"), context=2)
    write(tmp_path, {"j/a.jsonl": lines("\\n")})
    with pytest.raises(ConfigError, match="has changed"):
        windows[0]


# ---------------------------------------------------------------------------- other packages


@pytest.mark.parametrize("package", ["tokenizers", "tiktoken", "datasets"])
def test_a_package_that_is_not_there_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    write(tmp_path, {"it.json": "{}", "data-00000-of-00001.arrow": "x"})
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        if package == "tokenizers":
            load_tokenizer(str(tmp_path / "it.json"))
        elif package == "tiktoken":
            load_tokenizer("tiktoken:gpt2")
        else:
            SavedDataset(tmp_path)


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="no tokenizer 'words'"):
        load_tokenizer("words")


def test_a_tokenizer_file(tmp_path):
    package = pytest.importorskip("tokenizers")
    path = tmp_path / "bpe.json"
    made = package.Tokenizer(package.models.BPE())
    made.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = ["the cat sat on the mat\n" * 900, "zwölf Boxkämpfer jagen\n" * 900]
    made.train_from_iterator(documents, trainer)
    made.enable_truncation(16)
    made.save(str(path))
    write(tmp_path, {f"{n}.txt": text for n, text in enumerate(documents)})
    windows = TextWindows(Folder(tmp_path), context=32, tokenizer=str(path))
    assert max(max(window) for window in windows) < windows.vocabulary
    tokens = stream_of(windows)
    separator = load_tokenizer(str(path)).separator
    first = tokens[: tokens.index(separator)]
    assert made.decode(first) == documents[0] and len(first) < len(documents[0])
    with pytest.raises(ConfigError, match="has no token '</s>'"):
        load_tokenizer(str(path), separator="</s>")
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer"):
        load_tokenizer(str(path))


def test_a_tiktoken_encoding(tmp_path, monkeypatch):
    package = pytest.importorskip("tiktoken")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tokenizer("tiktoken:no-such")
    # The real ones come from the network.
    tiny = package.Encoding(
        "tiny",
        pat_str=r"\s?\w+|\s+",
        mergeable_ranks={bytes([n]): n for n in range(256)} | {b"th": 256, b"the": 257},
        special_tokens={"<|endoftext|>": 258},
    )
    monkeypatch.setattr(package, "get_encoding", lambda name: tiny)
    write(tmp_path, {"a.txt": "the cat", "b.txt": "the <|endoftext|> mat"})
    windows = TextWindows(Folder(tmp_path), context=1, tokenizer="tiktoken:tiny")
    tokens = stream_of(windows)
    assert tokens[:6] == [257, *b" cat", 258] and tokens.count(258) == 2
    assert windows.vocabulary == 259


def test_a_folder_of_datasets(tmp_path):
    package = pytest.importorskip("datasets")
    rows = {"text": ["one", "", "three"], "n": [1, 2, 3]}
    package.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    windows = TextWindows(SavedDataset(tmp_path / "saved"), context=1)
    assert stream_of(windows) == packed(b"one", b"three")
    with pytest.raises(ConfigError, match="no column 'body', but text, n"):
        SavedDataset(tmp_path / "saved", column="body")
    with pytest.raises(ConfigError, match="'n' is no string"):
        TextWindows(SavedDataset(tmp_path / "saved", column="n"), context=1)
