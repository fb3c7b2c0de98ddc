"""What the runtime asks of the machine: threads and memory."""
