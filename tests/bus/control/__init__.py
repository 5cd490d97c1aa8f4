"""What is on and what is remembered: enable, disable, reload, restore."""
