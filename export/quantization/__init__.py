"""Weights in fewer bits: schemes, calibration, GPTQ."""
