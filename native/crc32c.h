#ifndef AK_CRC32C_H
#define AK_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of `data`, continuing `crc` (0 at the start). */
uint32_t ak_crc32c(uint32_t crc, const void *data, size_t len);

#endif
