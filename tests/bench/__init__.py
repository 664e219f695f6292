"""The benchmark: a mock upstream, a load generator, a CPU meter, and the tables of `make bench`."""
