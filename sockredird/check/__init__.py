"""Is this kernel fit for acceleration, is this host, and what would it gain?"""
