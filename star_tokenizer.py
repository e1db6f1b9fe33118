"""RoBERTa's tokenizer as transformers 2.x had it. It lives in ``drhard.tokenizer``; this is its published name."""

from drhard.tokenizer import MERGES_FILE, VOCAB_FILE, RobertaTokenizer, byte_characters, tokenizer_digest

__all__ = ["MERGES_FILE", "VOCAB_FILE", "RobertaTokenizer", "byte_characters", "tokenizer_digest"]
