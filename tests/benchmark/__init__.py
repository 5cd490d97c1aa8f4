"""The benchmark's own tests: statistics, tables, and that its datapaths are what they say."""
