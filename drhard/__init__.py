"""What two scripts of STAR and ADORE share: one module for each noun of the domain.

Data flows one way, and a module imports only from what stands before it:

    msmarco (text files) -> tokens (token memmaps) -> encoder -> embeddings -> search -> runs -> metrics

with the training parts (sampling, losses, lamb, star, adore) beside it.
"""
