"""Which GPUs of this machine each process gets: trials side by side should not crowd onto the first one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelpress.api.v1alpha1 import Runner

VARIABLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")  # one folder for each GPU


def visible_devices(environment: Mapping[str, str] | None = None, driver: Path = _DRIVER) -> tuple[str, ...]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them: that variable's, else all the driver has."""
    environment = os.environ if environment is None else environment
    given = environment.get(VARIABLE)
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        end = names.index("-1") if "-1" in names else len(names)  # CUDA looks no further
        return tuple(name for name in names[:end] if name)
    try:
        return tuple(str(number) for number in range(sum(1 for _ in driver.iterdir())))
    except OSError:
        return ()


def shares(devices: Sequence[str], slots: int, runner: Runner | None) -> tuple[tuple[str, ...], ...]:
    """The devices of each of `slots` runs that go on side by side.

    A run gets as many as its pods would (gpus of each of its nodes), at most all; without `gpus` the devices are
    divided up. Runs share devices only where there are too few for a set of its own for each.

    Returns:
        One tuple of devices per slot; nothing where nobody needs to be told: no GPU, or one run that may use all.
    """
    runner = runner or Runner()
    if not devices or (slots == 1 and runner.gpus == 0):
        return ()
    each = runner.gpus * runner.nodes or max(1, len(devices) // slots)
    each = min(each, len(devices))
    return tuple(
        tuple(devices[(slot * each + number) % len(devices)] for number in range(each)) for slot in range(slots)
    )


def environments(devices: Sequence[str], slots: int, runner: Runner | None) -> tuple[dict[str, str], ...]:
    """The shares as environment variables."""
    return tuple({VARIABLE: ",".join(share)} for share in shares(devices, slots, runner))
