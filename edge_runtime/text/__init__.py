"""Converts between text and tokens: tokenizer, chat template, prompt, streaming."""
