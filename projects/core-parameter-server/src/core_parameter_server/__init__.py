"""A sharded parameter server on Ray Core."""
