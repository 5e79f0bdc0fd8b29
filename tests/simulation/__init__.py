"""Many processes on one Redis in one thread, in a time that is not real, with whatever can go wrong on the way."""
