"""Read TensorFlow checkpoints without TensorFlow; as a script: list the files of one.

    python download/tf_checkpoint.py CHECKPOINT

Format: TensorFlow, core/util/tensor_bundle and core/protobuf/tensor_bundle.proto. `PREFIX.index`
is a table from variable name to a `BundleEntryProto` (type, shape, place, checksum); the values lie
in `PREFIX.data-00000-of-00001` and further shards.

The table is a sorted string table, the key-value file of LevelDB (LevelDB, doc/table_format.md). A
block is prefix-compressed entries; behind it stand its compression and its checksum. The footer
names the index block, and that names the data blocks.
"""

import argparse
import math
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import google_crc32c
import numpy as np

from utils.cli import run
from utils.errors import UserError, one_line
from utils.files import shown

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two block handles, filled up to 40, and the magic number
NO_COMPRESSION, SNAPPY = 0, 1
STRING, BFLOAT16 = 7, 14  # types.proto
MAX_SHARDS = 10_000  # data files of one checkpoint; the format has room for 100,000
DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    9: "<i8",
    10: "|b1",
    BFLOAT16: "<u2",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}


def masked_crc32c(data: bytes) -> int:
    """CRC-32C in the form in which TensorFlow stores it beside the data that it covers."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The base-128 integer at an offset -> value, offset behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 70:
            raise ValueError("a number does not end")
        if byte < 0x80:
            return value, at


def read_table(data: bytes) -> dict[bytes, bytes]:
    """All entries of a table.

    Raises:
        ValueError: this is no table, or it is damaged.
    """
    footer = data[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("it does not end like a table of keys; is it cut off?")
    at = 0
    for _ in range(2):  # the handle of the meta index, which nobody needs
        _, at = read_varint(footer, at)
    index = _block(data, footer, at)
    return {
        key: value
        for _, handle in _entries(index)
        for key, value in _entries(_block(data, handle, 0))
    }


def _block(data: bytes, handle: bytes, at: int) -> bytes:
    """The checked and uncompressed block that a handle (offset, size) points to."""
    offset, at = read_varint(handle, at)
    size, _ = read_varint(handle, at)
    if offset + size + 5 > len(data):
        raise ValueError("a block ends behind the end of the file")
    compression, crc = struct.unpack_from("<BI", data, offset + size)
    if masked_crc32c(data[offset : offset + size + 1]) != crc:
        raise ValueError(f"wrong checksum of the block at byte {offset}")
    block = data[offset : offset + size]
    if compression not in (NO_COMPRESSION, SNAPPY):
        raise ValueError(f"unknown compression {compression}")
    return uncompress_snappy(block) if compression == SNAPPY else block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; a key repeats the first bytes of the one before it."""
    if len(block) < 4:
        raise ValueError("a block is too short")
    restarts = struct.unpack("<I", block[-4:])[0]
    at, end, key = 0, len(block) - 4 * (restarts + 1), b""
    while at < end:
        shared, at = read_varint(block, at)
        rest, at = read_varint(block, at)
        size, at = read_varint(block, at)
        key = key[:shared] + block[at : at + rest]
        at += rest
        yield key, block[at : at + size]
        at += size


def uncompress_snappy(data: bytes) -> bytes:
    """A raw Snappy block (Snappy, format_description.txt) -> its content."""
    size, at = read_varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag, kind = data[at], data[at] & 3
        at += 1
        if kind == 0:  # literal bytes
            length = (tag >> 2) + 1
            if length > 60:
                extra = length - 60
                length = int.from_bytes(data[at : at + extra], "little") + 1
                at += extra
            out += data[at : at + length]
            at += length
            continue
        if kind == 1:  # a copy of what came before: length and offset in a tag and a byte
            length, width, top = (tag >> 2 & 7) + 4, 1, tag >> 5 << 8
        else:  # offset in two or four bytes
            length, width, top = (tag >> 2) + 1, 2 * kind - 2, 0
        offset = top + int.from_bytes(data[at : at + width], "little")
        at += width
        if not 0 < offset <= len(out):
            raise ValueError("compressed data refers to before its beginning")
        for _ in range(length):  # one by one: a copy may overlap itself
            out.append(out[-offset])
    if len(out) != size:
        raise ValueError(f"compressed data holds {len(out)} bytes, not {size}")
    return bytes(out)


@dataclass(frozen=True)
class Entry:
    """Where a variable lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int  # bytes into the shard
    size: int  # bytes
    crc: int  # masked


def read_checkpoint(
    path: str | Path, wanted: Callable[[str], bool] = lambda key: True
) -> dict[str, np.ndarray]:
    """All variables of a checkpoint but strings; bfloat16 becomes float32.

    Args:
        path: a prefix (`…/ckpt-0`), or a folder with a `checkpoint` file, which names the newest.
        wanted: says by its key whether a variable is read (optimiser slots are twice the model).

    Raises:
        UserError: a file is missing, or something in it is not as its checksum says.
    """
    prefix = find_prefix(path)
    num_shards, entries = read_index(prefix)
    shards = shard_paths(prefix, num_shards)
    for file in shards:
        if not file.is_file():
            raise UserError(f"no {file}; a checkpoint needs its index and all of its data files")
    return {
        key: _read_variable(shards, key, entry)
        for key, entry in entries.items()
        if entry.dtype != STRING and wanted(key)
    }


def find_prefix(path: str | Path) -> Path:
    """The path without `.index` of the checkpoint that a user named."""
    path = Path(path)
    if not path.is_dir():
        return path.with_suffix("") if path.suffix == ".index" else path
    state = path / "checkpoint"
    if not state.is_file():
        raise UserError(
            f"no file 'checkpoint' in {path}; name the checkpoint itself, e.g. {path / 'ckpt-0'}"
        )
    text = state.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'^model_checkpoint_path: *"(.+)"', text, re.MULTILINE)
    if not found:
        raise UserError(f"{state} names no model_checkpoint_path; is it a TensorFlow checkpoint?")
    return path / re.split(r"[/\\]", found[1])[-1]  # the files may have moved since


def index_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def shard_paths(prefix: Path, num_shards: int) -> list[Path]:
    return [
        prefix.with_name(f"{prefix.name}.data-{i:05}-of-{num_shards:05}") for i in range(num_shards)
    ]


def read_index(prefix: Path) -> tuple[int, dict[str, Entry]]:
    """Number of shards, and the entry of every variable."""
    path = index_path(prefix)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); name a checkpoint") from error
    try:
        table = read_table(data)
        header = dict(_fields(table.pop(b"")))
        entries = {key.decode(): _entry(key.decode(), value) for key, value in table.items()}
        if not 0 < header.get(1, 1) <= MAX_SHARDS:
            raise ValueError(f"it claims to have {header[1]} data files")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}); delete it and fetch it again"
        ) from error
    if header.get(2, 0) != 0:
        raise UserError(f"{path} was written on a big-endian machine, which is not supported")
    return header.get(1, 0), entries


def _entry(key: str, data: bytes) -> Entry:
    fields = dict(_fields(data))
    if 7 in fields:
        raise ValueError(f"{key} is stored in slices, which is not supported")
    sizes = [dict(_fields(dim)).get(1, 0) for n, dim in _fields(fields.get(2, b"")) if n == 2]
    place = [fields.get(number, 0) for number in (3, 4, 5, 6)]
    numbers = (fields.get(1, 0), *sizes, *place)
    if not all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers):
        raise ValueError(f"the entry of {shown(key)} holds no sensible numbers")
    return Entry(fields.get(1, 0), tuple(sizes), *place)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(message, at)
        elif kind == 2:
            size, at = read_varint(message, at)
            value, at = message[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + size], "little"), at + size
        else:
            raise ValueError(f"unknown wire type {kind}")
        yield number, value


def _read_variable(shards: list[Path], key: str, entry: Entry) -> np.ndarray:
    if entry.shard >= len(shards) or entry.dtype not in DTYPES:
        raise UserError(f"cannot read {key}: type {entry.dtype} in shard {entry.shard}")
    file = shards[entry.shard]
    dtype = np.dtype(DTYPES[entry.dtype])
    data = b""
    if entry.offset + entry.size <= file.stat().st_size:
        with open(file, "rb") as stream:
            stream.seek(entry.offset)
            data = stream.read(entry.size)
    if len(data) != math.prod(entry.shape) * dtype.itemsize:
        raise UserError(f"{file} is cut off: {key} is not whole; delete it and fetch it again")
    if masked_crc32c(data) != entry.crc:
        raise UserError(f"{file} is damaged: {key} has another checksum; delete and fetch it again")
    values = np.frombuffer(data, dtype)
    if entry.dtype == BFLOAT16:  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return values.reshape(entry.shape)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    prefix = find_prefix(parser.parse_args(argv).checkpoint)
    print(index_path(prefix).name)
    if index_path(prefix).is_file():  # it alone says how many data files there are
        print(*(file.name for file in shard_paths(prefix, read_index(prefix)[0])), sep="\n")


if __name__ == "__main__":
    run(main)
