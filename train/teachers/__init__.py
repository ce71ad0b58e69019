"""Teachers: their answers, attention maps, and the cache of both."""
