"""RoBERTa's tokenizer as in transformers 2.x. The code is in ``drhard.tokenizer``; this is its published name."""

from drhard.hub import MERGES_FILE, VOCAB_FILE
from drhard.tokenizer import RobertaTokenizer, byte_characters, tokenizer_digest

__all__ = ["MERGES_FILE", "VOCAB_FILE", "RobertaTokenizer", "byte_characters", "tokenizer_digest"]
