"""Classes that mp.trace decorates, in a module of their own so that they can be pickled."""

from __future__ import annotations

from torch import nn

import modelpress as mp


@mp.trace
class Old(nn.Module):
    def __init__(self, width: int = 2, *parts: object) -> None:
        super(Old, self).__init__()  # noqa: UP008
        self.layer = nn.Linear(width, width)


class Derived(Old):
    def __init__(self) -> None:
        super().__init__(3)
