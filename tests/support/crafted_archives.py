"""Checkpoints as somebody would make them who wants harm: with the right digests, since anybody can compute them."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from tests.support.checkpoint_files import state


def sealed(path: Path, archive: bytes, label: bytes | Mapping[str, Any]) -> Path:
    """Write an archive with a label of any content, and the digest that belongs to both."""
    comment = label if isinstance(label, bytes) else json.dumps(label).encode()
    size = (len(comment) + 32).to_bytes(2, "little")
    whole = archive[:-2] + size + comment
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole + xxhash.xxh3_128(whole).hexdigest().encode())
    return path


def label(step: Any = 1, **more: Any) -> dict[str, Any]:
    return {"format": 1, "step": step, "validation": {}, "shards": None} | more


def saved(content: Any) -> bytes:
    """What `torch.save` makes of it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def with_pickle(data: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """An archive of torch's layout with a pickle of one's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in {"data.pkl": data, "byteorder": b"little", "version": b"3\n", **more}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


MARK = "mark-of-a-pickle"
PICKLES: dict[str, bytes] = {
    "a system call": pickle.dumps(_Calls(os.mkdir, MARK), 2),
    "eval": pickle.dumps(_Calls(eval, f"open({MARK!r}, 'w')"), 2),
    "an import": b"\x80\x02cantigravity\nfly\n.",
    "a getattr": pickle.dumps(_Calls(getattr, _Calls(__import__, "os"), "mkdir"), 2),
    "torch's own loader": pickle.dumps(_Calls(torch.load, MARK), 2),
    "a path": pickle.dumps(Path("x"), 2),
    "nothing on the stack": b"\x80\x02.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an unknown command": b"\x80\x02\xff.",
    "a command out of place": b"\x80\x02]R.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a storage that is not there": b"\x80\x02U\x07storageQ.",
    "a storage of no type": b"\x80\x02(U\x07storageK\x01U\x010U\x03cpuK\x04tQ.",
    "a list": pickle.dumps([1, 2], 2),
    "a number": pickle.dumps(1, 2),
    "a state that is a list": pickle.dumps({"asymgrpo": [1]}, 2),
    "weights that are a text": pickle.dumps({"asymgrpo": {"completed_steps": 1}, "state_dict": "x"}, 2),
    "optimizers that are a number": pickle.dumps({"asymgrpo": {}, "optimizer_states": 5}, 2),
    "deep lists": _nested(100_000),
    "another step": pickle.dumps({"asymgrpo": {"completed_steps": 2}}, 2),
    "a step that is a text": pickle.dumps({"asymgrpo": {"completed_steps": "\x1b[2J"}}, 2),
}
LABELS: dict[str, bytes | dict[str, Any]] = {
    "an infinite step": b'{"format": 1, "step": 1e999, "validation": {}}',
    "a step that is no number": b'{"format": 1, "step": NaN, "validation": {}}',
    "a huge step": label(10**400),
    "a step of too many digits": b'{"format": 1, "step": ' + b"9" * 10_000 + b', "validation": {}}',
    "a negative step": label(-1),
    "a step that is a text": label("1"),
    "a step that is true": label(True),
    "a huge value": label(validation={"val/a": 10**400}),
    "a value that is a list": label(validation={"val/a": [1]}),
    "values that are a list": label(validation=[1]),
    "another format": label(format="\x1b[2J" * 1_000),
    "no format": b"{}",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep lists": b"[" * 60_000,
    "a deep value": b'{"format": 1, "step": 1, "validation": ' + b'{"a": ' * 9_000 + b"1" + b"}" * 9_001,
    "no UTF-8": b"\xff\xfe\xfd",
    "no text": bytes(100),
    "half a surrogate pair": label(validation={"val/\ud800": "x"}),
    "shards that are a text": label(shards="step-00000001.shards"),
    "shards without files": label(shards={"folder": "step-00000001.shards"}),
    "shards of a negative size": label(shards={"folder": "step-00000001.shards", "files": {".metadata": [-1, "x"]}}),
    "shards of an endless size": b'{"format": 1, "step": 1, "validation": {}, "shards": '
    b'{"folder": "step-00000001.shards", "files": {".metadata": [1e999, "x"]}}}',
    "another archive's end": b'{"format": 1}PK\5\6' + bytes(18) + b"x" * 40,
}
FOLDERS = [
    "..", "", ".", "/", "//", "/tmp", "../..", "../step-00000001.shards", "./step-00000001.shards",
    "step-00000001.shards/", "step-00000001.shards/..", "step-00000001.shards/../..", "step-00000001.shards-2/../..",
    "other", "step-00000002.shards", "step-00000002.shards-2", "step-1.shards", "step-00000001.shard",
    "step-00000001.shards-", "step-00000001.shards-2x", "step-00000001.shards--2", "step-00000001.shards\n",
    "step-00000001.shards\0", "step-00000001.shards\0/..", " step-00000001.shards", "step-00000001.shards ",
    "step-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661.shards", "step-0000000\uff11.shards",
    "step-00000001.shards-\uff12", "\u0455tep-00000001.shards",
    "step-00000001\u2024shards", "step-00000001\uff0eshards",
    "step-00000001.shards\u200b", "step-00000001.shards\u2215..",
    "..\\..", "~", "$HOME", "STEP-00000001.SHARDS", "checkpoints", "step-00000001.ckpt", "*", "step-*.shards",
]  # fmt: skip
FILES = [
    "..", "", "../kept", "/etc/passwd", "kept", ".metadata/..", ".metadata\n", "__0_0.distcp/../../kept", ".METADATA",
    "__\u0660_0.distcp", "__0_0.distcp\0", "._metadata", "__0_0.distcp ", "__-1_0.distcp", "*",
]  # fmt: skip


def whole(step: int = 1) -> bytes:
    """The archive of a small sound checkpoint, without a label."""
    return saved(state(step, 4))
