"""Scores records with both models and saves the rows."""
