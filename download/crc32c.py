"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, at the speed of numpy.

The remainder is linear in the data: short stretches are divided side by side and joined in pairs.
"""

from functools import lru_cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # bits reversed
WORDS = 64  # four-byte words per stretch


def crc32c(data: bytes | np.ndarray) -> int:
    """Checksum of bytes, or of the bytes of a contiguous array."""
    data = np.frombuffer(data, np.uint8)
    stretches = -(-len(data) // (4 * WORDS))
    padded = np.zeros((stretches, 4 * WORDS), np.uint8)  # zeros in front leave a remainder as it is
    padded.reshape(-1)[padded.size - len(data) :] = data
    low, high = _word_tables()
    remainders = np.zeros(stretches, np.uint32)
    for word in padded.view("<u4").T:
        remainders ^= word
        remainders = low[remainders & 0xFFFF] ^ high[remainders >> 16]
    level = (4 * WORDS).bit_length() - 1
    while len(remainders) > 1:
        if len(remainders) % 2:
            remainders = np.append(np.zeros(1, np.uint32), remainders)
        remainders = _multiply(_zeros(level), remainders[0::2]) ^ remainders[1::2]
        level += 1
    start = np.array([0xFFFFFFFF], np.uint32)
    for bit in range(len(data).bit_length()):
        if len(data) >> bit & 1:
            start = _multiply(_zeros(bit), start)
    return int(start[0] ^ remainders.sum(dtype=np.uint32)) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """The form in which TensorFlow stores a checksum beside the data that it covers."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _multiply(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(32,) images of the single bits, (N,) -> (N,) images of the values."""
    out = np.zeros_like(values)
    for bit in range(32):
        out ^= matrix[bit] * (values >> bit & 1)
    return out


@lru_cache(maxsize=64)
def _zeros(level: int) -> np.ndarray:
    """(32,) what `2**level` zero bytes do to a remainder of a single bit."""
    if level:
        return _multiply(_zeros(level - 1), _zeros(level - 1))
    values = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(8):
        values = values >> 1 ^ np.uint32(POLYNOMIAL) * (values & 1)
    return values


@lru_cache(maxsize=1)
def _word_tables() -> tuple[np.ndarray, np.ndarray]:
    """(65536,) each: what four zero bytes do to a remainder with only low or only high bits."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    return _multiply(_zeros(2), halves), _multiply(_zeros(2), halves << 16)
