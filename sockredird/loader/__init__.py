"""From C text to programs and maps in the kernel, and the records that C and Python share."""
