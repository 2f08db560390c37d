"""The compiled core, as cffi builds it from native/ffi/_ffi.cdef.txt."""

from typing import Any

ffi: Any
lib: Any
