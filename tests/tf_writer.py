"""Writes small checkpoints in TensorFlow's format, for tests of the reader."""

import struct

import numpy as np

from download.tf_checkpoint import masked_crc32c

TYPES = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9,
    "bool": 10, "uint16": 17, "float16": 19, "uint32": 22, "uint64": 23,
}  # fmt: skip
STRING, BFLOAT16 = 7, 14


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    """A field of a protocol buffer: an integer, or bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def literal_snappy(data):
    """A valid Snappy block that compresses nothing."""
    out = varint(len(data))
    for start in range(0, len(data), 1000):
        part = data[start : start + 1000]
        out += bytes([61 << 2]) + struct.pack("<H", len(part) - 1) + part
    return out


def block(entries, restart_interval):
    """Sorted (key, value) -> prefix-compressed entries, restart points and their number."""
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(entries, *, snappy=False, per_block=7):
    """Sorted (key, value) pairs as a table file."""
    file, index = bytearray(), []

    def append(data):
        data = literal_snappy(data) if snappy else data
        kind = bytes([int(snappy)])
        handle = varint(len(file)) + varint(len(data))
        file.extend(data + kind + struct.pack("<I", masked_crc32c(data + kind)))
        return handle

    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        index.append((part[-1][0], append(block(part, 3))))
    handles = append(block([], 3)) + append(block(index, 1))
    return bytes(file) + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(dtype, shape, shard, offset, data, **extra):
    """`BundleEntryProto`."""
    dims = b"".join(field(2, field(1, size)) for size in shape)
    out = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset)
    out += field(5, len(data)) + varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(data))
    return out + (field(7, b"") if extra.get("slices") else b"")


def write_checkpoint(prefix, variables, *, num_shards=1, snappy=False, slices=()):
    """Arrays, or bytes for strings, and `(array, BFLOAT16)` for the upper halves of floats."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    shards = [bytearray() for _ in range(num_shards)]
    entries = [(b"", field(1, num_shards) + field(3, field(1, 1)))]
    for i, (key, value) in enumerate(sorted(variables.items())):
        if isinstance(value, bytes):
            dtype, shape, data = STRING, (), value
        elif isinstance(value, tuple):
            dtype, shape, data = BFLOAT16, value[0].shape, value[0].astype("<u2").tobytes()
        else:
            dtype, shape, data = TYPES[value.dtype.name], value.shape, value.tobytes()
        shard = shards[i % num_shards]
        place = (i % num_shards, len(shard))
        entries.append((key.encode(), entry(dtype, shape, *place, data, slices=key in slices)))
        shard += data
    prefix.with_name(prefix.name + ".index").write_bytes(table(entries, snappy=snappy))
    for i, shard in enumerate(shards):
        name = f"{prefix.name}.data-{i:05}-of-{num_shards:05}"
        prefix.with_name(name).write_bytes(bytes(shard))
    (prefix.parent / "checkpoint").write_text(
        f'model_checkpoint_path: "/tmp/where it was written/{prefix.name}"\n'
        f'all_model_checkpoint_paths: "{prefix.name}"\n'
    )


def official_variables(model, rng):
    """Random values of every official variable of a model, with some that are not the model's."""
    from download.official_model import ROOT, SUFFIX, sources

    out = {}
    for source in sources(model).values():
        for name in source.variables:
            values = rng.normal(0, 0.05, source.official).astype(np.float32)
            out[ROOT + name + SUFFIX] = np.abs(values) if "variance" in name else values
    slot = next(iter(out)).replace(SUFFIX, "/.OPTIMIZER_SLOT/optimizer/m" + SUFFIX)
    return out | {
        "_CHECKPOINTABLE_OBJECT_GRAPH": b"a graph",
        "global_step" + SUFFIX: np.array(3),
        "save_counter" + SUFFIX: np.array(1),
        "optimizer/_variables/1" + SUFFIX: np.zeros(2, np.float32),
        "optimizer/beta_1" + SUFFIX: np.zeros((), np.float32),
        slot: np.zeros(2, np.float32),
    }
