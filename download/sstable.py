"""Reader of sorted string tables, the key-value files of LevelDB and of TensorFlow checkpoints.

Format: LevelDB, doc/table_format.md. A block is prefix-compressed entries; behind it stand its
compression and its checksum. The footer names the index block, and that names the data blocks.
"""

import struct
from collections.abc import Iterator

from download.crc32c import masked_crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two block handles, filled up to 40, and the magic number
NO_COMPRESSION, SNAPPY = 0, 1


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
