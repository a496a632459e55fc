"""Checks of the runner on this machine's GPU, or small on its CPU, with a table at the end.

    python tools/gpu_check                        on a GPU: a decoder of 1 B parameters, at most 350 s
    python tools/gpu_check --device cpu           small, as the tests run it

Exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SECONDS = 350.0


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks; 0 if none failed."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", help="of the decoder: tiny, 400M or 1B; default: 1B on a GPU, tiny on a CPU")
    parser.add_argument("--only", help="checks whose names contain this")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for all checks together")
    options = parser.parse_args(arguments)
    from gpu_check import rows
    from gpu_check.checks import all_checks

    checks = all_checks(options.device, options.size or ("1B" if options.device == "cuda" else "tiny"))
    chosen = {name: check for name, check in checks.items() if options.only is None or options.only in name}
    if not chosen:
        parser.error(f"no check's name contains {options.only!r}; there are: {', '.join(checks)}")
    found = rows.run_all(chosen, options.seconds)
    left_out = [rows.Row(name, rows.NOT_HERE, "because of --only", 0.0) for name in checks if name not in chosen]
    print("\n".join(rows.table([*found, *left_out])), flush=True)
    return 1 if any(row.state == rows.FAILED for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
