"""Makes records with a language model."""
