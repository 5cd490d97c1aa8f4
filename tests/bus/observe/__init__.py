"""What list, trace, top, explain, stats and status show is what happened.

A package, so that its modules do not take the names of those of other directories.
"""
