"""One function per system call or kernel file; the only layer that reaches the native module."""
