"""A noisy neighbour: one core busy in bursts of 0.2 to 2 s, with pauses of the same length.

python benchmarks/neighbour.py [seed]     runs until it is killed
"""

import random
import sys
import time

import numpy as np


def main(seed: int) -> None:
    """Multiply matrices and copy memory in bursts, for ever."""
    rng = random.Random(seed)
    matrix, memory = np.ones((256, 256), np.float32), np.ones(1 << 22, np.float32)
    while True:
        end = time.perf_counter() + rng.uniform(0.2, 2)
        while time.perf_counter() < end:
            matrix @ matrix
            memory.copy()
        time.sleep(rng.uniform(0.2, 2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
