#include <errno.h>
#include <stdlib.h>

#include "zcrpc/core.h"
