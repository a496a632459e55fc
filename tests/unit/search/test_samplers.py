"""Every sampler passes the shared contract."""

from __future__ import annotations

from modelpress.search.testing import SamplerContract


class TestRandom(SamplerContract):
    """Random search."""

    sampler = "modelpress.search.samplers.random:RandomSampler"


class TestGrid(SamplerContract):
    """Grid search."""

    sampler = "modelpress.search.samplers.grid:GridSampler"
    continuous = False
    seeded = False


class TestTpe(SamplerContract):
    """Tree-structured Parzen estimator."""

    sampler = "modelpress.search.samplers.tpe:TpeSampler"


class TestQmc(SamplerContract):
    """Quasi-random search."""

    sampler = "modelpress.search.samplers.qmc:QmcSampler"


class TestNsga2(SamplerContract):
    """NSGA-II."""

    sampler = "modelpress.search.samplers.nsga2:Nsga2Sampler"


class TestCmaes(SamplerContract):
    """CMA-ES."""

    sampler = "modelpress.search.samplers.cmaes:CmaesSampler"
    several = False
