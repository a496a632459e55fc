"""Folders and requests made to do harm, for `hostile_files`: weights, pretrained models, checkpoints, HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils.logging import disable_progress_bar

from modelpress.api.v1alpha1 import HuggingFace
from modelpress.store import open_store
from modelpress_operator.http import Server
from modelpress_operator.progress.message import MessageError, parse
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.export.weights import load_into, save
from modelpress_runner.huggingface import source

FILES = {
    "weights": "model.safetensors",
    "shrink": "shrink.json",
    "config": "config.json",
    "tokenizer": "tokenizer.json",
    "index": "model.safetensors.index.json",
    "checkpoint": "checkpoint/state.pt",
    "request": "request",
}
Case = tuple[str, str, Callable[[Path], Any]]
_TASK = HuggingFace.model_validate({"source": {"uri": "/a"}, "task": "feature-extraction"})


def calls() -> dict[str, Callable[[Path], Any]]:
    """What opens each kind, given the file."""
    return {
        **dict.fromkeys(("weights", "shrink"), lambda path: load_into(_dense(), path.parent)),
        **dict.fromkeys(("config", "tokenizer", "index"), lambda path: source.load(_TASK, path.parent)),
        "checkpoint": lambda path: Checkpointer(open_store(str(path.parents[1])), "", "other", 1, 1).load(),
        "request": lambda path: asyncio.run(_asked(path.read_bytes())),
    }


def cases() -> list[Case]:
    """Each with the function that makes it."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {f"t{index}": entry for index in range(14_000)}
    cut = {"kind": "cut", "module": "0", "axis": "out", "kept": list(range(8))}
    words = {f"w{index}": index for index in range(60_000)}
    pretrained: list[tuple[str, str, Any]] = [
        ("config: 10,000 levels", "config", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        ("config: a million numbers", "config", _document(model_type="bert", a=[1] * 330_000)),
        ("config: a number of 900,000 digits", "config", b'{"hidden_size":' + b"9" * 900_000 + b"}"),
        ("config: 10 million layers", "config", _document(model_type="bert", num_hidden_layers=10**7)),
        ("config: 10 million labels", "config", _document(model_type="bert", num_labels=10**7)),
        ("config: a vocabulary of 10^12", "config", _document(model_type="bert", vocab_size=10**12)),
        ("tokenizer: 50,000 levels", "tokenizer", b"[" * 50_000),
        ("tokenizer: 60,000 words", "tokenizer", _document(
            version="1.0", model={"type": "WordLevel", "unk_token": "w0", "vocab": words})),
        ("index: 14,000 shards that are not there", "index", _document(
            weight_map={f"w{index}": f"model-{index}.safetensors" for index in range(14_000)})),
        ("index: shards elsewhere", "index", _document(weight_map={"w": "../../etc/passwd"})),
    ]  # fmt: skip
    return [
        ("weights: a header of 2^60 bytes", "weights", _weights(struct.pack("<Q", 2**60))),
        ("weights: a header of 900,000 levels", "weights", _weights(_headed(b'{"a":' + b"[" * 900_000))),
        ("weights: 14,000 tensors that the model has not", "weights", _weights(_headed(json.dumps(many).encode()))),
        ("weights: 330,000 numbers for a shape", "weights", _weights(_headed(
            _document(a={"dtype": "F32", "shape": [1] * 330_000, "data_offsets": [0, 4]})) + bytes(4))),
        ("shrink.json: 100,000 levels", "shrink", _shrink(b"[" * 100_000)),
        ("shrink.json: 12,000 cuts of one layer", "shrink", _shrink(_document(version=2, edits=[cut] * 12_000))),
        ("shrink.json: 300,000 indices", "shrink", _shrink(_document(
            version=2, edits=[{**cut, "kept": list(range(150_000))}]))),
        *((name, kind, _pretrained(kind, content)) for name, kind, content in pretrained),
        ("checkpoint: of another recipe, 60,000 entries", "checkpoint", _saved(words)),
        ("checkpoint: 20,000 levels", "checkpoint", _pickled(b"]" * 20_000 + b"a" * 19_999)),
        ("checkpoint: a tensor of 2^40 from nothing", "checkpoint", _saved(torch.zeros(1).expand(2**40))),
        ("checkpoint: 900 KB of memo", "checkpoint", _pickled(b"N" + b"q\x00" * 450_000)),
        ("request: 4,000 headers", "request", _request(b"".join(b"h%d: x\r\n" % index for index in range(4000)))),
        ("request: one header of 900 KB", "request", _request(b"h: " + b"x" * 900_000 + b"\r\n")),
        ("request: a body of 900 KB", "request", _request(b"", b"x" * 900_000)),
        ("request: 900 KB deflated", "request", _request(b"Content-Encoding: deflate\r\n", bytes(900_000))),
        ("request: a body of 60,000 levels", "request", _request(b"", b"[" * 60_000)),
        ("request: a chunk of 2^60", "request", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1000000000000000\r\n" + b"x" * 900_000),
        ("request: 5,000 one after another", "request", b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 5000),
    ]  # fmt: skip


def _dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def _document(**held: Any) -> bytes:
    return json.dumps(held, separators=(",", ":")).encode()


def _headed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def _weights(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        save(_dense(), path.parent, [])
        path.write_bytes(content)

    return make


_shrink = _weights


def _pretrained(kind: str, content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        disable_progress_bar()
        sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        BertModel(BertConfig(num_hidden_layers=1, **sizes)).save_pretrained(path.parent)
        vocabulary = path.parent / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]))
        BertTokenizer(str(vocabulary)).save_pretrained(path.parent)
        if kind == "index":
            (path.parent / "model.safetensors").unlink()
        path.write_bytes(content)

    return make


def _saved(content: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.parent.mkdir()
        torch.save({"format": 1, "identity": "one", "content": content}, path)

    return make


def _pickled(stream: bytes) -> Callable[[Path], None]:
    """A checkpoint of torch whose pickle is `stream`."""

    def make(path: Path) -> None:
        path.parent.mkdir()
        buffer = io.BytesIO()
        torch.save({}, buffer)
        with zipfile.ZipFile(buffer) as held, zipfile.ZipFile(path, "w") as out:
            for name in held.namelist():
                out.writestr(name, b"\x80\x02" + stream + b"." if name.endswith("data.pkl") else held.read(name))

    return make


def _request(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


async def _asked(content: bytes) -> None:
    """A server of the operator's, whose handler reads a progress message, is sent the bytes by this same process.

    MessageError unless it accepted them.
    """

    async def handle(request: web.Request) -> web.Response:
        try:
            parse(await request.read())
        except MessageError:
            return web.Response(status=400)
        return web.Response(status=202)

    server = Server([web.post("/", handle)], "127.0.0.1", 0)
    port = await server.start()
    answer = b""
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(content)
        answer = await asyncio.wait_for(reader.read(12), 30)
        writer.close()
    await server.stop()
    if not answer.endswith(b"202"):
        raise MessageError(f"it answered {answer!r}")
