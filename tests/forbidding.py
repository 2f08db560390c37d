"""Forbids system calls to this process, as containers do: a seccomp filter, which needs no privileges.

python forbidding.py NUMBER[:ARGUMENT=VALUE…][,…] zcrpc-arguments …     runs the command line without these calls
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Iterator

# x86-64, arm64
_NUMBERS = {"socket": (41, 198), "getsockopt": (55, 209), "setsockopt": (54, 208), "io_uring_setup": (425, 425)}
_LOAD, _JUMP_IF, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2


def number(call: str) -> int:
    return _NUMBERS[call][platform.machine() == "aarch64"]


def forbid(*rules: str) -> None:
    """From now on calls fail with EPERM: "socket", or those with an argument, "getsockopt:2=35"."""
    program = b"".join(step for rule in rules for step in _refuse(rule)) + _step(_RETURN, _ALLOW)
    code = ctypes.create_string_buffer(program, len(program))
    filtering = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if libc.prctl(_SET_SECCOMP, _FILTER, filtering, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _refuse(rule: str) -> Iterator[bytes]:
    call, *conditions = rule.split(":")
    tests = [(0, number(call))]
    for condition in conditions:
        argument, value = map(int, condition.split("="))
        tests.append((16 + 8 * argument, value))
    for place, (offset, value) in enumerate(tests):
        yield _step(_LOAD, offset)
        yield _step(_JUMP_IF, value, otherwise=2 * (len(tests) - place) - 1)
    yield _step(_RETURN, _EPERM)


def _step(code: int, value: int, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, otherwise, value)


if __name__ == "__main__":
    forbidden, sys.argv[1:] = sys.argv[1].split(","), sys.argv[2:]
    from zcrpc.cli import main

    forbid(*forbidden)
    main()
