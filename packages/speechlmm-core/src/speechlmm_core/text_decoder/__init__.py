"""Text decoders: causal language models of transformers with their tokenizer and chat template."""
