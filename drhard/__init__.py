"""STAR and ADORE: dense retrieval trained with hard negatives. The scripts call this library.

docs/architecture.md describes each module, how data flows through them, and how to extend them.
"""

import os

# Idle threads sleep instead of spinning. On a shared machine, spinning threads take cores from those that work: a
# training step of the sample took 9 times longer, and a search from disk twice as long. torch and NumPy read these
# variables when they are loaded, so scripts import this package first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # after 2^20 ticks of the clock, a fraction of a millisecond
# preprocess.py starts one tokenizing process for each core. Each gets one thread.
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
