"""The dense model's cache: one set of weights stands, whoever builds them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.store import open_store
from modelpress_runner.artifact.identity import dense_digest
from modelpress_runner.errors import ArtifactError, InvalidModelError
from modelpress_runner.export import state as weights
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs.dense import DenseCache
from modelpress_runner.subject.entrypoint import Entrypoint

DIGEST = "0" * 64


def spec(**changes) -> CompressionJobSpec:
    given = {"model": {"entrypoint": "m:create"}, "stages": [{"finetune": {"epochs": 1}}], "seed": 5}
    return CompressionJobSpec.model_validate(given | changes)


class Source:
    """An entrypoint that notes how it was called."""

    def __init__(self, fill=None, knows_train=True, width=2) -> None:
        self.fill, self.width, self.calls = fill, width, []
        self.entry = Entrypoint("m:create", self._train if knows_train else self._plain, knows_train)

    def _train(self, train):
        self.calls.append(train)
        return self._plain()

    def _plain(self):
        model = nn.Linear(3, self.width)
        if self.fill is not None:
            nn.init.constant_(model.weight, self.fill)
        return model, lambda model: float(model.weight.sum())


def obtain(store, source, **changes):
    return DenseCache(store, "root", DIGEST).obtain(spec(**changes), source.entry, None, StopFlag(), timed=False)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_the_first_builds_and_the_next_load(store):
    """train=True once, then False; weights and baseline are the first one's."""
    first, second = Source(fill=1.0), Source(fill=9.0)
    built = obtain(store, first)
    loaded = obtain(store, second)
    assert (first.calls, second.calls) == ([True], [False])
    assert (built.cached, loaded.cached) == (False, True)
    assert bool((loaded.subject.model.weight == 1).all())
    assert built.baseline == loaded.baseline
    assert built.baseline["default"] == 6.0
    assert built.baseline["parameters"] == 8
    assert built.digest == loaded.digest == weights.state_digest(loaded.subject.model)
    assert not loaded.notes


def test_a_build_that_died_before_its_baseline_is_taken_up(store, tmp_path):
    """Weights without a baseline are not trained again."""
    obtain(store, Source(fill=1.0))
    (tmp_path / "root/dense" / DIGEST / "baseline.json").unlink()
    source = Source(fill=9.0)
    assert obtain(store, source).baseline["default"] == 6.0
    assert source.calls == [False]
    assert (tmp_path / "root/dense" / DIGEST / "baseline.json").exists()


def test_of_two_builders_at_once_one_stands(store):
    """Who finds weights when writing its own goes on with those."""

    class Late(Source):
        def _train(self, train):
            obtain(store, Source(fill=3.0))
            return super()._train(train)

    late = Late(fill=4.0)
    assert bool((obtain(store, late).subject.model.weight == 3).all())
    assert late.calls == [True]


def test_an_entrypoint_that_gives_other_weights_is_noted(store):
    """Without the keyword train a second call should give the same; if not, the first one's weights count."""
    obtain(store, Source(fill=1.0, knows_train=False))
    assert obtain(store, Source(fill=1.0, knows_train=False)).notes == []
    other = obtain(store, Source(fill=2.0, knows_train=False))
    assert "gave other weights than before" in other.notes[0]
    assert bool((other.subject.model.weight == 1).all())


def test_an_entrypoint_that_gives_another_model_is_refused(store):
    """Names and shapes must be those of the first call."""
    obtain(store, Source())
    with pytest.raises(InvalidModelError, match=r"spec\.model\.entrypoint: called again, m:create gave another model"):
        obtain(store, Source(width=4))


def test_a_damaged_cache_is_refused(store, tmp_path):
    """A baseline of other weights, or one that is no JSON, is named with what to do."""
    obtain(store, Source())
    path = tmp_path / "root/dense" / DIGEST / "baseline.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"stateDigest": "1" * 64}))
    with pytest.raises(ArtifactError, match=r"belongs to other weights .* delete its folder"):
        obtain(store, Source())
    path.write_text("{")
    with pytest.raises(ArtifactError, match="is damaged; delete its folder"):
        obtain(store, Source())


def test_given_weights_replace_training(store, tmp_path):
    """With spec.model.weights the entrypoint is told not to train."""
    torch.save({"weight": torch.full((2, 3), 7.0), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    source = Source()
    model = {"entrypoint": "m:create", "weights": {"uri": str(tmp_path / "w.pth")}}
    assert obtain(store, source, model=model).baseline["default"] == 42.0
    assert source.calls == [False]


def test_the_digest_follows_what_the_dense_model_depends_on():
    """Model, code, seed and target change it; stages and store do not."""
    base = dense_digest(spec(), "code")
    assert dense_digest(spec(stages=[{"finetune": {"epochs": 2}}], store={"uri": "/tmp/x"}), "code") == base
    others = {
        dense_digest(spec(model={"entrypoint": "m:create", "args": {"width": 3}}), "code"),
        dense_digest(spec(), "other"),
        dense_digest(spec(seed=6), "code"),
        dense_digest(spec(target={"format": "pt2"}), "code"),
    }
    assert len(others | {base}) == 5


def test_stopping_breaks_off_only_where_nothing_lasts():
    """The flag raises when it is called; inside at_once the request itself raises."""
    from modelpress_runner.process.stopping import Stopped

    flag = StopFlag()
    flag()
    with pytest.raises(Stopped), flag.at_once():
        flag.ask()
    with pytest.raises(Stopped):
        flag()
    calm = StopFlag()
    calm.ask()
    with pytest.raises(Stopped), calm.at_once():
        sys.exit("not reached")


class Counting:
    """A store that takes no object as bytes beyond 1 KiB and notes what goes up as a file; else the real one."""

    def __init__(self, store) -> None:
        self._store, self.files = store, []

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put_bytes(self, path, data):
        assert len(data) <= 1024, f"{path}: {len(data)} bytes in one request"
        self._store.put_bytes(path, data)

    def put_if_absent(self, path, data):
        assert len(data) <= 1024, f"{path}: {len(data)} bytes in one request"
        return self._store.put_if_absent(path, data)

    def put_file(self, path, local):
        self.files.append(path.rpartition("/")[2])
        self._store.put_file(path, local)


def test_weights_go_up_as_a_file_and_once(store, monkeypatch):
    """Never as one request, which S3 limits to 5 GiB, nor read as a whole; a second build of the same sends nothing."""
    counting = Counting(store)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read as a whole"))
    built = obtain(counting, Source(fill=1.0, width=400))
    (name,) = counting.files
    assert re.fullmatch(r"model-[0-9a-f]{64}\.safetensors", name)
    assert json.loads(store.get_bytes(f"root/dense/{DIGEST}/weights.json")) == {"file": name}
    store.delete(f"root/dense/{DIGEST}/weights.json")
    store.delete(f"root/dense/{DIGEST}/baseline.json")
    assert obtain(counting, Source(fill=1.0, width=400)).digest == built.digest
    assert counting.files == [name]


def test_a_cache_of_an_earlier_version_is_read(store):
    """Weights without a digest in their name, and no weights.json beside them."""
    obtain(store, Source(fill=1.0))
    folder = f"root/dense/{DIGEST}"
    name = json.loads(store.get_bytes(f"{folder}/weights.json"))["file"]
    store.copy(f"{folder}/{name}", f"{folder}/model.safetensors")
    store.delete(f"{folder}/weights.json")
    store.delete(f"{folder}/{name}")
    source = Source(fill=9.0)
    assert obtain(store, source).baseline["default"] == 6.0
    assert source.calls == [False]


@pytest.mark.parametrize("text", ["{", "[]", '{"file": "../../other.safetensors"}', '{"file": 3}'])
def test_a_damaged_pointer_is_refused(store, text):
    """What names no file of ours leads nowhere, least of all out of the folder."""
    obtain(store, Source())
    store.put_bytes(f"root/dense/{DIGEST}/weights.json", text.encode())
    with pytest.raises(ArtifactError, match=r"weights\.json is damaged; delete its folder"):
        obtain(store, Source())


def test_weights_that_are_gone_are_named(store):
    """weights.json without its file."""
    obtain(store, Source())
    folder = f"root/dense/{DIGEST}"
    store.delete(f"{folder}/{json.loads(store.get_bytes(f'{folder}/weights.json'))['file']}")
    with pytest.raises(ArtifactError, match=r"safetensors is gone; delete its folder"):
        obtain(store, Source())
