"""What connections do, and why some are not accelerated."""
