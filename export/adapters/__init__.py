"""PEFT adapters to adapter files of a bundle."""
