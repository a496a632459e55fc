"""What the CPU of this machine can do for eight-bit products."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def flags() -> frozenset[str]:
    """The CPU's features, as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, rest = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(rest.split())
    return frozenset()


def architecture() -> str:
    """`x86_64`, `aarch64`, ..."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def saturates() -> bool:
    """Whether products of eight-bit numbers may overflow here.

    x86 without VNNI multiplies unsigned by signed bytes and adds two products in 16 bits, which holds 32767; 2 * 255 *
    127 is twice as much. With VNNI the sums have 32 bits, and other processors never had the problem.
    """
    return architecture() == "x86_64" and not flags() & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


def described() -> str:
    """`x86_64 with VNNI`, `x86_64 without VNNI`, or the architecture."""
    if architecture() != "x86_64":
        return architecture()
    return f"x86_64 {'without' if saturates() else 'with'} VNNI"
