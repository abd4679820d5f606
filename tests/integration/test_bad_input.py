"""Bad input gets one sentence that names the phase, a non-zero exit status, and costs nobody else
anything."""

from __future__ import annotations

import http.server
import json
import os
import re
import secrets
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from processes import RECIPES, TINY, Peers

from decentral import _native
from decentral.peer.credential import RunAuthority, save_chain
from decentral.peer.identity import Identity
from decentral.peer.joinword import JoinWord, mint_invite

HEADER = struct.Struct("<HBBIQQQQIIQ")


def start_and_fail(tmp_path: Path, *args: str) -> str:
    """Run `decentral peer` until it fails; its error, which is one line."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "peer", "--recipe", TINY, "--json"]
        + ["--home", str(tmp_path / "bad"), "--listen", "127.0.0.1:0", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(RECIPES)},
        check=False,
    )
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    faults = [json.loads(line) for line in done.stdout.splitlines()]
    assert any(event["event"] == "fault" and event["says"] in lines[0] for event in faults)
    assert "phase: " in lines[0], lines[0]
    return lines[0]


def word_at(port: int, run: RunAuthority | None = None, **invite: object) -> str:
    authority = run or RunAuthority(Identity.generate())
    minted = mint_invite(authority.key, (), now=time.time(), **invite)  # type: ignore[arg-type]
    return JoinWord(addresses=(f"127.0.0.1:{port}",), invite=minted).text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_there(tmp_path: Path) -> None:
    port = free_port()
    error = start_and_fail(tmp_path, "--join", word_at(port))
    assert f"127.0.0.1:{port}" in error and "refused" in error


def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    word = JoinWord.parse(word_at(4242)).at("nowhere.invalid:4242").text
    assert "nowhere.invalid" in start_and_fail(tmp_path, "--join", word)


@pytest.fixture
def web_server() -> Iterator[int]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server(tmp_path: Path, web_server: int) -> None:
    error = start_and_fail(tmp_path, "--join", word_at(web_server))
    assert f"127.0.0.1:{web_server}" in error and "TLS" in error


def test_another_version(tmp_path: Path) -> None:
    future = _native.Endpoint(secrets.token_bytes(32), versions=[99])
    try:
        error = start_and_fail(tmp_path, "--join", word_at(future.listen("127.0.0.1", 0)))
    finally:
        future.close()
    assert re.search(r"\b99\b", error) and re.search(r"\b1\b", error)


def test_a_mistyped_word(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "peer", "--join", word_at(4242)[:-3]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cut short or mistyped" in done.stderr and done.stderr.count("\n") == 1


def test_a_stale_invite(tmp_path: Path) -> None:
    run = RunAuthority(Identity.generate())
    invite = mint_invite(run.key, (), now=time.time() - 90_000, expires_s=3600)
    word = JoinWord(addresses=("127.0.0.1:4242",), invite=invite).text
    assert "expired 1 d ago" in start_and_fail(tmp_path, "--join", word)


def test_a_foreign_invite(tmp_path: Path, peers: Peers) -> None:
    first, word = peers.first()
    port = int(JoinWord.parse(word).addresses[0].rpartition(":")[2])
    error = start_and_fail(tmp_path, "--join", word_at(port))
    assert "is of run" in error
    first.wait_round(first.round + 2, timeout_s=30)


def test_no_invite_and_a_stale_credential(tmp_path: Path, peers: Peers) -> None:
    first, word = peers.first()
    address = JoinWord.parse(word).addresses[0]
    assert "needs an invite or a credential" in start_and_fail(tmp_path, "--join", address)

    identity = Identity.load_or_create(tmp_path / "bad" / "identity.key")
    authority = RunAuthority(Identity.load(first.home / "authority.key"))
    stale = authority.issue(identity.public, now=time.time() - 90_000, valid_s=3600)
    save_chain(tmp_path / "stale", stale)
    error = start_and_fail(tmp_path, "--join", address, "--credential", str(tmp_path / "stale"))
    assert "expired 1 d ago" in error


def test_oneself(tmp_path: Path) -> None:
    port = free_port()
    error = start_and_fail(tmp_path, "--join", word_at(port), "--listen", f"127.0.0.1:{port}")
    assert "this very peer" in error


def test_another_recipe(tmp_path: Path, peers: Peers) -> None:
    first, word = peers.first(env={"TINY_STEPS": "10"})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "peer", "--recipe", TINY]
        + ["--home", str(tmp_path / "other"), "--listen", "127.0.0.1:0", "--join", word],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(RECIPES), "TINY_STEPS": "11"},
        check=False,
    )
    assert done.returncode == 1
    assert "recipe" in done.stderr or "fingerprint" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    first.wait_round(first.round + 2, timeout_s=30)


# ------------------------------------------------------------------------------ hostile frames


def stranger(tmp_path: Path, port: int) -> ssl.SSLSocket:
    """A TLS client with a fresh Ed25519 certificate, as a peer makes one."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "decentral")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, None)
    )
    pem = tmp_path / f"{secrets.token_hex(4)}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["decentral/1"])
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(raw)


def is_closed(connection: ssl.SSLSocket) -> bool:
    """Whether the other end hangs up (having said what it likes before)."""
    connection.settimeout(10)
    try:
        while connection.recv(1 << 16):
            pass
    except (ConnectionError, ssl.SSLError):
        return True
    except TimeoutError:
        return False
    return True


def frame(kind: int, length: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(0xDC01, kind, 0, length, 0, 0, 0, 0, 0, 0, 0) + payload


@pytest.mark.parametrize(
    "attack",
    [
        secrets.token_bytes(4096),
        frame(1, 1 << 30, b"x" * 1000),
        frame(1, 40, b"garbage that is no admission message at"),
        frame(17, 100, b"y" * 100),
        frame(1, 100, b"z" * 10),
        b"",
    ],
    ids=["garbage", "announces 1 GiB", "nonsense", "bulk on control", "truncated", "silence"],
)
def test_hostile_frames(attack: bytes, tmp_path: Path, peers: Peers) -> None:
    first, word = peers.first()
    first.wait_for("round", timeout_s=30)
    port = int(JoinWord.parse(word).addresses[0].rpartition(":")[2])
    process = psutil.Process(first.process.pid)
    before_bytes = process.memory_info().rss
    connections = [stranger(tmp_path, port) for _ in range(8)]
    for connection in connections:
        connection.sendall(attack)
        if len(attack) == HEADER.size + 10:  # the truncated one hangs up in mid-frame
            connection.close()
    assert process.memory_info().rss - before_bytes < 32 << 20
    for connection in connections:
        assert connection.fileno() == -1 or is_closed(connection)
        connection.close()
    first.wait_round(first.round + 2, timeout_s=30)


def test_plain_garbage(peers: Peers) -> None:
    first, word = peers.first()
    first.wait_for("round", timeout_s=30)
    port = int(JoinWord.parse(word).addresses[0].rpartition(":")[2])
    for attack in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, secrets.token_bytes(1000)):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(attack)
            try:
                assert connection.recv(1000) == b""
            except ConnectionError:
                continue
    first.wait_round(first.round + 2, timeout_s=30)


# --------------------------------------------------------------------------------------- disks


def mount_tmpfs(path: Path, size: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A home whose checkpoints live on a disk of 64 KiB (needs root, as in CI)."""
    home = tmp_path / "small"
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount_tmpfs(home / "checkpoints", "16k")
    yield home
    subprocess.run(["umount", "-l", str(home / "checkpoints")], check=True)


def test_a_full_disk_at_checkpoint(small_disk: Path, peers: Peers) -> None:
    full, _ = peers.first(home=small_disk)
    (small_disk / "checkpoints" / "ballast").write_bytes(b"\0" * 8192)
    fault = full.wait_for("fault", timeout_s=60, where=lambda event: event["kind"] == "checkpoint")
    assert "disk is full" in fault["says"] and "checkpoint" in fault["says"]
    full.wait_round(full.round + 3, timeout_s=30)  # training goes on
    (small_disk / "checkpoints" / "ballast").unlink()


def test_a_corrupted_checkpoint(tmp_path: Path, peers: Peers) -> None:
    first, _ = peers.first()
    first.wait_round(5, timeout_s=30)
    first.send(signal.SIGTERM)
    assert first.process.wait(30) == 0
    newest = max(
        (first.home / "checkpoints").rglob("state.safetensors"), key=lambda p: p.stat().st_mtime
    )
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    again = peers.start("again", home=first.home)
    fault = again.wait_for("fault", timeout_s=30, where=lambda event: event["kind"] == "checkpoint")
    assert str(newest.parent.name) in fault["says"] or newest.name in fault["says"]
    joined = again.wait_for("joined", timeout_s=30)
    assert joined["round"] >= 1
    again.wait_round(joined["round"] + 2, timeout_s=30)
