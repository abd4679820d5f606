"""Unit tests run with the native extension where it is built, and with its stand-in elsewhere."""

from __future__ import annotations

import native_standin

native_standin.install()
