"""Learns from users' data: adapters, ranking, fusion. It runs on a training machine, never on the device."""
