"""Quantizes weights: schemes, calibration, GPTQ."""
