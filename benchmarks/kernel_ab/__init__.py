"""The kernel before and after its change to per-VMA locks: the same receives on Debian's 6.1 and 6.12, each booted in
QEMU, and on this machine's own kernel. `make kernel-ab` runs it; docs/kernel.md has what it gave.
"""
