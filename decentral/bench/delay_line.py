"""One process of `_netlab` (native/netlab): it owns the lines, and obeys commands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from decentral.bench.lab import LabError, program


class DelayLine:
    """Makes the device `wan0` in each namespace, with its address (/24); they go with it."""

    def __init__(self, places: Iterable[tuple[str, str]], *, seed: int = 1) -> None:
        """`places`: namespace and IPv4 address of each host, in the order that counts them."""
        self._process = subprocess.Popen(
            [str(program("_netlab")), "--seed", str(seed)]
            + [f"{netns}={address}" for netns, address in places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._hear("ready")

    def tell(self, command: str) -> str:
        """One command of native/netlab/commands.h; its answer. LabError if it is refused."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._hear(command)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # reaps it and closes its pipes

    def _hear(self, asked: str) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            _, says = self._process.communicate()
            raise LabError(f"the delay line ended: {says.strip()}", phase="lab")
        if answer.startswith("error: "):
            raise LabError(f"{asked!r}: {answer.removeprefix('error: ')}", phase="lab")
        return answer
