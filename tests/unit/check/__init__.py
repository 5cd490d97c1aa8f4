"""What check reads of programs and of firewall rules."""
