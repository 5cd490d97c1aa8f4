"""From C text to programs and maps in the kernel, and the records they share with Python."""
