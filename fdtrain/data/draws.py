"""Random numbers by position: pure, vectorized functions of integers, with no state to save, replay or share.

Each number follows from its key and its counter alone, so it is the same whatever the rank, the batch or the order of
asking. `draws` gives real numbers (augmentation, choice of quality), `permute` and `permute_blocks` give the image of
single places under a random permutation without ever building it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

QUALITY_STREAM = 0
"""Stream of `draws` that chooses a sample's quality; augmentations take streams from 1 on."""

BUFFER_BLOCKS = 8
"""Blocks whose samples `permute_blocks` mixes with each other, unless it is told another number."""

# Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), section 3.3: multipliers and key increments.
_PHILOX_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_PHILOX_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_PHILOX_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014), with Vigna's constants (splitmix64).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_31 = np.uint64(31)

_FEISTEL_ROUNDS = 6  # as pairs: 12 half-rounds; see tests/unit/test_plan.py for the uniformity on small domains


def draws(seed: int, positions: np.ndarray, stream: int, n: int) -> np.ndarray:
    """Uniform numbers of samples, by Philox4x32-10.

    Args:
        seed: 0 to 2**64 - 1.
        positions: int64 `[B]`, not negative: a sample's place in the run (`MicroBatch.positions`).
        stream: 0 to 2**32 - 1; another purpose takes another stream.
        n: Numbers for each sample. The first ones don't depend on how many are asked for.

    Returns:
        float64 `[B, n]` in [0, 1), of 53 random bits each.
    """
    assert 0 <= stream < 2**32
    blocks = np.arange(-(-n // 2), dtype=np.uint64)  # a block of four words makes two numbers
    counters = np.empty((len(positions), len(blocks), 4), np.uint64)
    counters[..., 0] = (positions.astype(np.uint64) & _LOW)[:, None]
    counters[..., 1] = (positions.astype(np.uint64) >> _32)[:, None]
    counters[..., 2] = blocks
    counters[..., 3] = stream
    words = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32))
    high, low = words[..., 0::2] >> np.uint64(5), words[..., 1::2] >> np.uint64(6)
    numbers = (high * np.uint64(2**26) + low) * 2.0**-53
    return numbers.reshape(len(positions), -1)[:, :n]


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10: four random words for each counter.

    Args:
        counters: uint64 `[..., 4]`, each below 2**32.
        key: Two numbers below 2**32.

    Returns:
        uint64 `[..., 4]`, each below 2**32.
    """
    keys = np.array(key, np.uint64)
    # Counter words 0 and 2 are multiplied, 1 and 3 are mixed into the products' high words.
    factors, others = counters[..., 0::2], counters[..., 1::2]
    for _ in range(_PHILOX_ROUNDS):
        products = factors * _PHILOX_MULTIPLIERS
        factors, others = (products >> _32)[..., ::-1] ^ others ^ keys, (products & _LOW)[..., ::-1]
        keys = (keys + _PHILOX_KEY_STEPS) & _LOW
    return np.stack([factors[..., 0], others[..., 0], factors[..., 1], others[..., 1]], axis=-1)


def hash64(*words: ArrayLike) -> np.ndarray:
    """One uint64 for each combination of words (integers from 0 on, broadcast; the result is at least 1-D).

    A chain of splitmix64 steps: `hash64(0)` is the generator's first output from seed 0.
    """
    state = np.zeros(1, np.uint64)  # 1-D: numpy warns of overflow on scalars only
    for word in words:
        state = _mix((state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return state


def permute(places: np.ndarray, length: ArrayLike, key: ArrayLike) -> np.ndarray:
    """Where a random permutation of `range(length)` sends these places. O(places), whatever the length.

    A Feistel network over pairs (x // b, x % b) with modular addition, on a domain a*b that exceeds `length` by less
    than a; the few places that it sends outside are sent on until they come back (cycle walking: Black, Rogaway,
    Ciphers with Arbitrary Finite Domains, CT-RSA 2002).

    Args:
        places: int64 `[B]`, in [0, length).
        length: Size of the domain, up to 2**62; one, or `[B]`.
        key: uint64, which permutation; one, or `[B]`.

    Returns:
        int64 `[B]`, in [0, length). Places of one key and length have different images.
    """
    shape = places.shape
    lengths = np.broadcast_to(np.asarray(length).astype(np.uint64), shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), shape)
    # An even a: rotations of odd cycles alone would reach no odd permutation.
    a = 2 * np.ceil(np.sqrt(lengths) / 2).astype(np.uint64)
    b = (lengths + a - np.uint64(1)) // a
    return _walk(_feistel, places.astype(np.uint64), lengths, a, b, keys).astype(np.int64)


def permute_blocks(
    places: np.ndarray, length: ArrayLike, key: ArrayLike, block: int, buffer_blocks: int = BUFFER_BLOCKS
) -> np.ndarray:
    """As `permute`, but places near each other are sent to few blocks of neighbours.

    `range(length)` is cut into blocks of `block`; the blocks are shuffled, and the places are shuffled within buffers
    of `buffer_blocks` blocks. So a stretch of buffer_blocks * block places, counted from 0, reads that many blocks and
    reads them out. Where the last block isn't whole, one stretch fills its gaps from the blocks of the last stretch.
    """
    shape = places.shape
    lengths = np.broadcast_to(np.asarray(length).astype(np.uint64), shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), shape)
    size = np.minimum(np.uint64(block), lengths)
    count = (lengths + size - np.uint64(1)) // size
    buffer = np.uint64(buffer_blocks) * size
    return _walk(_shuffle_blocks, places.astype(np.uint64), lengths, size, count, buffer, keys).astype(np.int64)


def _walk(
    bijection: Callable[..., np.ndarray], places: np.ndarray, lengths: np.ndarray, *parameters: np.ndarray
) -> np.ndarray:
    """A bijection of a larger domain as one of [0, length): what lands outside goes on until it is inside again."""
    images = bijection(places, *parameters)
    outside = np.flatnonzero(images >= lengths)
    while len(outside):
        images[outside] = bijection(images[outside], *(values[outside] for values in parameters))
        outside = outside[images[outside] >= lengths[outside]]
    return images


def _feistel(places: np.ndarray, a: np.ndarray, b: np.ndarray, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(places, b)
    for _ in range(_FEISTEL_ROUNDS):
        keys = keys + _GOLDEN
        left = (left + _below(a, _mix(_mix(keys) + right))) % a
        keys = keys + _GOLDEN
        right = (right + _below(b, _mix(_mix(keys) + left))) % b
    return left * b + right


def _shuffle_blocks(
    places: np.ndarray, size: np.ndarray, count: np.ndarray, buffer: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """A bijection of [0, size * count): within buffers of whole blocks, then of the blocks."""
    number, place = np.divmod(places, buffer)
    length = np.minimum(buffer, size * count - number * buffer)  # the last buffer may have fewer blocks
    place = permute(place, length, _mix(keys ^ _mix(number + _GOLDEN)))
    block, place = np.divmod(number * buffer + place.astype(np.uint64), size)
    return permute(block, count, keys).astype(np.uint64) * size + place


def _mix(values: np.ndarray) -> np.ndarray:
    for shift, factor in _MIX:
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> _31)


def _below(limits: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Random 64-bit values as numbers below the limits (below 2**32): a product and a shift, cheaper than a modulus."""
    return ((values >> _32) * limits) >> _32
