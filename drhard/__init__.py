"""What two scripts of STAR and ADORE share: one module for each noun of the domain.

Data flows one way, and a module imports only from what stands before it:

    msmarco (text files) -> tokens (token memmaps) -> encoder -> embeddings -> search -> runs -> metrics

with the training parts (sampling, losses, lamb, star, adore) beside it.
"""

import os

# Threads that have nothing to do sleep instead of spinning. On a machine that others use too, spinning ones take
# the cores from those that work: a training step of the sample took 9 times longer, and a search from disk twice as
# long. Read when torch and NumPy are loaded, so scripts import this package first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # after 2^20 ticks of the clock, a fraction of a millisecond
# One thread for each process that tokenizes, of which there are as many as cores.
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
