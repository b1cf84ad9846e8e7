/* Moves bytes between pairs of connected sockets, without copying them (splice(2)), and counts them.
 *
 * One thread for all pairs; who makes the pairs (akbox/linux/relay.py) has decided about them. A pair ends when both
 * directions have ended or one side broke, which the other then sees as a reset.
 */
#ifndef AK_PUMP_H
#define AK_PUMP_H

#include <stdbool.h>
#include <stdint.h>

struct ak_pump;

/* `limit`: bytes in both directions of all pairs together, UINT64_MAX for none. What would pass it is not read: every pair
 * is cut then, and `over_fd` (an eventfd, or -1) written. NULL + errno. */
struct ak_pump *ak_pump_new(uint64_t limit, int over_fd);
/* Takes both sockets over, whatever comes of it. 0 or -errno. */
int ak_pump_add(struct ak_pump *p, int a, int b);
uint64_t ak_pump_moved(struct ak_pump *p);
bool ak_pump_over(struct ak_pump *p);
/* Cuts every pair and ends the thread. */
void ak_pump_free(struct ak_pump *p);

#endif
