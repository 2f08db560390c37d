/* A hello as the laboratory's two ends send it: the frame and its msgpack map, written by hand, since nothing native knows msgpack. */
#ifndef ZCRPC_LAB_HELLO_H
#define ZCRPC_LAB_HELLO_H

#include <stddef.h>
#include <stdint.h>

#define ZC_LAB_HELLO_SIZE 160 /* bytes at most */

/* chunk, map_from: what the peer is asked to send. Returns the bytes written. */
size_t zc_lab_hello(unsigned char *at, uint32_t chunk, uint32_t map_from);

#endif
