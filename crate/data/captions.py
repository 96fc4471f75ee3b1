"""Captions as token ids, and the phrases and names that zero-shot classification is made with."""

# Tokenizer → rows of the embedding that its ids need: CLIPA's BERT vocabulary, which has 30,522
# entries in an embedding of 32,000; CLIP's byte-pair encoding.
VOCABULARIES = {"bert": 32_000, "clip": 49_408}
