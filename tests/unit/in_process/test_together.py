"""together in a loop of the user's own: what a prune stage by itself does."""

from __future__ import annotations

import pytest
import torch
from own_loop import Task, channels, level

import modelpress as mp


@pytest.mark.parametrize("algorithm", ["level", "l1", "l2", "taylor"])
def test_a_prune_in_a_together_is_a_prune(algorithm):
    """Equal weights, masks and shape, for methods that look at weights and at gradients."""
    results = []
    for together in (False, True):
        task = Task()
        part = channels(0.5, type="agp", start_step=1, end_step=7, frequency=2)
        part["prune"] |= {"algorithm": algorithm}
        if algorithm == "level":
            part["prune"]["speedup"] = False
        if algorithm == "taylor":
            part["prune"]["scores"] = {"steps": 2}
        stages = [{"together": {"of": [part]}}] if together else [part]
        compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1], optimizers=task.optimizer)
        compression.callbacks.on_train_begin()
        task.train(compression.callbacks, epochs=2)
        compression.callbacks.on_train_end()
        results.append((task.model.state_dict(), compression.result))
    (one, alone), (two, both) = results
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert alone.edits == both.edits
    [record] = both.metrics["stages"]
    assert (record["name"], record["method"]) == ("0-together", "together")
    assert record["of"] == [{"method": "prune", "algorithm": algorithm, "sparsityAsked": [0.5]}]
    assert one["0.weight"].shape == ((8, 4) if algorithm == "level" else (4, 4))


def test_parts_go_in_their_order(task):
    """Of the 8 weights behind the channels that the first part leaves the second takes a half."""
    second = level(0.5)
    second["prune"]["config_list"] = [{"op_names": ["3"], "sparsity": 0.5}]
    stages = [{"together": {"of": [channels(0.5), second]}}]
    compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1], optimizers=task.optimizer)
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    compression.callbacks.on_train_end()
    assert task.model[3].weight.shape == (2, 4)
    assert int((task.model[3].weight == 0).sum()) == 4
