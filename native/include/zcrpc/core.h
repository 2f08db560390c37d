/* What Python binds: the core's whole surface. ffi/_ffi.cdef.txt repeats the parts that Python calls. */
#ifndef ZCRPC_CORE_H
#define ZCRPC_CORE_H

#include "lab/kernel.h"
#include "lab/lab.h"
#include "lab/lock_bench.h"
#include "lab/torture.h"
#include "lock/registry.h"
#include "net/reactor.h"
#include "region/region_map.h"

#endif
