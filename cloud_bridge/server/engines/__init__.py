"""What computes rows on the server, behind one protocol."""
