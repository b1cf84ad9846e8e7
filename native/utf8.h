/* UTF-8 as the log writes and checks it. */
#ifndef AK_UTF8_H
#define AK_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The length of the UTF-8 sequence (RFC 3629: shortest form, no surrogates) that s begins with; 0 when it is none. */
static inline size_t ak_utf8_length(const uint8_t *s, size_t left)
{
	uint8_t a = s[0], least = 0x80, most = 0xbf;
	size_t n;
	if (a < 0x80)
		return 1;
	if (a >= 0xc2 && a <= 0xdf) {
		n = 2;
	} else if (a >= 0xe0 && a <= 0xef) {
		n = 3;
		least = a == 0xe0 ? 0xa0 : 0x80;
		most = a == 0xed ? 0x9f : 0xbf;
	} else if (a >= 0xf0 && a <= 0xf4) {
		n = 4;
		least = a == 0xf0 ? 0x90 : 0x80;
		most = a == 0xf4 ? 0x8f : 0xbf;
	} else {
		return 0;
	}
	if (n > left || s[1] < least || s[1] > most)
		return 0;
	for (size_t i = 2; i < n; i++)
		if (s[i] < 0x80 || s[i] > 0xbf)
			return 0;
	return n;
}

#endif
