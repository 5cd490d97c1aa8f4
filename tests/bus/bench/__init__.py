"""The benchmark's datapaths are what they say."""
