"""THE DICE: the noise that turns a distribution into a draw, defined in integers. No torch, no state, no entropy.

The noise of a token is a pure function of (seed, position, token), as in Philox (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011): no generator is advanced, so a draw is the same alone, in any batch, on any
device, and when it is repeated. `gpuworker/sampling.py` evaluates the same integers over whole rows of the
vocabulary, `gpuworker/null.py` one token at a time with the functions below; a test holds the two together.

    k0, k1 = the halves of splitmix64(splitmix64(seed) + position)
    x      = lowbias32(token + k0), with k1 added between its two rounds
    v      = ((x mod 2^31) + 1/2) / 2^31, at most 1 - 2^-24
    gumbel = -log(-log(1 - v))

splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. lowbias32: Wellons,
"Prospecting for hash functions", 2018. A small v is a large noise, and floats are densest there: events down to a
probability of 2^-32 are drawn as often as they should be.
"""

import math

MASK32 = 2**32 - 1
MASK64 = 2**64 - 1

MUL_A = 0x7FEB352D
MUL_B = 0x846CA68B
V_MAX = 1.0 - 2.0**-24

SPREAD = 25.0
"""The largest noise less the smallest, rounded up: a token further behind than this can never be drawn."""


def splitmix64(x: int) -> int:
    """The next output of a splitmix64 generator in state `x`; 64 bits, well mixed."""
    x = (x + 0x9E3779B97F4A7C15) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit words that stand for this draw. `seed`: any integer, of which 64 bits count."""
    k = splitmix64((splitmix64(seed & MASK64) + position) & MASK64)
    return k & MASK32, k >> 32


def gumbel(k0: int, k1: int, token: int) -> float:
    """The noise of one token under `key`: a draw from the standard Gumbel distribution, between -2.9 and 22.2."""
    x = (token + k0) & MASK32
    x = ((x ^ (x >> 16)) * MUL_A) & MASK32
    x = (((x ^ (x >> 15)) + k1) * MUL_B) & MASK32
    v = (((x ^ (x >> 16)) & 0x7FFFFFFF) + 0.5) / 2**31
    return -math.log(-math.log1p(-min(v, V_MAX)))
