"""`modelpress suspend` and `modelpress resume`: set spec.suspend, and nothing else."""

from __future__ import annotations

from modelpress.cli.exits import Exit

from . import views
from .connection import Cluster
from .errors import RequestError


def set_suspended(cluster: Cluster, name: str, suspended: bool) -> int:
    """Suspend an object, or let it go on; the exit code.

    Raises:
        LocalError: the cluster refused or failed, there is no such object, or it has finished.
    """
    kind, obj = cluster.find(name)
    shown = f"{kind.words[0]}/{views.name(obj)}"
    word = "suspended" if suspended else "resumed"
    if views.is_finished(obj):
        raise RequestError(f"{shown} has finished ({views.phase(obj)}), so it cannot be {word}")
    if bool((obj.get("spec") or {}).get("suspend")) is suspended:
        print(f"{shown}: {'suspended' if suspended else 'not suspended'} already")
        return Exit.DONE
    cluster.patch(kind, views.name(obj), {"spec": {"suspend": suspended}})
    print(f"{shown}: {word}")
    owner = next((ref for ref in views.meta(obj).get("ownerReferences") or () if ref.get("controller")), None)
    if not suspended and owner is not None and owner.get("kind") == "CompressionSweep":
        parent = f"csweep/{owner['name']}"
        _, other = cluster.find(parent)
        if (other.get("spec") or {}).get("suspend"):
            print(f"its sweep is suspended, so it does not run yet; see: modelpress resume {parent}")
    return Exit.DONE
