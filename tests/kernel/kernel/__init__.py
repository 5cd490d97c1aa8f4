"""What sockredird does with the kernel but for BPF, as root."""
