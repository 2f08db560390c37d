"""Writes the C source of the extension module zcrpc._core: emit.py <cdef> <C source> <output>."""

import sys
from pathlib import Path

from cffi import FFI

cdef, source, output = sys.argv[1:]
ffi = FFI()
ffi.cdef(Path(cdef).read_text())
ffi.set_source("zcrpc._core", Path(source).read_text())
ffi.emit_c_code(output)
