"""Stand-alone programs, with the standard library alone, that the tests dump and restore."""
