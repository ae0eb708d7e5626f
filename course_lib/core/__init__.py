"""What everything stands on: checks of values, the cache, the machine, the network, intervals."""
