"""What the daemon does about connections that leave, and what it keeps of what it learned."""
