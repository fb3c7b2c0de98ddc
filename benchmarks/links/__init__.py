"""Networks that are not there: delay, rate, loss, outages and faults between two processes of one machine."""
