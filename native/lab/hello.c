#include "lab/hello.h"

#include <string.h>

#include "net/frame.h"

#define LAB_HEADER_LIMIT 4096 /* bytes of msgpack in a frame; the laboratory's own take a dozen */

static unsigned char *put_string(unsigned char *at, const char *text) {
    size_t length = strlen(text);
    *at++ = (unsigned char)(0xa0 | length); /* fixstr: up to 31 bytes */
    memcpy(at, text, length);
    return at + length;
}

static unsigned char *put_uint32(unsigned char *at, uint32_t value) {
    *at++ = 0xce;
    for (int shift = 24; shift >= 0; shift -= 8) /* msgpack is big-endian */
        *at++ = (unsigned char)(value >> shift);
    return at;
}

size_t zc_lab_hello(unsigned char *at, uint32_t chunk, uint32_t map_from) {
    unsigned char *end = at + ZC_FRAME_SIZE;
    *end++ = 0x85; /* fixmap of 5 */
    end = put_string(end, "software");
    end = put_string(end, "zcrpc-lab");
    end = put_string(end, "limits");
    *end++ = 0x83;
    end = put_string(end, "header");
    end = put_uint32(end, LAB_HEADER_LIMIT);
    end = put_string(end, "payload");
    end = put_uint32(end, UINT32_MAX);
    end = put_string(end, "in_flight");
    end = put_uint32(end, UINT16_MAX);
    end = put_string(end, "chunk");
    end = put_uint32(end, chunk);
    end = put_string(end, "map_from");
    end = put_uint32(end, map_from);
    end = put_string(end, "features");
    *end++ = 0x90; /* fixarray of 0 */
    struct zc_frame frame = {.kind = ZC_HELLO, .header_length = (uint32_t)(end - at - ZC_FRAME_SIZE)};
    zc_frame_encode(&frame, at);
    return (size_t)(end - at);
}
