"""Every quantizing method passes the suite that is shipped."""

from __future__ import annotations

from typing import ClassVar

import pytest

from modelpress.api.v1alpha1 import algorithms
from modelpress_runner.testing.quantize_methods import QuantizeMethodContract


class TestEveryMethod(QuantizeMethodContract):
    test_saved_and_loaded = None  # as test_quantize_stage asks of them all, of programs, too

    @pytest.fixture(params=algorithms.names("quantize"))
    def name(self, request) -> str:
        return request.param


class TestGroups(QuantizeMethodContract):
    # Groups have nothing to do with these.
    test_equal_seeds_give_equal_bits = test_what_is_excluded_stays = test_saved_and_loaded = None
    settings: ClassVar = {"quantBits": 4, "granularity": "group", "groupSize": 4, "scheme": "affine"}

    @pytest.fixture(params=["gptq", "awq", "hqq"])
    def name(self, request) -> str:
        return request.param
