"""Scores records with both models and keeps the rows."""
