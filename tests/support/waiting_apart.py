"""How `make test` hands files to its workers: a whole file to one, in order, few at a time of those that wait."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# Tests of a cluster wait most of their time: with one in each worker the cores would have nothing to do.
WAITING = "tests/integration/cluster/"
AT_ONCE = 2


class WaitingApart(LoadFileScheduling):
    """`--dist loadfile`, with at most AT_ONCE workers in files that wait, while there are others."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        waiting = sum(any(map(self._waits, work.items())) for each, work in self.assigned_work.items() if each != node)
        if waiting >= AT_ONCE:
            other = next((scope for scope in self.workqueue if not scope.startswith(WAITING)), None)
            if other is not None:
                self.workqueue.move_to_end(other, last=False)
        super()._assign_work_unit(node)

    @staticmethod
    def _waits(unit: tuple[str, dict[str, bool]]) -> bool:
        """Whether a file of that kind is not yet through, by its name and its tests, each done or not."""
        return unit[0].startswith(WAITING) and not all(unit[1].values())
