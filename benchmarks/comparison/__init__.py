"""What benchmarks/peers.py is made of: the table's rows, the peers and their environments, and the report."""
