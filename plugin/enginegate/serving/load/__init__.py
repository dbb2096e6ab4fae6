"""The load generator: requests, client processes, levels, the search for a capacity."""
