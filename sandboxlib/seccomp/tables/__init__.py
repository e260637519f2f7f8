"""The names and numbers of the system calls, one module an ABI, imported only when needed."""
