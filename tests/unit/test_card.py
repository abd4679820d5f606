"""What a peer's home, its join word and its credential come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from decentral.errors import ConfigError
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.runtime.card import MembershipCard


def card(folder: Path, identity: Identity, *join: str) -> MembershipCard:
    home = Home(folder)
    try:
        return MembershipCard(
            home, identity, folder.name, join=join, credential=None, open_run=False
        )
    finally:
        home.close()


def word(maker: MembershipCard) -> str:
    maker.addresses = ("127.0.0.1:1",)
    return maker.join_word()


def test_a_kept_credential_counts_whatever_word_one_comes_back_with(tmp_path: Path) -> None:
    maker = card(tmp_path / "maker", Identity.generate())
    me = Identity.generate()
    first = card(tmp_path / "me", me, word(maker))
    assert first._invite is not None
    again = card(tmp_path / "me", me, word(maker))
    assert again._invite is None, "a proof of the new invite would not go with the old chain"
    assert again.context is not None and first.context is not None
    assert again.context.chain == first.context.chain


def test_a_word_of_another_run_is_refused(tmp_path: Path) -> None:
    one, other = (card(tmp_path / name, Identity.generate()) for name in ("one", "other"))
    me = Identity.generate()
    card(tmp_path / "me", me, word(one))
    with pytest.raises(ConfigError, match="belongs to run"):
        card(tmp_path / "me", me, word(other))
