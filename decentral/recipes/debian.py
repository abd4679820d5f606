"""Data out of Debian packages: nothing is installed, and no root is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from decentral.errors import ConfigError


def unpacked(package: str, into: Path, pattern: str) -> list[Path]:
    """Download the package, unpack it in the folder `into`, and list the files that the pattern
    says, in a fixed order. A ConfigError where apt-get cannot, or there is none."""
    for command in (["apt-get", "download", package], ["dpkg-deb", "-x", None, "tree"]):
        words = [word or str(next(into.glob("*.deb"))) for word in command]
        try:
            subprocess.run(words, cwd=into, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ConfigError(
                f"`make data` needs {words[0]} (Debian, Ubuntu)", phase="data"
            ) from error
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:]
            raise ConfigError(f"{' '.join(words)} failed: {''.join(last)}", phase="data") from error
    tree = into / "tree"
    found = sorted(tree.glob(pattern), key=lambda path: path.relative_to(tree).as_posix())
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    if not files:
        raise ConfigError(f"package {package} holds no {pattern}", phase="data")
    return files
