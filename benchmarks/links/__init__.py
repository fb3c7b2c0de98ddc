"""Emulates networks between two processes of one machine: delay, rate, loss, outages and faults."""
