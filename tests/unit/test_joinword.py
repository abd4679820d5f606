"""Join words: one shell-safe word; whatever else is pasted gets a sentence."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ConfigError, CredentialError
from decentral.peer import packing
from decentral.peer.credential import RunAuthority, issue, pack_chain, verify
from decentral.peer.identity import Identity
from decentral.peer.joinword import Invite, JoinWord, mint_invite, split_address

NOW = 1_800_000_000.0
AUTHORITY = RunAuthority(Identity(b"a" * 32))
JOINER = Identity(b"j" * 32)
INVITE = mint_invite(AUTHORITY.key, (), now=NOW)
WORD = JoinWord(addresses=("198.51.100.7:4242", "peer.example.org:4242"), invite=INVITE).text


def rewrapped(fields: object) -> str:
    """A word whose invite holds `fields`, with a right checksum."""
    blob = packing.pack(fields)
    blob += hashlib.sha256(blob).digest()[:4]
    return "h:1#" + base64.urlsafe_b64encode(blob).decode().rstrip("=")


def test_round_trip() -> None:
    word = JoinWord.parse(WORD)
    assert word.addresses == ("198.51.100.7:4242", "peer.example.org:4242")
    assert word.invite == INVITE and word.text == WORD
    assert JoinWord.parse(f"  {WORD}\n") == word
    assert INVITE.seed.hex() not in repr(word) and repr(INVITE.seed) not in repr(word)


def test_shell_safe() -> None:
    assert re.fullmatch(r"[A-Za-z0-9:.,#_-]+", WORD) and not WORD.startswith("#")
    assert shlex.split(f"decentral peer --join {WORD}", comments=False)[-1] == WORD
    assert len(WORD) < 400


def test_ipv6_travels_inside() -> None:
    word = JoinWord(addresses=("[2001:db8::1]:4242", "h:1"), invite=INVITE)
    assert word.addresses == ("h:1", "[2001:db8::1]:4242")
    assert word.text.startswith("h:1#") and "[" not in word.text
    assert JoinWord.parse(word.text) == word


def test_ipv6_alone() -> None:
    word = JoinWord(addresses=("[2001:db8::1]:4242",), invite=INVITE)
    assert word.text.startswith("invite:4242#")
    assert JoinWord.parse(word.text) == word
    with pytest.raises(ConfigError, match="need an invite"):
        JoinWord(addresses=("[2001:db8::1]:4242",))


def test_a_bare_address() -> None:
    word = JoinWord.parse("peer.example.org:4242")
    assert word.invite is None and word.addresses == ("peer.example.org:4242",)
    assert word.text == "peer.example.org:4242"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "starts with HOST:PORT"),
        ("#AAAA", "starts with HOST:PORT"),
        ("host", "is not HOST:PORT"),
        ("host:", "is not HOST:PORT"),
        ("host:0", "a port is 1 to 65535"),
        ("host:65536", "a port is 1 to 65535"),
        ("host:99999999999999999", "a port is 1 to 65535"),
        ("host:٣", "a port is 1 to 65535"),
        (":4242", "the host looks wrong"),
        ("-rf:4242", "the host looks wrong"),
        ("a b:4242", "the host looks wrong"),
        ("$(reboot):1", "the host looks wrong"),
        ("[::1:4242", "the host looks wrong"),
        ("[zz]:4242", r"not \[IPv6\]:PORT"),
        ("h:1,,h:2", "is not HOST:PORT"),
        (",".join(["h:1"] * 17), "at most 16 addresses"),
        ("h" * 5000, "at most 4096 characters"),
        ("h:1#", "cut short or mistyped"),
        ("h:1#AAAA", "cut short or mistyped"),
        ("h:1#A", "cut short or mistyped"),
        ("h:1#A!A", "cut short or mistyped"),
        ("invite:1", "reserved"),
        (rewrapped([2, b""]), "of version 2, this peer reads version 1"),
        (rewrapped({}), "of version None"),
        (rewrapped([1]), "cannot be used: an invite is not an array of 5"),
        (rewrapped([1, bytes(32), b"", [], False]), "its chain is not a string"),
        (rewrapped([1, b"", pack_chain(INVITE.chain), [], False]), "its key"),
        (rewrapped([1, bytes(32), pack_chain(INVITE.chain), [], False]), "not about its key"),
        (rewrapped([1, bytes(32), pack_chain(()), [], False]), "not about its key"),
        (rewrapped([1, INVITE.seed, pack_chain(INVITE.chain), ["h:1"], False]), "inside it"),
    ],
)  # fmt: skip
def test_malformed_words(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        JoinWord.parse(text)


@given(st.integers(0, len(WORD) - 1))
def test_a_truncated_paste_is_told(length: int) -> None:
    text = WORD[:length]
    if "#" not in text:  # what is left may be a valid bare address
        return
    with pytest.raises(ConfigError, match="cut short or mistyped"):
        JoinWord.parse(text)


@given(st.integers(WORD.index("#") + 1, len(WORD) - 1), st.sampled_from("Az09_-"))
def test_a_mistyped_invite_is_told(at: int, letter: str) -> None:
    text = WORD[:at] + letter + WORD[at + 1 :]
    if text == WORD:
        return
    try:
        assert JoinWord.parse(text).invite == INVITE  # only the padding bits of the last letter
        assert at == len(WORD) - 1
    except ConfigError as error:
        assert "cut short or mistyped" in error.says


@given(st.text(max_size=300) | st.from_regex(r"[a-z]{1,5}:[0-9]{1,5}#[A-Za-z0-9_-]{0,200}"))
def test_random_text_is_a_word_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        JoinWord.parse(text)


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(nested | st.lists(nested, max_size=4).map(lambda rest: [1, *rest]))
def test_random_invites_are_config_errors(fields: object) -> None:
    with pytest.raises(ConfigError):
        JoinWord.parse(rewrapped(fields))


def test_a_joiner_makes_its_own_credential() -> None:
    invite = JoinWord.parse(WORD).invite
    assert invite is not None and invite.run == AUTHORITY.run
    chain = invite.credential_for(JOINER.public, now=NOW)
    assert verify(chain, AUTHORITY.public, JOINER.public, NOW) == "train"


def test_an_invite_expires() -> None:
    with pytest.raises(CredentialError, match="the invite does not hold: expired 1 d ago"):
        INVITE.credential_for(JOINER.public, now=NOW + 31.5 * 86_400)


def test_a_forged_invite() -> None:
    stranger = Identity(b"s" * 32)
    forged = Invite(
        seed=stranger.seed,
        chain=(
            INVITE.chain[0],
            issue(stranger, AUTHORITY.run, stranger.public, now=NOW, can_invite=True),
        ),
    )
    word = JoinWord(addresses=("h:1",), invite=forged)
    invite = JoinWord.parse(word.text).invite
    assert invite is not None
    with pytest.raises(CredentialError, match="the invite does not hold"):
        invite.credential_for(JOINER.public, now=NOW)


def test_any_member_can_invite_and_the_last_one_passes_on() -> None:
    """Depth: authority → invite → A → invite → B. B passes on the invite it came with."""
    a, b = Identity(b"1" * 32), Identity(b"2" * 32)
    chain_a = INVITE.credential_for(a.public, now=NOW)
    second = mint_invite(a, chain_a, now=NOW)
    chain_b = second.credential_for(b.public, now=NOW)
    assert verify(chain_b, AUTHORITY.public, b.public, NOW) == "train"
    with pytest.raises(ConfigError, match="pass on the invite"):
        mint_invite(b, chain_b, now=NOW)
    passed_on = JoinWord(addresses=("h:1",), invite=second).at("b:2")
    assert JoinWord.parse(passed_on.text).addresses == ("b:2",)
    assert JoinWord.parse(passed_on.text).invite == second


def test_who_may_not_invite() -> None:
    chain = AUTHORITY.issue(JOINER.public, now=NOW, can_invite=False)
    with pytest.raises(ConfigError, match="does not allow it to invite"):
        mint_invite(JOINER, chain, now=NOW)


def test_open_runs_are_marked() -> None:
    invite = mint_invite(AUTHORITY.key, (), now=NOW, open=True)
    word = JoinWord.parse(JoinWord(addresses=("h:1",), invite=invite).text)
    assert word.invite is not None and word.invite.open


def test_addresses_split() -> None:
    assert split_address("[2001:DB8::0:1]:65535") == ("2001:db8::1", 65535)
    assert split_address("127.0.0.1:1") == ("127.0.0.1", 1)
